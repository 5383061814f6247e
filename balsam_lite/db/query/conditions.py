"""Conditions on jobs and applications in the workshop's words (Balsam 0.7), as SQL.

A *condition* is a name and a value, such as `state__ne: "FAILED"`; the tables below say which there are. All that are given
must hold; one that is None is none; an empty list matches nothing.

Where jobs are given by number, tags or parents, SQLite starts from those: the other columns get a `+`, which keeps it from
using their indexes, since without statistics it takes a state for rarer than a tag. A test asks for the plans.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ...core import states
from ...core.errors import InvalidSpec, UnknownField
from ...core.suggest import did_you_mean
from ..engine.schema import VISIBLE
from . import queries

Row = dict[str, Any]
Where = Mapping[str, Any]


class Term(NamedTuple):
    """A condition in SQL, and its parameters."""

    sql: str
    parameters: Sequence[Any]


#: Beyond that nobody counts how many jobs have a tag.
_MANY = 5000

#: Of the integers of SQLite.
LARGEST = 2**63 - 1

#: Makes a term of a condition's value. Its second argument is put before columns whose index is not to be used.
Maker = Callable[[Any, str], Term]

# --- values -----------------------------------------------------------------------------------------------------------


def listed(value: Any) -> list[Any]:
    """One value or several, as a list."""
    return list(value) if isinstance(value, (list, tuple, set, frozenset, range)) else [value]


def numbers(value: Any) -> str:
    """One number or several, as the JSON list that is one parameter of SQL, however many they are."""
    found = listed(value)
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in found):
        raise InvalidSpec(f"must be a whole number or a list of such, not {value!r}")
    return json.dumps(found)


def texts(value: Any) -> str:
    """One text or several, likewise."""
    found = listed(value)
    if not all(isinstance(one, str) for one in found):
        raise InvalidSpec(f"must be text or a list of texts, not {value!r}")
    return json.dumps([valid_text(one) for one in found])


def valid_text(text: str) -> str:
    """A text that can be a parameter of SQL. Raises InvalidSpec: it has half of a character, as names of files may have."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidSpec(f"must be valid Unicode, not {text!r}") from None
    return text


def time_us(value: Any) -> int:
    """A point in time, in microseconds."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidSpec(f"must be a time in microseconds since the epoch, not {value!r}")
    return min(max(value, -LARGEST), LARGEST)


def pairs(value: Any) -> list[tuple[str, str]]:
    """Tags to be looked for: a mapping, "k:v", or a list of such."""
    if isinstance(value, Mapping):
        found = list(value.items())
    else:
        found = [_pair(one) for one in listed(value)]
    if not all(isinstance(key, str) and isinstance(word, str) for key, word in found):
        raise InvalidSpec(f"must map text to text, not {value!r}")
    return [(valid_text(key), valid_text(word)) for key, word in found]


def _pair(text: Any) -> tuple[str, str]:
    if isinstance(text, tuple) and len(text) == 2:
        return text
    key, colon, word = text.partition(":") if isinstance(text, str) else ("", "", "")
    if not colon:
        raise InvalidSpec(f"must be a mapping or look like KEY:VALUE, not {text!r}")
    return key, word


def one_of(column: str, check: Callable[[Any], str], negated: str = "") -> Maker:
    """The condition that a column is one of the values. Of a single one SQLite's index gives the rows in order."""

    def make(value: Any, plain: str) -> Term:
        found = check(value)
        of_one = f"{plain}{column} = json_extract(?, '$[0]')"
        is_single = not negated and len(listed(value)) == 1
        return Term(of_one if is_single else f"{plain}{column} {negated}IN (SELECT value FROM json_each(?))", [found])

    return make


def compared(expression: str, operator: str, check: Callable[[Any], Any]) -> Maker:
    """The condition that an expression compares so with the value."""
    return lambda value, plain: Term(f"{expression} {operator} ?", [check(value)])


def state_names(value: Any) -> str:
    """One state or several, as a JSON list. Raises InvalidStateError."""
    return json.dumps([str(states.check_state(one)) for one in listed(value)])


