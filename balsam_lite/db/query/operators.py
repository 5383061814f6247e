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
from enum import Enum
from functools import lru_cache
from math import isfinite, isnan
from os import PathLike, fspath
from typing import Any, NamedTuple

from ...core import clock, field_specs, states
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
    if isinstance(value, (str, int, float)):  # an Id of the api is a number of one site
        return str(value) if isinstance(value, str) else value
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


def is_date(value: Any) -> bool:
    """Return whether it is a date or a datetime, without importing them."""
    return hasattr(value, "toordinal")


def text_of(value: Any) -> str:
    """Return text, a number, a path, a time or a UUID as text. Raises InvalidSpec: it is something else, or no Unicode."""
    if isinstance(value, PathLike):
        value = fspath(value)
    if not (isinstance(value, (str, int, float)) or is_date(value) or type(value).__module__ == "uuid"):
        raise InvalidSpec(f"Text cannot be compared with {value!r}")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidSpec(f"Text must be valid Unicode, not {text!r}") from None
    return text


def time_us(value: Any) -> int | float:
    """Return microseconds since the epoch. A time without a zone is UTC, as all times in a DB are, a date its beginning."""
    if not isinstance(value, str) and not is_date(value):
        return _number(value)
    from datetime import datetime, time

    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(f"{value[:-1]}+00:00" if value.endswith("Z") else value)
        except ValueError:
            raise InvalidSpec(f"A time must be a datetime, microseconds since the epoch or ISO 8601, not {value!r}") from None
    return clock.us_of(value if isinstance(value, datetime) else datetime.combine(value, time()))


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


def term_of(column: Column, sql: str, *parameters: Any) -> Term:
    """Return the condition `sql` with the column in place of `{}`."""
    return Term(sql.replace("{}", column.sql), [*column.parameters * sql.count("{}"), *parameters])


def joined(glue: str, terms: Sequence[Term], if_none: str = "1") -> Term:
    """Return several conditions as one."""
    sql = glue.join([f"({one.sql})" for one in terms]) or if_none
    return Term(sql, [value for one in terms for value in one.parameters])


def compare(column: Column, lookup: str, value: Any) -> Term:
    """Return the condition that compares a column with a value."""
    return _OPERATORS.get(lookup, _matches)(column, lookup, value)


def _is_null(column: Column, lookup: str, value: Any) -> Term:
    return term_of(column, f"{{}} IS {'' if value else 'NOT '}NULL")


def _is_between(column: Column, lookup: str, value: Any) -> Term:
    ends = as_list(value)
    if ends is None or len(ends) != 2:
        raise InvalidSpec(f"range needs the first and the last value, not {value!r}")
    return joined(" AND ", [_is_ordered(column, "gte", ends[0]), _is_ordered(column, "lte", ends[1])])


def _is_ordered(column: Column, lookup: str, value: Any) -> Term:
    wanted = stored(column.kind, value, is_ordered=True)
    sign = COMPARISONS[lookup]
    if column.kind == "word" and not isinstance(wanted, str):  # texts that are no numbers do not match
        return term_of(column, f"balsam_number({{}}) {sign} ?", wanted)
    if column.kind != "json":
        return term_of(column, f"{{}} {sign} ?", wanted)
    types = "'text'" if isinstance(wanted, str) else "'integer', 'real', 'true', 'false'"
    return Term(f"{column.type_sql} IN ({types}) AND {column.sql} {sign} ?", [*column.parameters * 2, wanted])


