"""The grammar of conditions: `state__in`, `num_nodes__lte`, `tags__KEY`, `data__a__b__gt`, combined by `Q`, compiled to SQL.

Conditions are a mapping of names to values, of which all must hold. A name is a field (see `fields`), for JSON fields with a
path below it, and at its end a lookup (`operators.LOOKUPS`; none is `exact`). All of it survives JSON, so the same conditions
work in Python, in options of commands, and at a site on another host:

    {"state__in": ["FAILED", "RUN_ERROR"], "workflow__glob": "scan-*", "tags__k": "v", "data__energy__lt": -3}
    {"$or": [{"state": "FAILED"}, {"$not": {"name__contains": "test"}}]}      # what `Q(state="FAILED") | ~Q(…)` holds
    {"ranks_per_node__gt": {"$field": "num_nodes"}}                           # what `F("num_nodes")` holds

- A list for `exact` means "one of"; an empty one matches nothing. None means that there is no value.
- Text is exact. `__glob` knows `*` and `?` (`[` is an ordinary character), `__contains` any part; an `i` before ignores case.
- `tags={"k": "v"}` holds for jobs that have all these tags, and maybe others; `tags__exact` compares the whole.
- A condition on a missing value does not hold (except `ne` and `isnull=True`), and its "$not" holds, so each row matches either
  a filter or its negation.
- A word or a value without a meaning is an error, with the nearest word.

`Conditions` checks and compiles, and decides from which index SQLite starts: where rows are given by number, tags or parents,
the other columns get a `+`, which keeps SQLite from their indexes (without statistics it takes a state for rarer than a tag).

    with database.read() as cx:
        condition = Conditions({"state": "FAILED", "tags__k": "v"}).sql()
        execute(cx, f"SELECT id FROM job WHERE {condition.sql} ORDER BY id", condition.parameters)

`select` has the usual reads: numbers, counts, pages and rows.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from types import MappingProxyType
from typing import Any, NamedTuple

from ...core import field_specs, states
from ...core.errors import InvalidSpec, UnknownField, nearest
from ..engine.schema import visible
from . import queries
from .fields import (
    BATCH_JOB_OF_JOB,
    COMPARISONS,
    EVENT,
    JOB,
    LAUNCHES,
    LOOKUPS,
    TABLES,
    Column,
    Table,
    json_path,
    shown_event_data,
)
from .operators import (
    NUMBERS,
    Term,
    as_list,
    compare,
    is_date,
    joined,
    plain,
    stored,
    term_of,
    text_of,
    time_us,
)

Where = Mapping[str, Any]
#: No condition.
EVERY: Where = MappingProxyType({})

#: Names of lookups in other tools, and names of lookups to suggest for a misspelt one.
_FOREIGN = {
    "eq": "exact", "neq": "ne", "le": "lte", "ge": "gte", "leq": "lte", "geq": "gte", "lteq": "lte", "gteq": "gte",
    "nin": "in", "notin": "in", "like": "contains", "ilike": "icontains", "is_null": "isnull",
}  # fmt: skip

_AND, _OR, _NOT, _FIELD = "$and", "$or", "$not", "$field"
_COMBINATIONS = (_AND, _OR, _NOT)

#: Count the jobs with a tag only up to this number.
_MAX_COUNTED_JOBS = 5000

# --- combining --------------------------------------------------------------------------------------------------------


class Q:
    """Conditions that can be combined: `Q(state="FAILED") | Q(num_nodes__gt=4) & ~Q(name__contains="test")`."""

    def __init__(self, *others: Q, **conditions: Any) -> None:
        self.where: dict[str, Any] = all_of(*(one.where for one in others), conditions)

    def __and__(self, other: Q) -> Q:
        return self._of({_AND: [self.where, other.where]}) if isinstance(other, Q) else NotImplemented

    def __or__(self, other: Q) -> Q:
        return self._of({_OR: [self.where, other.where]}) if isinstance(other, Q) else NotImplemented

    def __invert__(self) -> Q:
        return self._of({_NOT: self.where})

    @staticmethod
    def _of(where: dict[str, Any]) -> Q:
        made = Q()
        made.where = where
        return made

    def __repr__(self) -> str:
        return f"Q({self.where!r})"


class F:
    """Another field of the same row, as a value: `filter(ranks_per_node__gt=F("num_nodes"))`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"F({self.name!r})"