def _plain_text(value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidSpec(f"must be text, not {value!r}")
    return valid_text(value)


# --- conditions on jobs -----------------------------------------------------------------------------------------------

_BEFORE_DOT = "substr({0}, 1, instr({0} || '.', '.') - 1)".format("holder.scheduler_id")
#: The batch jobs in which launchers ran: lease -> batch job. PBS tells an id with its server, which submission leaves out.
_LAUNCHES = f"""lease AS holder CROSS JOIN batch_job AS launch
    ON launch.scheduler_id <> '' AND launch.scheduler_id IN (holder.scheduler_id, {_BEFORE_DOT})"""
_LEASE_OF_EVENT = "json_extract(event.data, '$.lease')"
_LAST_LEASE = f"""(SELECT {_LEASE_OF_EVENT} FROM event WHERE event.job = job.id AND event.to_state = '{states.RUNNING}'
    ORDER BY event.id DESC LIMIT 1)"""

#: The batch job in which a job last ran, else the one for which it is planned; some schedulers begin to count anew.
BATCH_JOB = f"""coalesce(CASE WHEN job.attempt > 0 THEN (SELECT launch.id FROM {_LAUNCHES} WHERE holder.id = {_LAST_LEASE}
    ORDER BY launch.id DESC LIMIT 1) END, job.queued_launch_id)"""
LAST_UPDATE = "coalesce((SELECT time FROM event WHERE event.job = job.id ORDER BY event.id DESC LIMIT 1), job.created)"

#: The jobs that may have run in one of some batch jobs, or wait for one: by the time in which their launchers lived.
_MAYBE_IN_BATCH_JOBS = f"""SELECT event.job FROM {_LAUNCHES}
        CROSS JOIN event ON event.time BETWEEN holder.opened AND coalesce(holder.closed, {2**62})
    WHERE launch.id IN (SELECT value FROM json_each(?))
        AND event.to_state = '{states.RUNNING}' AND {_LEASE_OF_EVENT} = holder.id
    UNION ALL SELECT id FROM job WHERE queued_launch_id IN (SELECT value FROM json_each(?))"""


def _in_batch_jobs(value: Any, plain: str) -> Term:
    wanted = numbers(value)
    sql = f"job.id IN ({_MAYBE_IN_BATCH_JOBS}) AND {BATCH_JOB} IN (SELECT value FROM json_each(?))"
    return Term(sql, [wanted, wanted, wanted])


def tagged(column: str) -> Maker:
    """The condition that the job with the number in that column has all these tags. SQLite starts from those with the first."""

    def term(value: Any, plain: str) -> Term:
        found = pairs(value)
        first, words = queries.has_all(found[:1], column)
        others, more = looked_up(column)(found[1:], plain)
        return Term(f"{first} AND {others}" if others else first, [*words, *more])

    return term


def looked_up(column: str) -> Maker:
    """As `tagged`, where SQLite is to start from something else."""

    def term(value: Any, plain: str) -> Term:
        found = pairs(value)
        terms = [f"EXISTS ({queries.JOBS_WITH} AND job_tag.job = {column})"] * len(found)
        return Term(" AND ".join(terms), [word for pair in found for word in pair])

    return term


def take_tags(asked: Row) -> list[tuple[str, str]]:
    """The tags among these conditions on jobs, which are removed from there. Raises InvalidSpec."""
    try:
        return pairs(asked.pop("tags", {}))
    except InvalidSpec as exc:
        raise InvalidSpec(f"job condition tags {exc.message}") from None


def along_tag(tags: Sequence[tuple[str, str]], condition: Term) -> Term:
    """The FROM and WHERE of the jobs that have all these tags and meet a condition.

    SQLite walks through those of the first tag in the order of their numbers, `given.job`, and leaves out the others.
    """
    first, *others = tags
    has_others = f" AND EXISTS ({queries.JOBS_WITH} AND job_tag.job = given.job)" * len(others)
    source = f"job_tag AS given CROSS JOIN job ON job.id = given.job WHERE given.tag = {queries.TAG}"
    words = [*first, *(word for pair in others for word in pair)]
    return Term(f"{source}{has_others} AND ({condition.sql})", [*words, *condition.parameters])


def rarest_first(cx: sqlite3.Connection, where: Where) -> Where:
    """The same conditions, of several tags the rarest first. Those that thousands of jobs have count alike."""
    try:
        found = pairs(where.get("tags") or {})
    except InvalidSpec:  # `selection` says so
        return where
    if len(found) < 2:
        return where
    query = f"SELECT count(*) FROM ({queries.JOBS_WITH} LIMIT {_MANY})"
    return {**where, "tags": sorted(found, key=lambda pair: int(cx.execute(query, pair).fetchone()[0]))}


def _of_uuid(value: Any, plain: str) -> Term:
    """By the UUID or the beginning of one."""
    prefixes = json.loads(texts(value))
    if not all(prefixes):
        raise InvalidSpec("must not be empty")
    found = [queries.id_condition(prefix) for prefix in prefixes]
    return Term(" OR ".join(f"({sql})" for sql, _ in found) or "0", [word for _, words in found for word in words])


def _which(value: Any, plain: str) -> Term:
    """Add the condition that a job fits one of these words: see `queries.fitting`."""
    return Term(*queries.fitting_any(json.loads(texts(value))))


def _of_app(value: Any, plain: str) -> Term:
    names = "SELECT name FROM app WHERE id IN (SELECT value FROM json_each(?))"
    return Term(f"job.application IN ({names})", [numbers(value)])


def _of_parent(value: Any, plain: str) -> Term:
    children = "SELECT child FROM dependency WHERE parent IN (SELECT value FROM json_each(?))"
    return Term(f"job.id IN ({children})", [numbers(value)])


JOB_CONDITIONS: dict[str, Maker] = {
    "id": one_of("job.id", numbers),
    "parent_id": _of_parent,
    "tags": tagged("job.id"),
    "uuid": _of_uuid,
    "which": _which,
    "batch_job_id": _in_batch_jobs,
    "app_id": _of_app,
    "app": one_of("job.application", texts),
    "state": one_of("job.state", state_names),
    "state__ne": one_of("job.state", state_names, "NOT "),
    "name": one_of("job.name", texts),
    "workflow": one_of("job.workflow", texts),
    "workdir": one_of("job.workdir", texts),
    "workdir__contains": lambda value, plain: Term("instr(job.workdir, ?) > 0", [_plain_text(value)]),
    "last_update_before": compared(LAST_UPDATE, "<=", time_us),
    "last_update_after": compared(LAST_UPDATE, ">=", time_us),
}

APP_CONDITIONS: dict[str, Maker] = {"id": one_of("app.id", numbers), "name": one_of("app.name", texts)}

#: From these SQLite is to start; from tags if no others of them are given.
_SELECTIVE = frozenset({"id", "parent_id", "tags", "uuid", "which", "batch_job_id"})
_CONDITIONS_OF_NAMED = {**JOB_CONDITIONS, "tags": looked_up("job.id")}


def given(where: Where) -> Row:
    """The conditions that say something."""
    return {name: value for name, value in where.items() if value is not None and not (name == "tags" and not value)}


def selection(what: str, conditions: Mapping[str, Maker], where: Where, is_ordered: bool = False) -> Term:
    """All conditions of `where` as one. If `is_ordered`, the rows are read in some order, which no index is to disturb.

    Raises:
        UnknownField: there is no such condition; the nearest one is named. InvalidSpec, InvalidStateError: with the value.
    """
    terms: list[str] = []
    parameters: list[Any] = []
    asked = given(where)
    is_driven = is_ordered or not _SELECTIVE.isdisjoint(asked)
    for name, value in asked.items():
        if name not in conditions:
            raise unknown(f"{what}s cannot be selected by {name!r}.", name, conditions)
        try:
            sql, values = conditions[name](value, "+" if is_driven and name not in _SELECTIVE else "")
        except InvalidSpec as exc:
            raise InvalidSpec(f"{what} condition {name} {exc.message}") from None
        terms.append(f"({sql})")
        parameters += values
    return Term(" AND ".join(terms) or "1", parameters)


def are_named(where: Where) -> bool:
    """Whether SQLite is to start from something else than tags."""
    return not _SELECTIVE.isdisjoint(given(where).keys() - {"tags"})


def of_jobs(where: Where, is_ordered: bool = False) -> Term:
    """All conditions on jobs as one, with that of jobs that are no longer being added. Raises as `selection`."""
    sql, parameters = selection("job", _CONDITIONS_OF_NAMED if are_named(where) else JOB_CONDITIONS, where, is_ordered)
    return Term(f"{sql} AND {VISIBLE}", parameters)


def unknown(said: str, name: str, known: Iterable[str]) -> UnknownField:
    """An error that names the nearest of those that are known."""
    return UnknownField(f"{said}{did_you_mean(name, known)}", hint=f"Possible are: {', '.join(known)}")
