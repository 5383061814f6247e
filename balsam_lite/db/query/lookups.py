"""Django-style lookups as SQL: `num_nodes__lte=128`, `data__stage__step__gte=3`, `job_id__in=[…]`.

Builds peewee expressions and runs nothing. A lookup names a column (or a path into a JSON column), then what to compare
by; a name that means nothing raises UnknownField, a value that cannot be compared InvalidSpec.

What SQLite does not have, the two functions in `FUNCTIONS` do; whoever runs a query registers those its text mentions.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timezone
from functools import lru_cache
from math import isfinite
from os import PathLike, fspath
from typing import Any, NamedTuple

import peewee
from peewee import SQL, Expression, fn

from ...core import durations, field_specs, states
from ...core.clock import SECOND_US
from ...core.errors import InvalidSpec, UnknownField
from ...core.suggest import did_you_mean
from ..engine import schema
from .queries import JOBS_WITH, SHORT_ID

_COMPARISONS = {"lt": "<", "lte": "<=", "gt": ">", "gte": ">="}
_TEXTS = ("contains", "startswith", "endswith", "regex")
LOOKUPS = ("exact", "iexact", "ne", *_COMPARISONS, *_TEXTS, *(f"i{name}" for name in _TEXTS), "in", "isnull", "range")

#: What jobs have besides `field_specs.JOB_FIELDS`, and kinds of columns that `field_specs` does not know.
_OF_JOBS = {
    **field_specs.JOB_FIELD,
    "id": field_specs.Field("id", "id", None),
    "job_id": field_specs.Field("job_id", "uuid", ""),
}
_OF_APPS = {**field_specs.APP_FIELD, "id": field_specs.Field("id", "id", None)}
_NUMBERS = ("integer", "count", "count0", "minutes", "flag", "id", "amount")
#: The columns of a batch job, by which its reserved jobs can be found: `queued_launch__scheduler_id`.
LAUNCH_KINDS = {
    "id": "id", "scheduler_id": "text", "scheduler": "text", "project": "text",
    "queue": "text", "nodes": "count", "wall_minutes": "minutes",
    "job_mode": "text", "wf_filter": "text", "filter_tags": "text", "sched_flags": "text", "command": "text",
    "state": "text", "reason": "text", "prescheduled_only": "flag", "from_balsam": "flag", "created": "time",
    "started": "time", "ended": "time", "exit_code": "id", "log": "text", "partitions": "text", "optional_params": "text",
    "absent": "time", "cluster": "text", "tries": "count",
}  # fmt: skip


class Column(NamedTuple):
    """Something that a query can compare, sort by and fetch."""

    node: Any  # a peewee node
    kind: str  # a kind of `field_specs`, or: uuid, time, json (a path into a JSON column), word (such a path to text)
    plain: bool = False  # a column of the table itself, as indexes know it
    guard: Any = None  # what must hold besides, for the sake of an index


#: Used for its SQL dialect only; it has no file and is never connected.
_dialect = peewee.SqliteDatabase(None)


def table(model: Any) -> Any:
    """Return the peewee model that builds queries of the rows of a record."""
    return _peewee_model(model)


@lru_cache(maxsize=2)
def _peewee_model(model: Any) -> Any:
    meta = type("Meta", (), {"database": _dialect, "table_name": model._what})
    columns = {name: peewee.Field() for name in model._COLUMNS if name != "id"}
    return type(model.__name__, (peewee.Model,), {"Meta": meta, "id": peewee.AutoField(), **columns})


def fields_of(model: Any) -> Mapping[str, field_specs.Field]:
    """The fields of a job or an app, by name."""
    return _OF_JOBS if model._what == "job" else _OF_APPS


# --- names ------------------------------------------------------------------------------------------------------------


def condition(model: Any, name: str, value: Any) -> Any:
    """What `filter(name=value)` asks for, as a peewee expression.

    Raises:
        UnknownField, InvalidSpec, InvalidStateError.
    """
    parts = name.split("__")
    if parts[-1] == "in" and isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        value = list(value)
    if parts[0] == "queued_launch" and len(parts) > 1 and parts[1] not in LOOKUPS:
        return _launch_condition(model, parts, value)
    if parts[0] == "pk":
        by_number = fields_of(model) is _OF_APPS or _are_numbers(value)
        parts[0] = "id" if by_number else "job_id"
    column, lookup = _column(model, parts, name)
    if parts[0] == "lock" and lookup == "exact" and value in ("", None):
        return table(model).lease.is_null()
    if column.guard is not None and lookup == "exact" and isinstance(value, str):
        return Expression(table(model).id, "IN", SQL(f"({JOBS_WITH})", [parts[1], value]))
    found = _compare(column, lookup, value)
    return found if column.guard is None or _holds_for_missing(lookup, value) else column.guard & found


def visible(model: Any) -> Any:
    """Return the condition that a job is not one that is still being added; None for applications."""
    if fields_of(model) is _OF_APPS:
        return None
    before, after = schema.visible("{}").split("{}")
    return _raw(before, table(model).id, after)


def column(model: Any, name: str) -> Column:
    """What goes by `name` in `order_by`, `values` and `values_list`: a field or a path into a JSON field."""
    parts = name.split("__")
    if parts[0] == "pk":
        parts[0] = "id" if fields_of(model) is _OF_APPS else "job_id"
    if parts[0] == "queued_launch" and len(parts) > 1:
        kind = _launch_kind(parts[1], name, parts[2:])
        node = _raw("(SELECT ", SQL(parts[1]), " FROM batch_job WHERE batch_job.id = ", table(model).queued_launch_id, ")")
        return Column(node, kind)
    return _column(model, parts, name, may_look_up=False)[0]


def _column(model: Any, parts: list[str], name: str, may_look_up: bool = True) -> tuple[Column, str]:
    fields = fields_of(model)
    head, rest = parts[0], parts[1:]
    if head == "lock" and fields is _OF_JOBS:
        holder = " FROM lease WHERE lease.id = "
        found = Column(_raw("ifnull((SELECT host || ':' || pid", holder, table(model).lease, "), '')"), "text")
        return found, _lookup(rest, name)
    field = field_specs.known_field(head, fields, model._what)
    node = getattr(table(model), field.name)
    if field.kind in field_specs.JSON_KINDS and rest and (len(rest) > 1 or rest[0] not in LOOKUPS):
        lookup = rest.pop() if may_look_up and len(rest) > 1 and rest[-1] in LOOKUPS else "exact"
        tagged = _with_key(model, rest[0]) if field.name == "tags" and len(rest) == 1 else None
        return Column(_json_value(node, rest), "json" if field.kind == "object" else "word", guard=tagged), lookup
    if not may_look_up and rest:
        raise UnknownField(f"A {model._what} has no field {name!r}.")
    return Column(node, "time" if field.name == "created" else field.kind, plain=True), _lookup(rest, name)


def _with_key(model: Any, key: str) -> Any:
    """That a job has a tag of that key: what an index can find."""
    jobs = "(SELECT job FROM tag CROSS JOIN job_tag ON job_tag.tag = tag.id WHERE tag.key = ?)"
    return Expression(table(model).id, "IN", SQL(jobs, [key]))


def _lookup(rest: list[str], name: str) -> str:
    if not rest:
        return "exact"
    if len(rest) == 1 and rest[0] in LOOKUPS:
        return rest[0]
    meant = did_you_mean(rest[-1], LOOKUPS)
    raise UnknownField(f"{name}: there is no lookup {'__'.join(rest)!r}.{meant}", hint=f"The lookups are: {', '.join(LOOKUPS)}")


def _launch_kind(name: str, whole: str, rest: Iterable[str]) -> str:
    if name not in LAUNCH_KINDS or rest:
        raise UnknownField(f"{whole}: a batch job has no field {name!r}.", hint=f"It has: {', '.join(LAUNCH_KINDS)}")
    return LAUNCH_KINDS[name]


def _launch_condition(model: Any, parts: list[str], value: Any) -> Any:
    name = "__".join(parts)
    launch = Column(SQL(parts[1]), _launch_kind(parts[1], name, ()))
    asked = _compare(launch, _lookup(parts[2:], name), value)
    return Expression(table(model).queued_launch_id, "IN", _raw("(SELECT id FROM batch_job WHERE ", asked, ")"))


def _raw(*pieces: Any) -> Any:
    """SQL put together from text and nodes."""
    return peewee.NodeList([SQL(piece) if isinstance(piece, str) else piece for piece in pieces], glue="")


# --- paths into JSON --------------------------------------------------------------------------------------------------

#: Keys that can stand between quotes in a path; SQLite before 3.45 knows no escapes there.
_EASY_KEY = re.compile(r'[^"\\\x00-\x1f]+\Z')


def _json_value(node: Any, keys: list[str]) -> Any:
    """The value at a path: NULL where there is none. A key of digits is also tried as the position in a list."""
    *above, last = keys
    if not all(map(_EASY_KEY.match, above)):
        raise InvalidSpec(f"Only the last key of a path may hold quotes or backslashes: {'__'.join(keys)}")
    if not _EASY_KEY.match(last):
        path = "$" + "".join(f'."{key}"' for key in above)
        return _raw("(SELECT value FROM json_each(", node, SQL(", ?) WHERE key = ?)", [path, last]))
    steps = [(f'."{key}"', f"[{int(key)}]") if re.fullmatch("[0-9]{1,9}", key) else (f'."{key}"',) for key in keys]
    found = [fn.json_extract(node, "$" + "".join(path)) for path in itertools.product(*steps)]
    return found[0] if len(found) == 1 else fn.coalesce(*found)


def as_json(found: Column) -> Any:
    """The node that fetches a column so that `as_value` can read it."""
    return fn.json_quote(found.node) if found.kind in ("json", "word") else found.node


def as_value(kind: str) -> Callable[[Any], Any] | None:
    """What turns a fetched column of that kind into what users get; None where it is that already."""
    if kind in field_specs.JSON_KINDS or kind in ("json", "word"):
        return lambda text: None if text is None else field_specs.read_object(text)
    return bool if kind == "flag" else None


# --- comparing --------------------------------------------------------------------------------------------------------


def negated(asked: Any) -> Any:
    """What `exclude` asks for: all for which it does not hold, those with nothing to compare included."""
    return Expression(fn.ifnull(asked, SQL("0")), "=", SQL("0"))


def _holds_for_missing(lookup: str, value: Any) -> bool:
    return lookup == "ne" or (lookup in ("exact", "isnull") and (value is None or value is True)) or lookup == "in"


def _compare(found: Column, lookup: str, value: Any) -> Any:
    if lookup == "isnull":
        return Expression(found.node, "IS" if value else "IS NOT", SQL("NULL"))
    if lookup == "in":
        return _is_in(found, value)
    if lookup == "range":
        low, high = value
        return _compare(found, "gte", low) & _compare(found, "lte", high)
    if lookup in _COMPARISONS:
        return _ordered(found, _COMPARISONS[lookup], value)
    if lookup in ("exact", "ne"):
        return _equals(found, value, lookup)
    return _matches(found, lookup, value)


def _equals(found: Column, value: Any, lookup: str) -> Any:
    if value is None:
        return Expression(found.node, "IS" if lookup == "exact" else "IS NOT", SQL("NULL"))
    wanted = _stored(found, value)
    if found.kind == "uuid" and lookup == "exact":
        # A bare `job_id = ?` would let SQLite put the value into substr() too, which the index then does not match.
        return Expression(_short_id(found), "=", wanted[:SHORT_ID]) & Expression(_raw("+", found.node), "=", wanted)
    return Expression(found.node, "=" if lookup == "exact" else "IS NOT", wanted)


def _ordered(found: Column, sign: str, value: Any) -> Any:
    wanted = _stored(found, value, ordered=True)
    if found.kind not in ("json", "word"):
        return Expression(found.node, sign, wanted)
    if isinstance(wanted, str):
        return Expression(fn.typeof(found.node), "=", "text") & Expression(found.node, sign, wanted)
    if found.kind == "word":  # tags and environment variables are text, whatever they say
        return Expression(_raw("CAST(", found.node, " AS REAL)"), sign, wanted)
    return Expression(fn.typeof(found.node), "IN", SQL("('integer', 'real')")) & Expression(found.node, sign, wanted)


def _is_in(found: Column, values: Any) -> Any:
    """One parameter for any number of values."""
    if isinstance(values, (str, bytes)):
        raise InvalidSpec(f"in needs a list of values, not {values!r}")
    stored = [None if value is None else _stored(found, value) for value in values]
    listed = _json_list([value for value in stored if value is not None])
    asked = Expression(found.node, "IN", SQL("(SELECT value FROM json_each(?))", [listed]))
    if found.kind == "uuid":
        shorts = _json_list(sorted({value[:SHORT_ID] for value in stored if value}))
        asked = Expression(_short_id(found), "IN", SQL("(SELECT value FROM json_each(?))", [shorts])) & asked
    return asked if None not in stored else asked | Expression(found.node, "IS", SQL("NULL"))


def _json_list(values: list[Any]) -> str:
    return json.dumps([value for value in values if not isinstance(value, float) or isfinite(value)])


def _short_id(found: Column) -> Any:
    """As the index on the short id has it, constants included."""
    return fn.substr(found.node, SQL("1"), SQL(str(SHORT_ID)))


# --- text -------------------------------------------------------------------------------------------------------------


def _matches(found: Column, lookup: str, value: Any) -> Any:
    """Text lookups. Not with LIKE, which knows wildcards, forgets the case of ASCII only, and refuses long patterns."""
    if isinstance(value, Mapping) and lookup == "contains":
        return _holds_all(found, value)
    wanted = _text(value)
    if lookup.endswith("regex"):
        return Expression(fn.balsam_matches(_pattern(wanted, lookup == "iregex"), found.node), "=", 1)
    node = found.node
    folded = lookup.startswith("i")
    if folded:
        lookup = lookup[1:]
        node, wanted = (fn.lower(node), wanted.lower()) if wanted.isascii() else (fn.balsam_fold(node), wanted.casefold())
    if lookup == "exact":
        return Expression(node, "=", wanted)
    if lookup == "contains":
        return Expression(fn.instr(node, wanted), ">", 0)
    if lookup == "endswith":
        return Expression(fn.substr(node, -len(wanted)), "=", wanted) if wanted else Expression(node, "IS NOT", SQL("NULL"))
    asked = Expression(fn.substr(node, 1, len(wanted)), "=", wanted)
    return _in_range(found, wanted) & asked if found.plain and wanted and not folded else asked


def _in_range(found: Column, start: str) -> Any:
    """Between which texts all those lie that start so: what an index can find."""
    if found.kind == "uuid":
        short, end = start[:SHORT_ID], start[:SHORT_ID] + "~"
        return Expression(_short_id(found), ">=", short) & Expression(_short_id(found), "<", end)
    following = ord(start[-1]) + 1
    asked = Expression(found.node, ">=", start)
    if following > 0x10FFFF:
        return asked
    end = start[:-1] + chr(0xE000 if 0xD800 <= following < 0xE000 else following)  # surrogates are no characters
    return asked & Expression(found.node, "<", end)


def _holds_all(found: Column, wanted: Mapping[str, Any]) -> Any:
    if found.kind not in field_specs.JSON_KINDS:
        raise InvalidSpec(f"contains needs text, not {wanted!r}")
    kind = "json" if found.kind == "object" else "word"
    asked = [_equals(Column(_json_value(found.node, [str(key)]), kind), value, "exact") for key, value in wanted.items()]
    together = Expression(found.node, "IS NOT", SQL("NULL"))
    for one in asked:
        together = together & one
    return together


def _pattern(text: str, folded: bool) -> str:
    pattern = f"(?i){text}" if folded else text
    try:
        _compiled(pattern)
    except re.error as exc:
        raise InvalidSpec(f"{text!r} is no regular expression: {exc}") from None
    return pattern


@lru_cache(maxsize=32)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


#: name -> (number of arguments, function), for `Connection.create_function`.
FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "balsam_fold": (1, lambda text: None if text is None else str(text).casefold()),
    "balsam_matches": (2, lambda pattern, text: text is not None and _compiled(pattern).search(str(text)) is not None),
}


# --- values -----------------------------------------------------------------------------------------------------------


def _stored(found: Column, value: Any, ordered: bool = False) -> Any:
    """`value` as the column would hold it."""
    kind = found.kind
    value = _plain(value, kind)
    if kind == "state" and not ordered:
        return states.check_state(value)
    if kind in field_specs.JSON_KINDS or (kind == "flag" and not ordered):
        return field_specs.checked(field_specs.Field("lookup", kind, None), value, "the")
    if kind == "minutes" and isinstance(value, str):
        try:
            value = durations.whole_minutes(value)
        except ValueError as exc:
            raise InvalidSpec(f"minutes {exc}") from None
    if kind in _NUMBERS or (kind == "word" and ordered and isinstance(value, (int, float))):
        return _number(value)
    convert: Callable[[Any], Any] = _AS_STORED.get(kind, _text)
    return convert(value)


def _plain(value: Any, kind: str) -> Any:
    """Jobs and batch jobs stand for their id, an application for its name."""
    if kind == "id":
        return getattr(value, "id", value)
    if not hasattr(value, "_SPECS"):
        return value
    return value.job_id if kind == "uuid" else value.name


def _are_numbers(value: Any) -> bool:
    values = [value] if not isinstance(value, (list, tuple, set, frozenset, range)) else value
    return all(isinstance(one, int) for one in values)


def _number(value: Any) -> int | float:
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            try:
                value = float(value)
            except ValueError:
                raise InvalidSpec(f"A number cannot be compared with {value!r}") from None
    if not isinstance(value, (int, float)):
        raise InvalidSpec(f"A number cannot be compared with {value!r}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:  # more than SQLite's integers hold
        return float("inf") if value > 0 else -float("inf")
    return value if isinstance(value, float) else int(value)


def _text(value: Any) -> str:
    if isinstance(value, PathLike):
        value = fspath(value)
    if isinstance(value, (bytes, Mapping, list, tuple, set, frozenset)) or value is None:
        raise InvalidSpec(f"Text cannot be compared with {value!r}")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidSpec(f"Text must be valid Unicode, not {text!r}") from None
    return text


def _time(value: Any) -> int | float:
    """Microseconds since the epoch; a time without a zone is UTC, as all times in a DB are."""
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=timezone.utc)
        since = aware - datetime(1970, 1, 1, tzinfo=timezone.utc)
        return (since.days * 86_400 + since.seconds) * SECOND_US + since.microseconds
    if isinstance(value, date):
        return _time(datetime.combine(value, time(), tzinfo=timezone.utc))
    return _number(value)


def _json_scalar(value: Any) -> Any:
    """As json_extract gives it: truth values are numbers, lists and objects are text without blanks."""
    if isinstance(value, (int, float)):
        return _number(value)
    if isinstance(value, (Mapping, list, tuple)):
        whole = dict(value) if isinstance(value, Mapping) else list(value)
        return json.dumps(whole, ensure_ascii=False, separators=(",", ":"))
    return _text(value)


def _uuid(value: Any) -> str:
    return _text(value).lower()


_AS_STORED: dict[str, Callable[[Any], Any]] = {"time": _time, "json": _json_scalar, "uuid": _uuid}
