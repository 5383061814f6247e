"""Compare two sets of jobs, of a DB or an archive: parameters, states, run times and results.

Jobs are matched by `unique_key`; those left by name and equal parameters; those left by a name that is unique in both sets.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from statistics import median
from typing import Any, NamedTuple

from ..core import field_specs
from ..core.clock import SECOND_US
from ..db.engine import directories
from ..db.engine.connection import Database
from ..db.query import results, runs, select
from .archive import Archive, us_of_iso

#: Fields that are no parameters of a run.
_NO_PARAMETERS = frozenset(
    ("name", "workflow", "description", "data", "tags", "unique_key", "priority", "user_workdir", "queued_launch_id")
)
PARAMETERS = tuple(field.name for field in field_specs.JOB_FIELDS if field.settable and field.name not in _NO_PARAMETERS)
_DEFAULTS = {
    field.name: json.loads(field.default) if field.kind in field_specs.JSON_KINDS else
    bool(field.default) if field.kind == "flag" else field.default
    for field in field_specs.JOB_FIELDS
}  # fmt: skip
#: Fields that are JSON objects.
_OBJECTS = frozenset(field.name for field in field_specs.JOB_FIELDS if field.kind in field_specs.JSON_KINDS)
_PAGE = 2000
#: Pairs of run times from which on a difference can be significant, and the probability of chance below which it is.
MIN_PAIRS, MAX_P = 6, 0.05
#: Matched by.
KEY, SAME, NAME = "unique_key", "name and parameters", "name"


class ComparedJob(NamedTuple):
    """What of a job is compared."""

    number: int
    name: str
    unique_key: str | None
    parameters: dict[str, Any]  # those that differ from their defaults; without values of secret variables
    state: str
    runtime_s: float | None  # of the last attempt
    results: dict[str, Any]  # `data`, `result` (what a call returned) and `return_code`


class Difference(NamedTuple):
    """A value that differs in a pair of jobs; None: there is none."""

    kind: str  # parameters, states or results
    field: str  # `environ_vars.X` and `data.x.y` are below an object
    a: Any
    b: Any


class Pair(NamedTuple):
    """Two jobs that were matched."""

    a: ComparedJob
    b: ComparedJob
    matched_by: str
    differences: list[Difference]


class RunTimes(NamedTuple):
    """The run times of the pairs of which both are known."""

    pairs: int
    median_a_s: float
    median_b_s: float
    ratio: float  # median of b / a
    p: float  # probability that chance alone makes such a difference, by Wilcoxon's signed-rank test; 1 below `MIN_PAIRS`

    @property
    def is_significant(self) -> bool:
        return self.p < MAX_P


class JobComparison(NamedTuple):
    """What differs between two sets of jobs."""

    jobs_a: int
    jobs_b: int
    matched: dict[str, int]  # matched by -> pairs
    only_a: list[ComparedJob]
    only_b: list[ComparedJob]
    pairs: list[Pair]  # those that differ
    states: dict[tuple[str, str], int]  # state of a, of b -> pairs, equal ones included
    run_times: RunTimes | None

    @property
    def is_same(self) -> bool:
        """Whether all jobs are matched and equal. Run times, which always differ, do not count."""
        return not (self.only_a or self.only_b or self.pairs)

    def counts(self, kind: str) -> dict[str, int]:
        """Return field -> pairs in which it differs, most first."""
        found = Counter(one.field for pair in self.pairs for one in pair.differences if one.kind == kind)
        return dict(found.most_common())


# --- reading ----------------------------------------------------------------------------------------------------------


def jobs_of_db(db: Database, where: select.Given) -> Iterator[ComparedJob]:
    """Yield the matching jobs, in order. Opens a read transaction for each page."""
    fields = ["id", "name", "unique_key", "state", "runtime_s", "data", "return_code"]
    fields += [field_specs.WORKSHOP_NAMES.get(name, name) for name in PARAMETERS]
    after = 0
    data_directory = os.path.join(db.directory, directories.DATA)
    while True:
        with db.read() as cx:
            rows = select.jobs_page(cx, where, fields, after, _PAGE)
            numbers = [row["id"] for row in rows]
            found = results.page(cx, {"id": numbers}, (results.RESULT,), 0, _PAGE, "", data_directory) if rows else []
            values: dict[int, str | None] = {one[0]: one[1] for one in found}
        for row in rows:
            given = {name: row[field_specs.WORKSHOP_NAMES.get(name, name)] for name in PARAMETERS}
            value = values.get(row["id"])
            yield _compared(row, given, row["runtime_s"], None if value is None else json.loads(value))
        if len(rows) < _PAGE:
            return
        after = rows[-1]["id"]


def jobs_of_archive(archive: Archive) -> Iterator[ComparedJob]:
    """Yield the jobs of an archive, in order."""
    ran = groupby(archive.lines("runs"), key=itemgetter("job"))
    job, its = next(ran, (None, iter(())))
    for row in archive.lines("jobs"):
        last: dict[str, Any] = {}
        if job == row["number"]:
            last = max(its, key=itemgetter("attempt"))
            job, its = next(ran, (None, iter(())))
        seconds = None
        if "started" in last and "ended" in last and last.get("cause", "") not in runs.UNSEEN_CAUSES:
            seconds = (us_of_iso(last["ended"]) - us_of_iso(last["started"])) / SECOND_US
        objects = {name: field_specs.read_object(json.dumps(row[name])) for name in _OBJECTS if name in row}  # with NaN
        full = {**_DEFAULTS, **row, **objects, "id": row["number"]}
        yield _compared(full, {name: full[name] for name in PARAMETERS}, seconds, row.get("result"))


def _compared(row: Mapping[str, Any], given: Mapping[str, Any], runtime_s: float | None, value: Any) -> ComparedJob:
    parameters = {name: one for name, one in given.items() if one != _DEFAULTS[name]}
    variables = parameters.get("environ_vars")
    if variables:
        parameters["environ_vars"] = {name: one for name, one in variables.items() if not field_specs.is_secret(name)}
    found = {"data": row["data"], "result": value, "return_code": row["return_code"]}
    return ComparedJob(
        row["id"], row["name"], row["unique_key"], parameters, row["state"], runtime_s,
        {name: one for name, one in found.items() if one not in (None, {})},
    )  # fmt: skip


# --- matching and comparing -------------------------------------------------------------------------------------------


def compare(jobs_a: Iterable[ComparedJob], jobs_b: Iterable[ComparedJob], tolerance: float = 0.0) -> JobComparison:
    """Match and compare two sets of jobs. Both are kept in memory, about a kilobyte a job.

    Args:
        tolerance: relative difference up to which numbers in results are equal.
    """
    left_a, left_b = list(jobs_a), list(jobs_b)
    numbers = len(left_a), len(left_b)
    pairs: list[Pair] = []
    matched: dict[str, int] = {}
    states: Counter[tuple[str, str]] = Counter()
    times: list[tuple[float, float]] = []
    for kind, key, is_unique in _MATCHES:
        found, left_a, left_b = _matched(left_a, left_b, key, is_unique)
        matched[kind] = len(found)
        for a, b in found:
            states[a.state, b.state] += 1
            if a.runtime_s and b.runtime_s:
                times.append((a.runtime_s, b.runtime_s))
            differences = list(_differences(a, b, tolerance))
            if differences:
                pairs.append(Pair(a, b, kind, differences))
    pairs.sort(key=lambda pair: pair.a.number)
    return JobComparison(*numbers, matched, left_a, left_b, pairs, dict(states.most_common()), _run_times(times))


def _by_name_and_parameters(job: ComparedJob) -> str:
    return json.dumps([job.name, job.parameters], sort_keys=True, default=str)


_MATCHES: tuple[tuple[str, Callable[[ComparedJob], str | None], bool], ...] = (
    (KEY, lambda job: job.unique_key, False),
    (SAME, _by_name_and_parameters, False),
    (NAME, lambda job: job.name or None, True),
)


def _matched(
    jobs_a: Sequence[ComparedJob], jobs_b: Sequence[ComparedJob], key: Callable[[ComparedJob], str | None], is_unique: bool
) -> tuple[list[tuple[ComparedJob, ComparedJob]], list[ComparedJob], list[ComparedJob]]:
    """Return the pairs of equal keys, in order, and the jobs that are left; `is_unique`: only keys that each set has once."""
    by_key: dict[str, deque[ComparedJob]] = {}
    for job in jobs_b:
        found = key(job)
        if found is not None:
            by_key.setdefault(found, deque()).append(job)
    often = Counter(key(job) for job in jobs_a) if is_unique else Counter()
    pairs, left_a = [], []
    for job in jobs_a:
        found = key(job)
        fitting = by_key.get(found, deque()) if found is not None else deque()
        if fitting and not (is_unique and (often[found] > 1 or len(fitting) > 1)):
            pairs.append((job, fitting.popleft()))
        else:
            left_a.append(job)
    taken = {job.number for _, job in pairs}
    return pairs, left_a, [job for job in jobs_b if job.number not in taken]


def _differences(a: ComparedJob, b: ComparedJob, tolerance: float) -> Iterator[Difference]:
    for name in dict.fromkeys((*a.parameters, *b.parameters)):
        before, after = (job.parameters.get(name, _DEFAULTS[name]) for job in (a, b))
        yield from (Difference("parameters", *one) for one in _unequal(name, before, after, 0.0))
    if a.state != b.state:
        yield Difference("states", "state", a.state, b.state)
    for name in dict.fromkeys((*a.results, *b.results)):
        yield from (Difference("results", *one) for one in _unequal(name, a.results.get(name), b.results.get(name), tolerance))


def _unequal(path: str, a: Any, b: Any, tolerance: float) -> Iterator[tuple[str, Any, Any]]:
    """Yield the paths below which two values differ, and both values; a missing one is None."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys((*a, *b)):
            yield from _unequal(f"{path}.{key}", a.get(key), b.get(key), tolerance)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for place, (one, other) in enumerate(zip(a, b)):
            yield from _unequal(f"{path}[{place}]", one, other, tolerance)
    elif not _is_equal(a, b, tolerance):
        yield path, a, b