def all_of(*several: Where) -> dict[str, Any]:
    """Return the conditions that hold where all of these do."""
    given = [where for where in several if where]
    if not given:
        return {}
    return dict(given[0]) if len(given) == 1 else {_AND: [dict(where) for where in given]}


def negated(*several: Where) -> dict[str, Any]:
    """Return the conditions that hold where not all of these do."""
    return {_NOT: all_of(*several)}


# --- conditions from words of the command line ------------------------------------------------------------------------


def condition_on_text(field: str, text: str, anywhere: bool = False) -> dict[str, Any]:
    """Return the condition that an option means: `text` exactly, or as a glob with `*` and `?`.

    Args:
        anywhere: match any part of the field instead, whatever the case.
    """
    if anywhere:
        return {f"{field}__icontains": text}
    return {f"{field}__glob" if queries.has_wildcard(text) else field: text}


def condition_from_text(text: str, table: Table = JOB) -> dict[str, Any]:
    """Return the condition from `NAME=VALUE`, such as "num_nodes__lte=4", "state__in=FAILED,READY" or "data__x=[1, 2]".

    Below `data` the value is JSON, or else text. Lists are JSON, or values separated by commas.

    Raises:
        UnknownField, InvalidSpec, InvalidStateError.
    """
    name, equals, word = text.partition("=")
    if not equals or not name:
        raise InvalidSpec(f"A condition must look like NAME=VALUE, not {text!r}", hint="Such as: num_nodes__lte=4")
    found = _parse(table, name)
    is_json = found.column is not None and found.column.kind in ("json", "object")
    value = _json_or_text(word) if is_json or word.startswith("[") or found.lookup == "isnull" else word
    if found.lookup in ("in", "range", "has_keys", "has_any_keys") and isinstance(value, str):
        value = word.split(",") if word else []
        if is_json and found.lookup in ("in", "range"):
            value = [_json_or_text(one) for one in value]
    if found.lookup == "isnull" and not isinstance(value, bool):
        raise InvalidSpec(f"{name} takes true or false, not {word!r}")
    Conditions({name: value}, table)
    return {name: value}


def _json_or_text(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


# --- names ------------------------------------------------------------------------------------------------------------


class _Name(NamedTuple):
    """A condition's name, taken apart."""

    head: str
    lookup: str
    column: Column | None  # None: a special condition, or one on a linked table
    keys: tuple[str, ...] = ()  # the path below a JSON column
    linked: str = ""  # the name that goes on in the linked table


def _parse(table: Table, name: str) -> _Name:
    head, *rest = table.words(name)
    is_row = not rest or rest[0] in LOOKUPS
    if head in table.links and (not is_row or table is EVENT):
        return _Name(head, "", None, linked="__".join(["id", *rest] if is_row else rest))
    head = "id" if head == "pk" and table is not JOB else head
    column = table.columns.get(head)
    if column is None and head not in (*table.specials, "pk"):
        raise table.unknown(name)
    lookup = rest.pop() if rest and rest[-1] in LOOKUPS else ""
    if not rest:
        return _Name(head, lookup or "exact", column)
    is_json = column is not None and column.kind in field_specs.JSON_KINDS
    if column is None or not is_json or (len(rest) > 1 and column.kind != "object"):
        raise _no_lookup(name, "__".join(filter(None, (*rest[is_json:], lookup))))
    if not lookup and (meant := _misspelt(rest[-1])):
        way_out = f"If it is a key, write {name}__exact."
        raise UnknownField(f"{name}: there is no lookup {rest[-1]!r}. Did you mean {meant!r}?", hint=way_out)
    found = shown_event_data(rest[0]) if column.sql == EVENT.columns["data"].sql else json_path(column, rest)
    return _Name(head, lookup or "exact", found, tuple(rest))


def _no_lookup(name: str, word: str) -> UnknownField:
    near = _FOREIGN.get(word) or nearest(word.rpartition("__")[2], LOOKUPS)
    meant = f" Did you mean {near!r}?" if near else ""
    return UnknownField(f"{name}: there is no lookup {word!r}.{meant}", hint=f"The lookups are: {', '.join(LOOKUPS)}")


def _misspelt(word: str) -> str | None:
    """Return the lookup that a key of `data` probably misspells. Short lookups are ignored: they resemble too many keys."""
    if word in _FOREIGN:
        return _FOREIGN[word]
    allowed = [(name, 1 if len(name) < 6 else 2) for name in LOOKUPS if len(name) >= 5]
    return next((name for name, edits in allowed if _distance(word, name) <= edits), None)


def _distance(one: str, other: str) -> int:
    """Return the number of letters to insert, delete or replace that make one word the other."""
    row = list(range(len(other) + 1))
    for place, letter in enumerate(one, 1):
        before, row[0] = row[0], place
        for column, wanted in enumerate(other, 1):
            before, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, before + (letter != wanted))
    return row[-1]