def _is_among(column: Column, lookup: str, value: Any) -> Term:
    """Compare with one value, or with any of a list of values if the column does not hold lists itself."""
    several = as_list(value) if lookup == "in" or column.kind not in ("json", *field_specs.JSON_KINDS) else None
    if several is None and lookup == "in":
        raise InvalidSpec(f"in needs a list of values, not {value!r}")
    wanted = [None if one is None else _value_of(column, one) for one in ([value] if several is None else several)]
    known = [one for one in wanted if one is not None and (isinstance(one, str) or isfinite(one))]
    is_not, has_none = lookup == "ne", None in wanted
    if several is None and isinstance(wanted[0], float) and isnan(wanted[0]):
        raise InvalidSpec("NaN is equal to nothing, not even to itself")
    if len(known) == len(wanted) == 1 and (is_not or column.kind != "uuid"):
        return term_of(column, "{} IS NOT ?" if is_not else "{} = ?", known[0])  # of which an index gives the rows in order
    if has_none and not known:
        return _is_null(column, "isnull", not is_not)
    # Any number of values is one parameter.
    listed = term_of(column, f"{{}} {'NOT ' * is_not}IN (SELECT value FROM json_each(?))", json.dumps(known))
    if column.kind == "uuid" and not is_not:
        listed = _has_short_id(column, known)
    return listed if is_not == has_none else joined(" OR ", [listed, _is_null(column, "isnull", True)])


def _value_of(column: Column, value: Any) -> Any:
    found = stored(column.kind, value)
    if column.choices and found not in column.choices:
        raise InvalidSpec(f"must be one of {', '.join(column.choices)}, not {found!r}")
    return found


def _has_short_id(column: Column, wanted: list[str]) -> Term:
    """Return the condition that a UUID is one of these, by the index on its short form.

    A bare `job_id = ?` would let SQLite put the value into substr() too, which the index then does not match.
    """
    if len(wanted) == 1:
        return Term(f"{_SHORT.format(column.sql)} = ? AND +{column.sql} = ?", [wanted[0][:SHORT_ID], wanted[0]])
    listed = "IN (SELECT value FROM json_each(?))"
    shorts = sorted({one[:SHORT_ID] for one in wanted})
    return Term(f"{_SHORT.format(column.sql)} {listed} AND {column.sql} {listed}", [json.dumps(shorts), json.dumps(wanted)])


#: The expression of the index on the short id.
_SHORT = f"substr({{}}, 1, {SHORT_ID})"


# --- text -------------------------------------------------------------------------------------------------------------

#: The longest pattern that SQLite takes, in bytes.
_MAX_GLOB = 50_000


def _matches(column: Column, lookup: str, value: Any) -> Term:
    """Compare text. Not with LIKE, which knows wildcards, ignores the case of ASCII only, and refuses long patterns."""
    if lookup == "contains" and (column.kind == "json" or isinstance(value, Mapping) or as_list(value) is not None):
        return _has_items(column, lookup, value)
    wanted = text_of(plain(value)).lower() if column.kind == "uuid" else text_of(plain(value))
    if lookup == "glob":
        return _is_globbed(column, wanted)
    if lookup.endswith("regex"):
        return Term(f"balsam_matches(?, {column.sql}) = 1", [_pattern(wanted, lookup == "iregex"), *column.parameters])
    if lookup.startswith("i"):
        fold, wanted = ("lower", wanted.lower()) if wanted.isascii() else ("balsam_fold", wanted.casefold())
        column, lookup = column._replace(sql=f"{fold}({column.sql})", is_stored=False), lookup[1:]
    sql = {
        "exact": "{} = ?",
        "contains": "instr({}, ?) > 0",
        "startswith": f"substr({{}}, 1, {len(wanted)}) = ?",
        "endswith": f"substr({{}}, -{len(wanted)}) = ?" if wanted else "instr({}, ?) > 0",
    }[lookup]
    return _in_range(column, wanted if lookup == "startswith" else "", term_of(column, sql, wanted))


def _is_globbed(column: Column, pattern: str) -> Term:
    if not has_wildcard(pattern):
        return _is_among(column._replace(kind="text" if column.kind == "state" else column.kind), "exact", pattern)
    escaped = pattern.replace("[", "[[]")
    if len(escaped.encode()) > _MAX_GLOB:
        raise InvalidSpec(f"A glob must not be longer than {_MAX_GLOB} bytes")
    return _in_range(column, re.split(r"[*?]", pattern, maxsplit=1)[0], term_of(column, "{} GLOB ?", escaped))