def _is_equal(a: Any, b: Any, tolerance: float) -> bool:
    numbers = (int, float)
    if isinstance(a, numbers) and isinstance(b, numbers) and not isinstance(a, bool) and not isinstance(b, bool):
        return a == b or (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=tolerance, abs_tol=0.0)
    return type(a) is type(b) and a == b


def _run_times(times: Sequence[tuple[float, float]]) -> RunTimes | None:
    if not times:
        return None
    before, after = zip(*times)
    ratio = median(b / a for a, b in times)
    return RunTimes(len(times), median(before), median(after), ratio, chance([math.log(b / a) for a, b in times]))


def chance(differences: Sequence[float]) -> float:
    """Return the probability that such differences are chance, by Wilcoxon's signed-rank test with its normal approximation.

    Zeros are left out and ties have their mean rank; 1.0 for fewer than `MIN_PAIRS` differences.

    >>> round(chance([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]), 3), chance([1.0, -1.0])
    (0.006, 1.0)
    """
    left = sorted((one for one in differences if one), key=abs)
    number = len(left)
    if number < MIN_PAIRS:
        return 1.0
    above = ties = 0.0
    rank = 1
    for _, group in groupby(left, key=abs):
        tied = list(group)
        mean = rank + (len(tied) - 1) / 2
        above += mean * sum(one > 0 for one in tied)
        ties += len(tied) ** 3 - len(tied)
        rank += len(tied)
    expected = number * (number + 1) / 4
    variance = number * (number + 1) * (2 * number + 1) / 24 - ties / 48
    distance = max(0.0, abs(above - expected) - 0.5)
    return math.erfc(distance / math.sqrt(2 * variance)) if variance > 0 else 1.0