def tag_pairs(value: Any) -> list[tuple[str, str]]:
    """Return the tags in a mapping, "KEY:VALUE" or a list of such texts. Other values are converted to text.

    Raises:
        InvalidSpec.
    """
    pairs = value.items() if isinstance(value, Mapping) else [_pair(one) for one in _several(value)]
    found = [(text_of(key), text_of(plain(word))) for key, word in pairs]
    if len(dict(found)) < len(set(found)):
        raise InvalidSpec(f"gives a key two values, and a tag has one: {value!r}")
    return found


def _pair(text: Any) -> tuple[str, str]:
    if isinstance(text, (tuple, list)) and len(text) == 2:
        return (text[0], text[1])
    key, colon, word = text.partition(":") if isinstance(text, str) else ("", "", "")
    if not colon:
        raise InvalidSpec(f"must be a mapping or look like KEY:VALUE, not {text!r}")
    return key, word


def jsonable(value: Any) -> Any:
    """Return a value of a condition in its JSON form, for a site on another host."""
    value = plain(value)
    if isinstance(value, F):
        return {_FIELD: value.name}
    if isinstance(value, Mapping):
        return {str(key): jsonable(one) for key, one in value.items()}
    several = as_list(value)
    if several is not None:
        return [jsonable(one) for one in several]
    if is_date(value):
        return time_us(value)
    return value if value is None or isinstance(value, (bool, int, float)) else text_of(value)


# --- another field as a value -----------------------------------------------------------------------------------------


def _is_field(value: Any) -> bool:
    return isinstance(value, F) or (isinstance(value, Mapping) and value.keys() == {_FIELD})


def _compare_fields(table: Table, name: str, found: _Name, value: Any) -> Term:
    sign = {"exact": "=", "ne": "IS NOT", **COMPARISONS}.get(found.lookup)
    other = value.name if isinstance(value, F) else str(value[_FIELD])
    if sign is None or found.column is None:
        raise InvalidSpec(f"{name} cannot be compared with another field, only with values")
    column = _parse(table, other).column
    if column is None or "__" in other or column.kind in field_specs.JSON_KINDS:
        raise InvalidSpec(f"F({other!r}) must be a plain field")
    if found.column.kind not in ("json", "word") and (found.column.kind in NUMBERS) != (column.kind in NUMBERS):
        raise InvalidSpec(f"{name} cannot be compared with {other}: one is a number, the other one is text")
    return Term(f"{found.column.sql} {sign} {column.sql}", [*found.column.parameters, *column.parameters])


# --- conditions that are no comparison of one column ------------------------------------------------------------------