def _in_range(column: Column, start: str, term: Term) -> Term:
    """Add to a condition on text that it begins with `start`, as a range that can use an index."""
    if not column.is_stored or not start or column.kind in (*NUMBERS, *field_specs.JSON_KINDS):
        return term
    following = ord(start[-1]) + 1
    if column.kind == "uuid":
        short = start.lower()[:SHORT_ID]
        added = Term(f"{_SHORT.format(column.sql)} >= ? AND {_SHORT.format(column.sql)} < ?", [short, short + "~"])
    elif following > 0x10FFFF:
        added = term_of(column, "{} >= ?", start)
    else:
        end = start[:-1] + chr(0xE000 if 0xD800 <= following < 0xE000 else following)  # surrogates are no characters
        added = Term(f"{column.sql} >= ? AND {column.sql} < ?", [start, end])
    return joined(" AND ", [added, term])


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


# --- JSON -------------------------------------------------------------------------------------------------------------


def _has_items(column: Column, lookup: str, value: Any) -> Term:
    """Compare the keys or items of a JSON column or of a path below it; see `_holds`."""
    is_path = column.kind in ("json", "word")
    if not is_path and column.kind not in field_specs.JSON_KINDS:
        raise InvalidSpec(f"Text cannot be compared with {value!r}; {lookup} of keys and items is for JSON fields")
    several, is_object = as_list(value), isinstance(value, Mapping)
    needed = {"has_key": "a key", "has_keys": "a list of keys", "has_any_keys": "a list of keys"}.get(lookup)
    if needed and (is_object or (several is None) != (lookup == "has_key")):
        raise InvalidSpec(f"{lookup} needs {needed}, not {value!r}")
    if lookup == "contained_by" and several is None and not is_object:
        raise InvalidSpec(f"contained_by needs a mapping or a list, not {value!r}")
    if needed:
        several = [text_of(plain(key)) for key in ([value] if several is None else several)]
    wanted = _compact(value if several is None else several)
    sql = f"balsam_holds('{lookup}', {column.type_sql if is_path else _OBJECT}, {column.sql}, ?)"
    return Term(sql, [*column.parameters * (1 + is_path), wanted])


_OBJECT = "'object'"


def _holds(lookup: str, kind: str | None, value: Any, wanted: str) -> bool:
    """Return whether a JSON value meets a lookup of keys or items. Truth values are numbers, as in Python.

    `contains`: a text matches part of a text or an item of a list; another scalar matches an item or an equal value; a list or
    an object matches as part of another one.

    Args:
        kind: its type as SQLite names it; None if it is missing or null. wanted: as JSON.
    """
    if kind is None:
        return False
    found = _decoded(value)[0] if kind in ("array", "object") else value
    asked = _read_once(wanted)
    if lookup.startswith("has"):
        return kind == "object" and (any if lookup == "has_any_keys" else all)(key in found for key in asked)
    if lookup == "contained_by":
        found, asked = asked, found if kind in ("array", "object") else [found]
    if isinstance(asked, dict):
        return isinstance(found, dict) and all(key in found and found[key] == one for key, one in asked.items())
    if isinstance(asked, list):
        return isinstance(found, list) and all(one in found for one in asked)
    if kind == "array":
        return asked in found
    return asked in found if isinstance(asked, str) and kind == "text" else bool(asked == found)


_read_once = lru_cache(maxsize=32)(json.loads)
_decoded = json.JSONDecoder().raw_decode  # `json.loads` would look for blanks around it, too

#: How each lookup compares; all others compare text.
_OPERATORS: dict[str, Callable[[Column, str, Any], Term]] = {
    "isnull": _is_null,
    "range": _is_between,
    **dict.fromkeys(COMPARISONS, _is_ordered),
    **dict.fromkeys(("exact", "ne", "in"), _is_among),
    **dict.fromkeys(OF_JSON, _has_items),
}


# --- running ----------------------------------------------------------------------------------------------------------


def _number_of(text: Any) -> float | None:
    try:
        found = float(text)
    except (TypeError, ValueError):
        return None
    return found if isfinite(found) else None


#: Functions that SQLite lacks: name -> (number of arguments, function).
_FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "balsam_fold": (1, lambda text: None if text is None else str(text).casefold()),
    "balsam_holds": (4, _holds),
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
