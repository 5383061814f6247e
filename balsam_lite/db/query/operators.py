"""The operators of conditions: how a column is compared with a value, as SQL.

Values are converted to what the column holds: bool and numpy's bool first; then anything with `__index__`, or a
`numbers.Number`, is that number; text, None, times, UUIDs, lists and mappings are themselves. Anything else is refused, never
silently unequal.
"""

from __future__ import annotations

import json
import operator
import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime, time, timezone
from enum import Enum
from functools import lru_cache
from math import isfinite, isnan
from os import PathLike, fspath
from typing import Any, NamedTuple

from ...core import clock, field_specs, states
from ...core.clock import SECOND_US
from ...core.errors import InvalidSpec
from .fields import COMPARISONS, OF_JSON, Column
from .queries import SHORT_ID, has_wildcard

NUMBERS = ("integer", "count", "count0", "minutes", "flag", "id", "amount", "time")
#: The largest integer of SQLite.
LARGEST = 2**63 - 1


class Term(NamedTuple):
    """A condition in SQL, and its parameters."""

    sql: str
    parameters: Sequence[Any] = ()


# --- values -----------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Return a value of another package (an Enum, a numpy number, a Decimal) as a built-in Python value.

    Raises:
        InvalidSpec: it is a complex number.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    if type(value).__name__ in ("bool", "bool_") and hasattr(value, "item"):  # numpy's is no `bool`, and no number
        return bool(value)
    if isinstance(value, (int, float)):  # an Id of the api is a number of one site
        return value
    return str(value) if isinstance(value, str) else _number_of_package(value)


def _number_of_package(value: Any) -> Any:
    """Return a number of another package as int or float; anything else as it is."""
    from numbers import Complex, Number, Real

    with suppress(TypeError):  # an array of numpy has an __index__ that fails
        return operator.index(value)
    if isinstance(value, Complex) and not isinstance(value, Real):
        raise InvalidSpec(f"{value!r} is a complex number")
    return float(value) if isinstance(value, Number) else value  # type: ignore[arg-type]


def as_list(value: Any) -> list[Any] | None:
    """Return the items of an iterable (also of a numpy array); None for text, mappings and single values."""
    if isinstance(value, (list, tuple, set, frozenset, range)):
        return list(value)
    if isinstance(value, (str, bytes, Mapping, PathLike)) or not hasattr(value, "__iter__"):
        return None
    try:
        return list(value)
    except TypeError:  # an array without dimensions
        return None


def stored(kind: str, value: Any, is_ordered: bool = False) -> Any:
    """Return a value in the form in which a column of that kind stores it."""
    value = plain(_number_or_name(value, kind))
    if kind == "state" and not is_ordered:
        return states.check_state(text_of(value))
    if kind in field_specs.JSON_KINDS or (kind == "flag" and not is_ordered):
        return field_specs.checked(field_specs.Field("lookup", kind, None), value, "the")
    if kind == "minutes" and isinstance(value, str):
        try:
            value = clock.whole_minutes(value)
        except ValueError as exc:
            raise InvalidSpec(f"minutes {exc}") from None
    if kind == "id" and isinstance(value, bool):
        raise InvalidSpec(f"must be the number of a row, not {value!r}")
    if kind == "time":
        return time_us(value)
    if kind in NUMBERS or (kind == "word" and is_ordered and isinstance(value, (int, float))):
        return _number(value)
    if kind == "json":
        return _json_scalar(value, is_ordered)
    return _uuid(value) if kind == "uuid" else text_of(value)


def _number_or_name(value: Any, kind: str) -> Any:
    """Return the id of a job or batch job, or the name of an application, in place of the object."""
    if kind == "id":
        return getattr(value, "id", value)
    if not hasattr(value, "_SPECS"):
        return value
    return value.job_id if kind == "uuid" else value.name