#: The jobs that may have run in some batch jobs, or wait for one: by the time in which their launchers lived.
_MAYBE_IN_BATCH_JOBS = f"""SELECT event.job FROM {LAUNCHES}
        CROSS JOIN event ON event.time BETWEEN holder.opened AND coalesce(holder.closed, {2**62})
        CROSS JOIN run ON run.job = event.job AND run.lease = holder.id
    WHERE launch.id IN {{0}} AND event.to_state = '{states.RUNNING}'
    UNION ALL SELECT id FROM job WHERE queued_launch_id IN {{0}}"""
_LISTED = "(SELECT value FROM json_each(?))"
_OF_SCHEDULER_IDS = f"(SELECT id FROM batch_job WHERE scheduler_id IN {_LISTED})"
_JOBS_WITH_KEY = "SELECT job FROM tag CROSS JOIN job_tag ON job_tag.tag = tag.id WHERE tag.key = ?"


def _numbers(value: Any) -> str:
    found = [stored("id", one) for one in _several(value)]
    return json.dumps([one for one in found if isfinite(one)])


def _texts(value: Any) -> list[str]:
    return [text_of(plain(one)) for one in _several(value)]


def _in_batch_jobs(numbers: str, listed: str = _LISTED) -> Term:
    sql = f"job.id IN ({_MAYBE_IN_BATCH_JOBS.format(listed)}) AND {BATCH_JOB_OF_JOB} IN {listed}"
    return Term(sql, [numbers] * 3)


def _of_uuid(value: Any) -> Term:
    """Return the condition that the UUID is this value or begins with it."""
    prefixes = _texts(value)
    if not all(prefixes):
        raise InvalidSpec("must not be empty")
    found = [Term(*queries.id_condition(prefix)) for prefix in prefixes]
    return joined(" OR ", found) if found else Term("0")


def _related(theirs: str, given: str) -> Callable[[Any], Term]:
    """Return the function that makes the condition that a job is a parent (or a child) of one of some jobs, by number."""
    sql = f"job.id IN (SELECT {theirs} FROM dependency WHERE {given} IN {_LISTED})"
    return lambda value: Term(sql, [_numbers(value)])


def _of_event_data(value: Any) -> Term:
    """Return the condition that the shown event data contains all these pairs, compared as text."""
    items = value.items() if isinstance(value, Mapping) else tag_pairs(value)
    terms = [_event_datum(text_of(key), plain(word)) for key, word in items]
    return joined(" AND ", terms) if terms else Term("1")


def _event_datum(key: str, value: Any) -> Term:
    column = shown_event_data(key)
    if key == "num_nodes":  # a real number, whose text differs from that of an integer
        return term_of(column, "CAST({} AS REAL) = CAST(? AS REAL)", text_of(value))
    return term_of(column, "CAST({} AS TEXT) = ?", text_of(int(value) if isinstance(value, bool) else value))


#: (table, first word) -> the condition for `exact` (of one or several values) and `in`.
_SPECIALS: dict[tuple[str, str], Callable[[Any], Term]] = {
    ("job", "uuid"): _of_uuid,
    ("job", "which"): lambda value: Term(*queries.fitting_any(_texts(value))),
    ("job", "parent_id"): _related("child", "parent"),
    ("job", "child_id"): _related("parent", "child"),
    ("job", "batch_job_id"): lambda value: _in_batch_jobs(_numbers(value)),
    ("job", "app_id"): lambda value: Term(
        f"job.application IN (SELECT name FROM app WHERE id IN {_LISTED})", [_numbers(value)]
    ),
    ("job", "failure"): lambda value: Term(
        f"job.failure IN (SELECT id FROM failure WHERE cause IN {_LISTED})", [json.dumps(_texts(value))]
    ),
    ("job", "scheduler_id"): lambda value: _in_batch_jobs(json.dumps(_texts(value)), _OF_SCHEDULER_IDS),
    ("event", "data"): _of_event_data,
}
#: Columns of tags.
_TAGS = ("tags", "filter_tags")
#: SQLite starts from rows with these conditions, or from tags if none of them is given.
_DRIVERS = ("id", "pk", "job_id", "uuid", "which", "parent_id", "child_id", "batch_job_id", "scheduler_id", "queued_launch_id")


# --- compiling --------------------------------------------------------------------------------------------------------


class _Leaf(NamedTuple):
    """One condition in SQL."""

    head: str
    term: Term
    driven: Term  # the same where SQLite is to start from something else
    is_driver: bool = False


class Conditions:
    """Conditions on the rows of a table: checked when it is made, compiled as a statement needs them.

    Raises:
        UnknownField: a field or a lookup does not exist; the nearest one is named. InvalidSpec, InvalidStateError: a value has
        no meaning there.
    """

    def __init__(self, where: Where | Q = EVERY, table: Table = JOB) -> None:
        self.table = table
        self.tags: list[tuple[str, str]] = []  # the jobs that are meant have all of these
        self.states: set[str] | None = None  # the jobs that are meant are in one of these; None: in any state
        self._leaves: list[_Leaf] = []
        if table is EVENT:
            self.jobs = Conditions()  # on the events' jobs
        for name, value in _flat(where):
            self._add(name, value)

    def __and__(self, other: Conditions) -> Conditions:
        found = Conditions(EVERY, self.table)
        found.tags = [*dict.fromkeys((*self.tags, *other.tags))]
        found._leaves = [*self._leaves, *other._leaves]
        both = [one.states for one in (self, other) if one.states is not None]
        found.states = set.intersection(*both) if both else None
        return found

    @property
    def is_empty(self) -> bool:
        """Return whether every row matches."""
        return not self._leaves and not self.tags and (self.table is not EVENT or self.jobs.is_empty)

    @property
    def is_of_states(self) -> bool:
        """Return whether the counters of states suffice to count the rows."""
        return not self.tags and all(leaf.head == "state" for leaf in self._leaves)

    @property
    def is_named(self) -> bool:
        """Return whether SQLite starts from another condition than tags."""
        return any(leaf.is_driver for leaf in self._leaves)

    def rarest_first(self, cx: sqlite3.Connection) -> Conditions:
        """Put the rarest tag before the others. Tags of thousands of jobs count as equally frequent."""
        if self.table is EVENT:
            self.jobs.rarest_first(cx)
        if len(self.tags) > 1:
            query = f"SELECT count(*) FROM ({queries.JOBS_WITH} LIMIT {_MAX_COUNTED_JOBS})"
            self.tags.sort(key=lambda pair: int(cx.execute(query, pair).fetchone()[0]))
        return self

    # --- SQL ----------------------------------------------------------------------------------------------------------

    def sql(self, is_ordered: bool = False) -> Term:
        """Return all conditions as one, excluding rows of jobs that are still being added.

        Args:
            is_ordered: the rows are read in some order, from which no index must divert SQLite. Tags are looked up row by row.
        """
        is_driven = is_ordered or self.is_named or bool(self.tags)
        return self._visible(self._together(is_driven, 0 if self.is_named or is_ordered else 1))

    def on_counts(self) -> Term | None:
        """Return all conditions as one on rows of `workflow_count AS job`; None if they need more than those have."""
        term = self._together(False, 0)
        return term if set(re.findall(r"\bjob\.(\w+)", term.sql)) <= {"workflow", "state"} and not self.tags else None

    def along_tag(self) -> Term:
        """Return FROM and WHERE for the jobs that meet the conditions, which include at least one tag.

        SQLite scans the jobs with the first tag in the order of their numbers, `given.job`, and filters them.
        """
        source = f"job_tag AS given CROSS JOIN job ON job.id = given.job WHERE given.tag = {queries.TAG}"
        rest = self._visible(self._together(True, 0, self.tags[1:], "given.job"))
        return Term(f"{source} AND {rest.sql}", [*self.tags[0], *rest.parameters])

    def _visible(self, term: Term) -> Term:
        number = {"job": "job.id", "event": "event.job"}.get(self.table.name)
        return Term(f"{term.sql} AND {visible(number)}", term.parameters) if number else term

    def _together(
        self, is_driven: bool, collected: int, tags: Sequence[tuple[str, str]] | None = None, number: str = "job.id"
    ) -> Term:
        """Return all conditions as one. The jobs of the first `collected` tags are collected, the others are looked up."""
        has = [f"{number} IN ({queries.JOBS_WITH})", f"EXISTS ({queries.JOBS_WITH} AND job_tag.job = {number})"]
        pairs = self.tags if tags is None else tags
        terms = [Term(has[place >= collected], pair) for place, pair in enumerate(pairs)]
        if self.table is EVENT and not self.jobs.is_empty:
            terms.append(self._of_jobs(is_driven))
        return joined(" AND ", [*terms, *(leaf.driven if is_driven else leaf.term for leaf in self._leaves)])

    def _of_jobs(self, is_looked_up: bool) -> Term:
        """Return the condition on the events' jobs, which are collected, or looked up event by event."""
        if is_looked_up and not self.jobs.is_named:
            sql, parameters = self.jobs.sql(is_ordered=True)
            return Term(f"EXISTS (SELECT 1 FROM job WHERE job.id = event.job AND {sql})", parameters)
        sql, parameters = self.jobs.sql()
        return Term(f"event.job IN (SELECT job.id FROM job WHERE {sql})", parameters)

    # --- reading them -------------------------------------------------------------------------------------------------

    def _add(self, name: str, value: Any) -> None:
        if name in _COMBINATIONS:
            self._add_combined(name, value)
            return
        found = _parse(self.table, name)
        with _naming(name):
            self._add_one(name, found, value)

    def _add_combined(self, name: str, value: Any) -> None:
        members = [Conditions(one, self.table) for one in ([value] if name == _NOT else _members(name, value))]

        def combined(is_driven: bool) -> Term:
            term = joined(" OR ", [one._together(is_driven, len(one.tags)) for one in members], "0")
            return Term(f"ifnull(({term.sql}), 0) = 0", term.parameters) if name == _NOT else term

        self._leaves.append(_Leaf("", combined(False), combined(True)))

    def _add_one(self, name: str, found: _Name, value: Any) -> None:
        head, lookup, column = found.head, found.lookup, found.column
        value = list(value) if hasattr(value, "__next__") else value
        if found.linked:
            self._add_linked(head, found.linked, value)
        elif _is_field(value):
            self._keep(head, _compare_fields(self.table, name, found, value))
        elif column is not None and head in _TAGS and self._add_tags(name, found, column, value):
            pass
        elif (special := _special(self.table, found, value)) is not None:
            self._keep(head, special, is_driver=head in _DRIVERS)
        elif column is None:
            raise InvalidSpec(f"{head} takes a value or a list of values and no lookup, not {lookup} {value!r}")
        else:
            is_choice = lookup in ("exact", "in") and value is not None
            if head == "state" and is_choice and self.table is JOB:
                wanted = {stored("state", one) for one in _several(value)}
                self.states = wanted if self.states is None else self.states & wanted
            elif head == "state":
                head = "other state"
            self._keep(head, compare(column, lookup, value), column, is_choice and head in _DRIVERS)

    def _add_linked(self, head: str, name: str, value: Any) -> None:
        """Add a condition on the row of another table to which `head` leads."""
        there, number = self.table.links[head]
        if there == "job":
            self.jobs._add(name, value)
            return
        sql, parameters = Conditions({name: value}, TABLES[there]).sql()
        self._keep(head, Term(f"{number} IN (SELECT {there}.id FROM {there} WHERE {sql})", parameters))

    def _keep(self, head: str, term: Term, column: Column | None = None, is_driver: bool = False) -> None:
        driven = term
        if column is not None and column.is_stored and not is_driver:
            driven = Term(term.sql.replace(column.sql, f"+{column.sql}"), term.parameters)
        self._leaves.append(_Leaf(head, term, driven, is_driver))

    def _add_tags(self, name: str, found: _Name, column: Column, value: Any) -> bool:
        """Add a condition that some tags are present, or one that the index of tags narrows; return whether it is one."""
        lookup, keys, is_job = found.lookup, found.keys, self.table is JOB
        pairs: list[tuple[str, str]] | None = None
        is_exact = lookup == "exact" and not name.endswith("__exact")  # tags={…} holds for jobs that have others, too
        if not keys and value is not None and (is_exact or (lookup == "contains" and isinstance(value, Mapping))):
            pairs = tag_pairs(value)
        elif is_job and keys and lookup == "exact" and isinstance(plain(value), (str, int, float)):
            pairs = [(keys[0], text_of(plain(value)))]
        if pairs is not None and is_job:
            self.tags += [pair for pair in dict.fromkeys(pairs) if pair not in self.tags]
        elif pairs is not None:
            self._keep(found.head, compare(column, "contains", dict(pairs)))
        elif is_job and not keys and lookup == "has_key":
            self._keep("tags", _has_tag_key(value))
        elif is_job and keys and lookup not in ("ne", "in") and value is not None and not (lookup == "isnull" and value):
            self._keep("tags", joined(" AND ", [_has_tag_key(keys[0]), compare(column, lookup, value)]))
        else:
            return False
        return True