def _number(value: Any) -> int | float:
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            try:
                value = float(value)
            except ValueError:
                raise InvalidSpec(f"A number cannot be compared with {value!r}", hint="Numbers are like 4 or 2.5.") from None
    if not isinstance(value, (int, float)):
        raise InvalidSpec(f"A number cannot be compared with {value!r}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:  # more than SQLite's integers hold
        return float("inf") if value > 0 else -float("inf")
    return value if isinstance(value, float) else int(value)


def text_of(value: Any) -> str:
    if isinstance(value, PathLike):
        value = fspath(value)
    is_known = isinstance(value, (str, int, float, date)) or type(value).__module__ == "uuid"
    if not is_known:
        raise InvalidSpec(f"Text cannot be compared with {value!r}")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidSpec(f"Text must be valid Unicode, not {text!r}") from None
    return text


def time_us(value: Any) -> int | float:
    """Return microseconds since the epoch. A time without a zone is UTC, as all times in a DB are, a date its beginning."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(f"{value[:-1]}+00:00" if value.endswith("Z") else value)
        except ValueError:
            raise InvalidSpec(f"A time must be a datetime, microseconds since the epoch or ISO 8601, not {value!r}") from None
    if isinstance(value, datetime):
        zone = value.utcoffset()
        since = value.replace(tzinfo=timezone.utc) - datetime(1970, 1, 1, tzinfo=timezone.utc)
        if zone is not None:
            since -= zone
        return (since.days * 86_400 + since.seconds) * SECOND_US + since.microseconds
    if isinstance(value, date):
        return time_us(datetime.combine(value, time(), tzinfo=timezone.utc))
    return _number(value)


def _json_scalar(value: Any, is_ordered: bool) -> Any:
    """Return the value that json_extract gives: truth values are numbers, lists and objects are text without blanks."""
    if isinstance(value, (int, float)) and (is_ordered or isfinite(value)):
        return _number(value)
    if isinstance(value, (float, Mapping)) or as_list(value) is not None:
        return _compact(value)
    return text_of(value)


def _compact(value: Any) -> str:
    several = as_list(value)
    try:
        stored = field_specs.to_json(value if several is None else several)
        text = json.dumps(stored, ensure_ascii=False, separators=(",", ":"))
        text.encode()
    except ValueError as exc:
        raise InvalidSpec(f"{value!r} {exc}") from None
    return text


def _uuid(value: Any) -> str:
    text = text_of(value).lower()
    if len(text) == 32 and "-" not in text:  # the hexadecimal digits alone
        text = "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
    return text


# --- comparing --------------------------------------------------------------------------------------------------------


def compare(column: Column, lookup: str, value: Any) -> Term:
    """Return the condition that compares a column with a value."""
    if lookup == "isnull":
        return term_of(column, f"{{}} IS {'' if value else 'NOT '}NULL")
    if lookup == "range":
        low, high = _two(value)
        return joined(" AND ", [_ordered(column, ">=", low), _ordered(column, "<=", high)])
    if lookup in COMPARISONS:
        return _ordered(column, COMPARISONS[lookup], value)
    if lookup in ("exact", "ne", "in"):
        return _is_among(column, lookup, value)
    return _compare_json(column, lookup, value) if _is_for_json(column, lookup, value) else _matches(column, lookup, value)


def term_of(column: Column, sql: str, *parameters: Any) -> Term:
    """Return the condition `sql` with the column in place of `{}`."""
    return Term(sql.replace("{}", column.sql), [*column.parameters * sql.count("{}"), *parameters])


def joined(glue: str, terms: Sequence[Term], if_none: str = "1") -> Term:
    """Return several conditions as one."""
    sql = glue.join(f"({one.sql})" for one in terms) or if_none
    return Term(sql, [value for one in terms for value in one.parameters])


def _two(value: Any) -> list[Any]:
    ends = as_list(value)
    if ends is None or len(ends) != 2:
        raise InvalidSpec(f"range needs the first and the last value, not {value!r}")
    return ends


def _is_among(column: Column, lookup: str, value: Any) -> Term:
    """Compare with one value, or with any of a list of values if the column does not hold lists itself."""
    several = as_list(value) if lookup == "in" or column.kind not in ("json", *field_specs.JSON_KINDS) else None
    if several is not None:
        return _is_in(column, several, "not in" if lookup == "ne" else "in")
    if lookup == "in":
        raise InvalidSpec(f"in needs a list of values, not {value!r}")
    return _equals(column, value, lookup == "exact")


def _equals(column: Column, value: Any, is_exact: bool = True) -> Term:
    if value is None:
        return term_of(column, f"{{}} IS {'' if is_exact else 'NOT '}NULL")
    wanted = _chosen(column, stored(column.kind, value))
    if isinstance(wanted, float) and isnan(wanted):
        raise InvalidSpec("NaN is equal to nothing, not even to itself")
    if column.kind == "uuid" and is_exact:
        # A bare `job_id = ?` would let SQLite put the value into substr() too, which the index then does not match.
        return Term(f"{_short_id(column)} = ? AND +{column.sql} = ?", [wanted[:SHORT_ID], wanted])
    return term_of(column, f"{{}} {'=' if is_exact else 'IS NOT'} ?", wanted)


def _ordered(column: Column, sign: str, value: Any) -> Term:
    wanted = stored(column.kind, value, is_ordered=True)
    if column.kind not in ("json", "word"):
        return term_of(column, f"{{}} {sign} ?", wanted)
    if isinstance(wanted, str):
        return Term(f"{column.type_sql} = 'text' AND {column.sql} {sign} ?", [*column.parameters, *column.parameters, wanted])
    if column.kind == "word":  # tags and environment variables are text; those that are no numbers compare with none
        return term_of(column, f"balsam_number({{}}) {sign} ?", wanted)
    types = f"{column.type_sql} IN ('integer', 'real', 'true', 'false')"
    return Term(f"{types} AND {column.sql} {sign} ?", [*column.parameters, *column.parameters, wanted])


def _is_in(column: Column, values: list[Any], lookup: str) -> Term:
    """Pass any number of values as one parameter."""
    found = [None if one is None else _chosen(column, stored(column.kind, one)) for one in values]
    known = [one for one in found if one is not None and not (isinstance(one, float) and not isfinite(one))]
    negation = "" if lookup == "in" else "NOT "
    if len(known) == len(found) == 1 and not negation and column.kind != "uuid":
        return term_of(column, "{} = ?", known[0])  # of which an index gives the rows in order
    listed = term_of(column, f"{{}} {negation}IN (SELECT value FROM json_each(?))", json.dumps(known))
    if column.kind == "uuid" and not negation:
        shorts = json.dumps(sorted({one[:SHORT_ID] for one in known}))
        listed = Term(f"{_short_id(column)} IN (SELECT value FROM json_each(?)) AND {listed.sql}", [shorts, *listed.parameters])
    if negation:
        missing = "IS NOT" if None in found else "IS"
        return joined(" AND " if None in found else " OR ", [listed, term_of(column, f"{{}} {missing} NULL")])
    return listed if None not in found else joined(" OR ", [listed, term_of(column, "{} IS NULL")])


def _chosen(column: Column, value: Any) -> Any:
    if column.choices and value not in column.choices:
        raise InvalidSpec(f"must be one of {', '.join(column.choices)}, not {value!r}")
    return value


def _short_id(column: Column) -> str:
    """Return the expression of the index on the short id."""
    return f"substr({column.sql}, 1, {SHORT_ID})"


# --- text -------------------------------------------------------------------------------------------------------------

#: The longest pattern that SQLite takes, in bytes.
_MAX_GLOB = 50_000


def _matches(column: Column, lookup: str, value: Any) -> Term:
    """Compare text. Not with LIKE, which knows wildcards, ignores the case of ASCII only, and refuses long patterns."""
    wanted = text_of(plain(value)).lower() if column.kind == "uuid" else text_of(plain(value))
    if lookup.endswith("regex"):
        return Term(f"balsam_matches(?, {column.sql}) = 1", [_pattern(wanted, lookup == "iregex"), *column.parameters])
    if not lookup.startswith("i"):
        return _TEXT_LOOKUPS[lookup](column, wanted)
    fold, wanted = ("lower", wanted.lower()) if wanted.isascii() else ("balsam_fold", wanted.casefold())
    return _TEXT_LOOKUPS[lookup[1:]](column._replace(sql=f"{fold}({column.sql})", is_stored=False), wanted)


def _starts_with(column: Column, start: str) -> Term:
    starts = term_of(column, f"substr({{}}, 1, {len(start)}) = ?", start)
    return joined(" AND ", [_in_range(column, start), starts]) if _has_range(column, start) else starts


def _ends_with(column: Column, end: str) -> Term:
    return term_of(column, f"substr({{}}, -{len(end)}) = ?", end) if end else term_of(column, "{} IS NOT NULL")


def _globbed(column: Column, pattern: str) -> Term:
    if not has_wildcard(pattern):
        return _equals(column._replace(kind="text" if column.kind == "state" else column.kind), pattern)
    escaped = pattern.replace("[", "[[]")
    if len(escaped.encode()) > _MAX_GLOB:
        raise InvalidSpec(f"A glob must not be longer than {_MAX_GLOB} bytes")
    globbed = term_of(column, "{} GLOB ?", escaped)
    start = re.split(r"[*?]", pattern, maxsplit=1)[0]
    return joined(" AND ", [_in_range(column, start), globbed]) if _has_range(column, start) else globbed


_TEXT_LOOKUPS: dict[str, Callable[[Column, str], Term]] = {
    "exact": lambda column, text: term_of(column, "{} = ?", text),
    "contains": lambda column, text: term_of(column, "instr({}, ?) > 0", text),
    "startswith": _starts_with,
    "endswith": _ends_with,
    "glob": _globbed,
}


def _has_range(column: Column, start: str) -> bool:
    return column.is_stored and bool(start) and column.kind not in (*NUMBERS, *field_specs.JSON_KINDS)


def _in_range(column: Column, start: str) -> Term:
    """Return the condition that a text begins with `start`, as a range that can use an index."""
    if column.kind == "uuid":
        short = start.lower()[:SHORT_ID]
        return Term(f"{_short_id(column)} >= ? AND {_short_id(column)} < ?", [short, short + "~"])
    following = ord(start[-1]) + 1
    if following > 0x10FFFF:
        return term_of(column, "{} >= ?", start)
    end = start[:-1] + chr(0xE000 if 0xD800 <= following < 0xE000 else following)  # surrogates are no characters
    return Term(f"{column.sql} >= ? AND {column.sql} < ?", [start, end])


def _pattern(text: str, is_folded: bool) -> str:
    pattern = f"(?i){text}" if is_folded else text
    try:
        _compiled(pattern)
    except re.error as exc:
        raise InvalidSpec(f"{text!r} is no regular expression: {exc}") from None
    return pattern


@lru_cache(maxsize=32)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _number_of(text: Any) -> float | None:
    try:
        found = float(text)
    except (TypeError, ValueError):
        return None
    return found if isfinite(found) else None


#: Functions that SQLite lacks: name -> (number of arguments, function).
_FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "balsam_fold": (1, lambda text: None if text is None else str(text).casefold()),
    "balsam_matches": (2, lambda pattern, text: text is not None and _compiled(pattern).search(str(text)) is not None),
    "balsam_number": (1, _number_of),
}


def execute(cx: sqlite3.Connection, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
    """Run a statement with compiled conditions, after registering the functions of this module with the connection."""
    if "balsam_" in sql:
        for name, (arguments, function) in _FUNCTIONS.items():
            if name in sql:
                cx.create_function(name, arguments, function, deterministic=True)
    return cx.execute(sql, parameters)


# --- JSON -------------------------------------------------------------------------------------------------------------

#: Whether two rows of json_each, `one` and `other`, hold equal values; truth values are numbers, as everywhere.
_GROUP = "CASE WHEN {0}.type IN ('text', 'array', 'object', 'null') THEN {0}.type ELSE 'number' END"
_SAME = f"one.value IS other.value AND {_GROUP.format('one')} = {_GROUP.format('other')}"


def _is_for_json(column: Column, lookup: str, value: Any) -> bool:
    """Return whether a lookup compares items of lists and objects, and not text."""
    if lookup != "contains":
        return lookup in OF_JSON
    is_structure = isinstance(value, Mapping) or as_list(value) is not None
    return column.kind == "json" or is_structure


def _compare_json(column: Column, lookup: str, value: Any) -> Term:
    """Compare the keys or items of a JSON column or of a path below it.

    The value is a row `it`, so that the parameters of the path occur only twice.
    """
    is_path = column.kind in ("json", "word")
    if not is_path and column.kind not in field_specs.JSON_KINDS:
        raise InvalidSpec(f"Text cannot be compared with {value!r}; {lookup} of keys and items is for JSON fields")
    check = {"contains": _containing, "contained_by": _contained_by}.get(lookup)
    cases, parameters = check(value) if check else _having_keys(lookup, value)
    type_sql = column.type_sql if is_path else "'object'"
    sql = f"(SELECT CASE {cases} END FROM (SELECT {type_sql} AS type, {column.sql} AS value) AS it)"
    return Term(sql, [*parameters, *column.parameters * (1 + is_path)])


def _having_keys(lookup: str, value: Any) -> tuple[str, list[Any]]:
    """Return the cases of a CASE over the row `it`, and their parameters."""
    several = as_list(value)
    if (several is None) != (lookup == "has_key") or isinstance(value, Mapping):
        raise InvalidSpec(f"{lookup} needs {'a key' if lookup == 'has_key' else 'a list of keys'}, not {value!r}")
    keys = [value] if several is None else several
    has_key = "EXISTS (SELECT 1 FROM json_each(it.value) WHERE key = ?)"
    glue, of_none = (" OR ", "0") if lookup == "has_any_keys" else (" AND ", "1")
    every = glue.join([has_key] * len(keys)) or of_none
    return f"WHEN it.type = 'object' THEN {every} ELSE 0", [text_of(plain(key)) for key in keys]


def _contained_by(value: Any) -> tuple[str, list[Any]]:
    several = as_list(value)
    is_object = isinstance(value, Mapping)
    if several is None and not is_object:
        raise InvalidSpec(f"contained_by needs a mapping or a list, not {value!r}")
    among = _compact(value if is_object else several)
    same = f"EXISTS (SELECT 1 FROM json_each(?) AS other WHERE {_SAME}{' AND one.key = other.key' * is_object})"
    every = f"NOT EXISTS (SELECT 1 FROM json_each(it.value) AS one WHERE NOT {same})"
    if is_object:
        return f"WHEN it.type = 'object' THEN {every} ELSE 0", [among]
    single = same.replace("one.", "it.")
    return f"WHEN it.type = 'array' THEN {every} WHEN it.type <> 'object' THEN {single} ELSE 0", [among, among]


def _containing(value: Any) -> tuple[str, list[Any]]:
    """Return the cases of a CASE over the row `it` for `contains`, and their parameters.

    Text matches part of a text or an item of a list; another scalar matches an item or an equal value; a list or an object
    matches as part of another one.
    """
    several = as_list(value)
    has_item = f"EXISTS (SELECT 1 FROM json_each(it.value) AS one, json_each(?) AS other WHERE {_SAME})"
    if isinstance(value, Mapping):
        has_item = f"{has_item[:-1]} AND one.key = other.key)"
        items = [_compact({str(key): one}) for key, one in value.items()]
        return f"WHEN it.type = 'object' THEN {' AND '.join([has_item] * len(items)) or 1} ELSE 0", items
    if several is not None:
        items = [_compact([one]) for one in several]
        return f"WHEN it.type = 'array' THEN {' AND '.join([has_item] * len(items)) or 1} ELSE 0", items
    wanted = _compact([plain(value)])
    if isinstance(value, str):
        return f"WHEN it.type = 'array' THEN {has_item} WHEN it.type = 'text' THEN instr(it.value, ?) > 0 ELSE 0", [
            wanted,
            value,
        ]
    equal = f"EXISTS (SELECT 1 FROM json_each(?) AS other WHERE {_SAME.replace('one.', 'it.')})"
    return f"WHEN it.type = 'array' THEN {has_item} WHEN it.type <> 'object' THEN {equal} ELSE 0", [wanted, wanted]