def _has_tag_key(key: Any) -> Term:
    return Term(f"job.id IN ({_JOBS_WITH_KEY})", [text_of(plain(key))])


def _several(value: Any) -> list[Any]:
    several = as_list(value)
    return [value] if several is None else several


def _special(table: Table, found: _Name, value: Any) -> Term | None:
    """Return a condition that is not a comparison of a column; None if it is one."""
    head, lookup = found.head, found.lookup
    if head == "pk":
        by_number = all(isinstance(plain(one), int) for one in _several(value))
        return compare(table.columns["id" if by_number else "job_id"], lookup, value)
    if head == "lock" and lookup == "exact" and value in ("", None):
        return Term("job.lease IS NULL")
    if head in ("parent_id", "child_id") and (lookup == "isnull" or value is None):
        negation = "NOT " if value or lookup == "exact" else ""
        job = "child" if head == "parent_id" else "parent"
        return Term(f"{negation}EXISTS (SELECT 1 FROM dependency WHERE {job} = job.id)")
    special = None if found.keys else _SPECIALS.get((table.name, head))
    if special is None or value is None or lookup not in ("exact", "in"):
        return None
    if lookup == "in" and as_list(value) is None:
        raise InvalidSpec(f"in needs a list of values, not {value!r}")
    return special(value)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Add the name of the condition to errors about its value."""
    try:
        yield
    except InvalidSpec as exc:
        exc.message = f"Condition {name}: {exc.message}"
        raise


def _flat(where: Where | Q) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of conditions that must all hold."""
    if isinstance(where, Q):
        where = where.where
    if not isinstance(where, Mapping):
        raise InvalidSpec(f"Conditions must be a mapping of names to values, not {where!r}")
    for name, value in where.items():
        if name == _AND:
            for member in _members(name, value):
                yield from _flat(member)
        else:
            yield name, value


def _members(name: str, value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise InvalidSpec(f"{name} needs a list of conditions, not {value!r}")
    return list(value)


def kind_of(name: str, table: Table = JOB) -> str:
    """Return the kind of column that a condition of that name compares; "" if it compares none. Raises UnknownField."""
    column = _parse(table, name).column
    return column.kind if column else ""


def as_json(where: Where, table: Table = JOB) -> dict[str, Any]:
    """Return conditions in their JSON form, for a site on another host.

    Raises:
        UnknownField, InvalidSpec, InvalidStateError: as `Conditions`, which this checks them by.
    """
    found = {}
    for name, value in (where.where if isinstance(where, Q) else where).items():
        with _naming(name):
            found[name] = jsonable(value)
    Conditions(found, table)
    return found
