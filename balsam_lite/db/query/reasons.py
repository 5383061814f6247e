"""Why jobs wait or failed: the reasons of `catalogue`, evaluated for one job or for all that match.

A waiting job is held against what could run it (`takers`): live launchers, launches in a batch queue, the policy of the
service. The predicates are those of the claim, evaluated on the file as it is, so that no launcher has to be asked and none
has to have left a note about the job. Everything that tells users why a job waits or failed takes its words from here.
All functions only read, and run inside the caller's transaction, on its connection `cx`.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ...core import field_specs, states
from ...core.clock import SECOND_US, format_us, spoken
from ..engine.schema import LARGE_WRITE_HOLD, SUSPECT_DEATHS, VISIBLE
from ..store import claims, leases, remote_parents
from ..store.claims import Shape
from ..store.leases import Lease
from ..store.suspects import describe
from . import demand, queries, select
from .catalogue import CATALOGUE, Group, Reason, make
from .failures import RELATIVE, Relative, explain_ended
from .filters import Conditions
from .operators import Term, execute
from .takers import EPSILON, Queue, Taker, cost_of, full, policy_obstacle

_STARTABLE = (*states.RUNNABLE_STATES, *states.UNPREPARED_STATES)
#: The states of jobs that could go on if nothing stood in their way.
WAITING_STATES = (states.AWAITING_PARENTS, *_STARTABLE, *states.UNSETTLED_STATES)


# --- what is around the jobs ------------------------------------------------------------------------------------------


class Policy(NamedTuple):
    """The queue policy of the service."""

    queues: tuple[Queue, ...] = ()
    margin: int = 0  # minutes of a launch that no job can use
    trouble: str = ""  # why it cannot be read


class DoubtedLease(NamedTuple):
    """An open lease whose holder is not certainly alive."""

    lease: Lease
    is_dead: bool
    sign: str  # its last sign of life in words


class Surroundings(NamedTuple):
    """What could run jobs at one moment, and what stands in the way of all jobs."""

    now_us: int
    launchers: tuple[Taker, ...] = ()
    starting: tuple[str, ...] = ()  # launchers that have not recorded yet what they take
    holders: Mapping[int, DoubtedLease] = {}  # by lease: the dead ones and those on other hosts that may be
    launches: tuple[tuple[Taker, queries.BatchRow], ...] = ()  # that have no live launcher
    service: Lease | None = None  # unless it is certainly dead
    closed: Mapping[str, tuple[str, int]] = {}  # queues to which nothing is submitted: why, and until when (0: unknown)
    refused: Sequence[tuple[str, Shape, str, int]] = ()  # likewise, for jobs of one shape
    policy: Policy | None = None  # None: unknown
    last: Taker | None = None  # the newest launcher that has ended
    machine: tuple[Reason, ...] = ()  # what keeps all jobs from starting
    nested: frozenset[int] = frozenset()  # running jobs that wait for jobs
    expiry_s: float = 120.0
    is_elsewhere: bool = False  # a launcher on another host or in a batch job may see other files than this host
    #: Returns why an application's program, or a source of files, is not on this host; "" if it is, or is elsewhere.
    missing_program: Callable[[str], str] = lambda executable: ""
    missing_source: Callable[[str], str] = lambda url: ""

    @property
    def has_reaper(self) -> bool:
        """Return whether a process is alive that frees the jobs of dead launchers."""
        return bool(self.launchers or self.starting) or (self.service is not None and self.service.id not in self.holders)


def surroundings(
    cx: sqlite3.Connection, now_us: int, expiry_s: float, watch: leases.Watch | None = None, margin: float = 0.0
) -> Surroundings:
    """Return what could run jobs, as far as the DB tells.

    Args:
        watch: the heartbeats seen by this process; without it no holder on another host is certainly dead.
        margin: minutes of a launch that no job can use.
    """
    watch = watch or leases.Watch()
    notes = dict(cx.execute("SELECT id, note FROM lease WHERE closed IS NULL"))
    launchers, starting, holders, service, note = [], [], {}, None, {}
    alive: set[str] = set()  # batch jobs
    is_elsewhere = False
    for lease in leases.open_leases(cx):
        is_dead = leases.is_dead(lease, expiry_s, watch)
        if is_dead or leases.is_doubtful(lease, now_us, expiry_s, watch):
            holders[lease.id] = DoubtedLease(lease, is_dead, leases.last_sign(lease, now_us, expiry_s))
        if lease.kind == "service" and not is_dead:
            service, note = lease, _object(notes[lease.id])
        elif lease.kind == "launcher" and lease.id not in holders:
            taker = Taker.of_note(notes[lease.id], str(lease), lease.id, now_us)
            if taker is None:
                starting.append(str(lease))
            else:
                launchers.append(taker)
            alive.add(lease.scheduler_id.partition(".")[0])
            is_elsewhere = is_elsewhere or not lease.holder.is_here()
    rows = queries.unended_batch_jobs(cx)
    queued = [
        row
        for row in rows
        if not row["scheduler_id"]
        or (
            row["scheduler_id"].partition(".")[0] not in alive
            and not (row["started"] and queries.launchers_in(cx, "id", row["scheduler_id"], row["created"]))  # and has ended
        )
    ]
    waits = leases.living_waits(cx, expiry_s, watch)
    return Surroundings(
        now_us,
        tuple(launchers),
        tuple(starting),
        holders,
        tuple((taker, row) for row in queued for taker in Taker.of_batch_job(row, margin)),
        service,
        {queue: (why, until) for queue, (why, until) in note.get("paused", {}).items() if until > now_us},
        [(queue, Shape._make(shape), why, until) for queue, shape, why, until in note.get("refused", ()) if until > now_us],
        last=_last(cx),
        nested=frozenset(wait.job for wait in waits if wait.job is not None),
        expiry_s=expiry_s,
        is_elsewhere=is_elsewhere or bool(queued),
    )


def _object(note: str) -> dict[str, Any]:
    found = json.loads(note) if note else {}
    return found if isinstance(found, dict) else {}


def _last(cx: sqlite3.Connection) -> Taker | None:
    """Return the newest launcher that has ended, with all the time that it had."""
    row = cx.execute(
        """SELECT id, host, closed, opened, note FROM lease WHERE kind = 'launcher' AND closed IS NOT NULL
        ORDER BY id DESC LIMIT 1"""
    ).fetchone()
    if row is None:
        return None
    number, host, closed, opened, note = row
    return Taker.of_note(note, f"launcher {number} on {host}, the last one, which ended {format_us(closed)}", number, opened)


# --- one waiting job --------------------------------------------------------------------------------------------------

#: The columns of a job on which its reasons depend.
COLUMNS = (
    "id", "name", "job_id", "state", "lease", "start_after", "launcher_deaths", "unfinished_parents", "run_when",
    *field_specs.SHAPE_FIELDS, "wall_time_minutes", "priority", "workflow", "queued_launch_id", "application", "tags",
    "stage_in_url",
)  # fmt: skip


def explain_job(cx: sqlite3.Connection, number: int, around: Surroundings) -> list[Reason]:
    """Return every reason why that job does not run, in the order in which they have to be dealt with; [] if none.

    Raises:
        UnknownJob: it is not there (any more).
    """
    job = queries.job(cx, number)
    job["tags"] = json.loads(job["tags"])
    if job["state"] in states.END_STATES and job["lease"] is None:
        return explain_ended(cx, number)
    return _Waiting(cx, around, is_one=True).reasons(job)


def first_reasons(cx: sqlite3.Connection, jobs: Iterable[Mapping[str, Any]], around: Surroundings) -> dict[int, str]:
    """Return by number the first reason why waiting jobs do not run, given as rows of `select.jobs_page` or of the table."""
    found: dict[int, str] = {}
    known: dict[tuple[Any, ...], str] = {}
    waiting = _Waiting(cx, around)
    for job in jobs:
        if job["state"] not in WAITING_STATES and (job["state"] != states.RUNNING or job.get("lease") not in around.holders):
            continue
        values = {name: job[name if name in job else field_specs.WORKSHOP_NAMES[name]] for name in COLUMNS}
        values["tags"] = json.loads(values["tags"]) if isinstance(values["tags"], str) else values["tags"]
        key = (*(values[name] for name in COLUMNS[3:-2]), str(values["tags"]))
        if key not in known:
            reasons = waiting.reasons(values)
            known[key] = str(reasons[0]) if reasons else ""
        found[job["id"]] = known[key]
    return {number: reason for number, reason in found.items() if reason}


# --- sets of jobs -----------------------------------------------------------------------------------------------------

#: Reasons whose sentences differ from job to job where the reason is the same: the first one is shown for all.
_ALIKE = frozenset(("held-back", "held-by-trouble", "other-workflow", "other-tags", "time-left", "policy-time"))
#: Rows that are read between two looks at the clock.
_SLICE = 5000
#: Maximum number of jobs to look at, of those that launchers hold.
_MAX_HELD = 1000
_MINUTE_US = 60 * SECOND_US
#: An answer of another site is recent for this long: its own service may report.
_RECENT_US = _MINUTE_US


def explain_jobs(
    cx: sqlite3.Connection, where: Mapping[str, Any], around: Surroundings, budget_s: float | None = None
) -> list[Group]:
    """Return the jobs that wait, of those that match, by the first reason of each; those with most jobs first.

    A job that a live launcher holds, or is about to take, has no reason and is in no group.

    Args:
        where: conditions of `db.query.filters`.
        budget_s: stop reading after this number of seconds; the last group has the jobs that were not examined.
    """
    condition = Conditions(where).sql() if where else None
    kinds, unseen = _kinds(cx, condition, around, budget_s)
    waiting = _Waiting(cx, around)
    found: dict[tuple[str, str], tuple[Reason, int, int]] = {}
    for kind, (jobs, example) in sorted(kinds.items(), key=lambda item: item[0].minutes):
        reasons = waiting.reasons(kind.as_job(example))
        if reasons:
            key = (reasons[0].code if reasons[0].code in _ALIKE else reasons[0].text, reasons[0].who)
            first, others, one = found.get(key, (reasons[0], 0, example))
            found[key] = (first, others + jobs, min(one, example))
    groups = [Group(*values) for values in found.values()] + _held_by_others(cx, condition, around)
    groups = _of_unreachable_sites(cx, condition, around, groups)
    groups.sort(key=lambda group: -group.jobs)
    return groups + ([Group(make("unexamined"), unseen, None)] if unseen else [])


def _of_unreachable_sites(
    cx: sqlite3.Connection, condition: Term | None, around: Surroundings, groups: list[Group]
) -> list[Group]:
    """Return the groups, with the jobs apart that wait for parents at sites that cannot be reached."""
    found = []
    for site in remote_parents.unreachable(cx):
        within, parameters = (VISIBLE, ()) if condition is None else (condition.sql, tuple(condition.parameters))
        sql = f"""SELECT count(*), min(job.id) FROM job WHERE job.id IN ({remote_parents.CHILDREN_OF_SITE})
            AND job.state = '{states.AWAITING_PARENTS}' AND {within}"""
        jobs, example = execute(cx, sql, (site, *parameters)).fetchone()
        there = [one for one in remote_parents.of_child(cx, example) if one.error] if jobs else []
        if there:
            found.append(Group(_Waiting(cx, around)._of_parent_there(there[0], "JOB"), jobs, example))
    if not found:
        return groups
    apart = sum(group.jobs for group in found)
    rest = [group._replace(jobs=group.jobs - apart) if group.reason.code == "waits-for-parents" else group for group in groups]
    return [*(group for group in rest if group.jobs > 0), *found]


class _Kind(NamedTuple):
    """What waiting jobs have in common that wait for the same reasons."""

    state: str
    start_after: int | None
    launcher_deaths: int
    unfinished_parents: int  # 0 or 1
    shape: Shape
    minutes: int
    workflow: str
    queued_launch_id: int | None
    application: str
    has_stage_in: bool
    tags: tuple[tuple[str, str], ...]  # of those for which a launcher or launch asks

    def as_job(self, example: int) -> dict[str, Any]:
        """Return it in the form of a job."""
        own = {
            "id": example,
            "wall_time_minutes": self.minutes,
            "tags": dict(self.tags),
            "lease": None,
            "stage_in_url": "x" * self.has_stage_in,
        }
        return {**dict.fromkeys(COLUMNS), **self._asdict(), **self.shape._asdict(), **own}


def _kinds(
    cx: sqlite3.Connection, condition: Term | None, around: Surroundings, budget_s: float | None
) -> tuple[dict[_Kind, tuple[int, int]], int]:
    """Return the kinds of waiting jobs with number and example of each, and the number of jobs that were not read."""
    takers = [*around.launchers, *(taker for taker, _ in around.launches)]
    asked = list(dict.fromkeys(pair for taker in takers for pair in taker.scope.tags))
    has_plan = any(taker.scope.launch is not None for taker in takers)
    tagged = f", EXISTS (SELECT 1 FROM job_tag WHERE tag = {queries.TAG} AND job_tag.job = job.id)" * len(asked)
    # The times of those that are held back differ, and so may the numbers of deaths; one of each is enough.
    columns = f"""job.id, CASE WHEN start_after IS NULL OR start_after <= {around.now_us:d} THEN NULL
        ELSE max(start_after / {_MINUTE_US} * {_MINUTE_US} + {_MINUTE_US}, 0) END, launcher_deaths, unfinished_parents > 0,
        {", ".join(field_specs.SHAPE_FIELDS)}, wall_time_minutes, workflow, {"queued_launch_id" if has_plan else "NULL"},
        application, stage_in_url <> ''{tagged}"""
    hint, within = ("INDEXED BY job_state", VISIBLE) if condition is None else ("", condition.sql)
    parameters = [word for pair in asked for word in pair]
    found: dict[tuple[str, tuple[Any, ...]], list[int]] = {}
    until = None if budget_s is None else time.monotonic() + budget_s
    unseen = 0
    existing = select.count_states(cx)
    for state in (one for one in WAITING_STATES if existing.get(one)):
        total = _count(cx, state, condition) if until is not None else 0
        sql = f"SELECT {columns} FROM job {hint} WHERE state = '{state}' AND lease IS NULL AND {within}"
        cursor = execute(cx, sql, [*parameters, *(condition.parameters if condition else ())])
        if until is not None and state == states.AWAITING_PARENTS:  # all wait for their parents: one tells the reason
            row = cursor.fetchone() if total else None
            found.update({(state, row[1:]): [total, row[0]]} if row else {})
            continue
        read = 0
        while until is None or time.monotonic() < until:
            rows = cursor.fetchmany(_SLICE)
            for row in rows:
                key = (state, row[1:])
                if key in found:
                    found[key][0] += 1
                else:
                    found[key] = [1, row[0]]
            read += len(rows)
            if len(rows) < _SLICE:
                total = read
                break
        unseen += max(0, total - read)
    kinds: dict[_Kind, tuple[int, int]] = {}
    for (state, row), (jobs, example) in found.items():
        tags = tuple(pair for pair, has_it in zip(asked, row[12:]) if has_it)
        kinds[_Kind._make((state, *row[:3], Shape(*row[3:7]), *row[7:12], tags))] = (jobs, example)
    return kinds, unseen


def _count(cx: sqlite3.Connection, state: str, condition: Term | None) -> int:
    if condition is None:
        row = cx.execute("SELECT jobs FROM state_count WHERE state = ?", (state,)).fetchone()
        return int(row[0]) if row else 0
    sql = f"SELECT count(*) FROM job WHERE state = '{state}' AND lease IS NULL AND {condition.sql}"
    return int(execute(cx, sql, condition.parameters).fetchone()[0])


def _held_by_others(cx: sqlite3.Connection, condition: Term | None, around: Surroundings) -> list[Group]:
    """Return the jobs that are held by launchers which are dead or may be, or RUNNING without any."""
    found = []
    waiting = _Waiting(cx, around)
    within, parameters = (VISIBLE, ()) if condition is None else (condition.sql, tuple(condition.parameters))
    begun = f"state = '{states.RUNNING}' AND lease IS NULL"
    for term in [*(f"lease = {number:d}" for number in around.holders), begun]:
        sql = f"SELECT count(*), min(job.id), min(state) FROM job WHERE {term} AND {within}"
        jobs, example, state = execute(cx, sql, parameters).fetchone()
        if jobs:
            lease = None if term == begun else int(term.split()[-1])
            reasons = waiting.reasons({**dict.fromkeys(COLUMNS), "id": example, "state": state, "lease": lease})
            found.append(Group(reasons[0], jobs, example))
    return found


# --- the evaluation of one --------------------------------------------------------------------------------------------


def why_nothing_happens(cx: sqlite3.Connection, numbers: Sequence[int], around: Surroundings) -> str:
    """Return why these jobs do not run, and what to do; "" if that is unknown, or a running job may still lead to them."""
    held = cx.execute("SELECT id, lease FROM job INDEXED BY job_lease WHERE lease IS NOT NULL LIMIT ?", (_MAX_HELD,))
    alive = {taker.lease for taker in around.launchers}
    running = [job for job, lease in held if lease in alive]
    if not around.nested.issuperset(running):
        return ""
    for number in numbers[:_NAMED]:
        row = cx.execute(f"SELECT {RELATIVE} FROM job WHERE id = ?", (number,)).fetchone()
        if row is None:
            continue
        root = _root(cx, Relative._make(row))
        for reason in explain_job(cx, root.number, around)[:1]:
            return f"{'' if root.number == number else f'{root.label} '}{reason}. {reason.remedy}"
    nested = make("nested", running=len(running))
    return f"{nested.text}. {nested.remedy}" if running else ""


class _Waiting:
    """Evaluates waiting jobs. Each is a mapping with the names of `COLUMNS`."""

    def __init__(self, cx: sqlite3.Connection, around: Surroundings, is_one: bool = False) -> None:
        self._cx, self._around = cx, around
        self._is_one = is_one  # tell particulars of the job, at the cost of some queries
        self._apps: dict[str, tuple[str | None, str]] | None = None
        self._held: dict[int, demand.HeldJobs] = {}

    def reasons(self, job: Mapping[str, Any]) -> list[Reason]:
        """Return all reasons, in order."""
        around = self._around
        if job["lease"] is not None:
            return self._of_holder(job)
        if job["state"] == states.RUNNING:
            return [make("no-holder", job=job["job_id"][: queries.SHORT_ID] if self._is_one else "JOB")]
        found = list(around.machine)
        if job["state"] == states.AWAITING_PARENTS or job["unfinished_parents"]:
            found += self._of_parents(job)
        found += self._of_job(job)
        if job["state"] in states.UNSETTLED_STATES:
            return found if around.launchers else [*found, make("unsettled"), *self._of_service(job, may_run=True)]
        return found + self._of_takers(job, is_ready=not found)

    # --- the job itself

    def _of_holder(self, job: Mapping[str, Any]) -> list[Reason]:
        holder = self._around.holders.get(job["lease"])
        if holder is None:
            return []
        if holder.is_dead:
            who = "A live launcher or the service" if self._around.has_reaper else "The next launcher or the service"
            return [make("holder-dead", holder=holder.lease, reaper=who)]
        code = "clock-ahead" if "ahead" in holder.sign else "holder-silent"
        return [make(code, holder=holder.lease, sign=holder.sign, expiry=spoken(self._around.expiry_s))]

    def _of_parents(self, job: Mapping[str, Any]) -> list[Reason]:
        if not self._is_one:
            return [make("waits-for-parents", what="its parents", parent_id="JOB")]
        return self._of_parents_here(job) + self._of_parents_there(job)

    def _of_parents_here(self, job: Mapping[str, Any]) -> list[Reason]:
        parents = parents_of(self._cx, job["id"])
        lost = [one for one in parents if one.state in (states.FAILED, states.USER_KILLED)]
        if lost and job["run_when"] == "all_finished":
            return [make("parent-failed", parent=lost[0].label, state=lost[0].state, parent_id=lost[0].short_id)]
        ended = states.END_STATES if job["run_when"] == "all_ended" else (states.JOB_FINISHED,)
        open_ = [one for one in parents if one.state not in ended]
        if not open_:
            return []
        listed = ", ".join(f"{one.label} {one.state}" for one in open_[:_NAMED]) + ", …" * (len(open_) > _NAMED)
        root = _root(self._cx, open_[0])
        root_words = f"; the first one in turn waits for {root.label} {root.state}" if root != open_[0] else ""
        what = f"{len(open_)} of its {len(parents)} parent(s): {listed}{root_words}"
        return [make("waits-for-parents", what=what, parent_id=root.short_id)]

    def _of_parents_there(self, job: Mapping[str, Any]) -> list[Reason]:
        parents = remote_parents.of_child(self._cx, job["id"])
        lost = [one for one in parents if one.end and one.end != states.JOB_FINISHED]
        if lost and job["run_when"] == "all_finished":
            one = lost[0]
            return [make("site-parent-failed", parent=one.label, state=one.state, site=one.site, number=one.number)]
        ended = remote_parents.ENDS if job["run_when"] == "all_ended" else (states.JOB_FINISHED,)
        found: dict[str, Reason] = {}  # one for each site
        for one in parents:
            if one.end not in ended:
                found.setdefault(one.site, self._of_parent_there(one, job["job_id"][: queries.SHORT_ID]))
        return list(found.values())

    def _of_parent_there(self, one: remote_parents.ParentThere, short_id: str) -> Reason:
        now_us = self._around.now_us
        age = f"{spoken(max(0, now_us - one.answered) / SECOND_US)} ago"
        heard = f"it last answered {age}" if one.answered else "it has not answered yet"
        about = {"parent": one.label, "site": one.site, "number": one.number, "heard": heard}
        if one.trouble:
            return make("files-not-copied", why=one.trouble, job=short_id, **about)
        if one.error:
            return make("site-unreachable", why=one.error, **about)
        if not one.path:
            return make("site-reports", **about)
        if not self._around.launchers and self._around.service is None and now_us - one.answered > _RECENT_US:
            return make("site-unasked", **about)
        return make("waits-for-site", state=one.state, age=age if one.answered else "its addition", **about)

    def _of_job(self, job: Mapping[str, Any]) -> list[Reason]:
        found, start_after, number = [], job["start_after"], job["id"] if self._is_one else "JOB"
        short_id = job["job_id"][: queries.SHORT_ID] if self._is_one else "JOB"
        if start_after is not None and start_after >= LARGE_WRITE_HOLD:
            found.append(make("large-write"))
        elif start_after is not None and start_after > self._around.now_us:
            trouble = _trouble(self._cx, number) if self._is_one else ""
            why = trouble or (", as dependencies may follow" if self._is_one else "")
            found.append(make("held-by-trouble" if trouble else "held-back", until=f"until {format_us(start_after)}", why=why))
        if (job["launcher_deaths"] or 0) >= SUSPECT_DEATHS:
            found.append(make("runs-apart", deaths=describe(job["launcher_deaths"]), job=short_id))
        found += self._of_application(job["application"], short_id)
        missing = self._around.missing_source(job["stage_in_url"]) if self._is_one and job["stage_in_url"] else ""
        return found + ([make("no-stage-in", why=missing, job=short_id)] if missing else [])

    def _of_application(self, application: str | None, short_id: str) -> list[Reason]:
        if application is None:  # it is not known here
            return []
        executable, _ = self._app(application)
        if executable is None:
            return [make("no-application", application=application, job=short_id)]
        path = self._around.missing_program(executable)
        return [make("no-program", application=application, path=path)] if path else []

    def _app(self, name: str | None) -> tuple[str | None, str]:
        """Return an application's program, None if it is not registered, and its script `preprocess`."""
        if self._apps is None:
            rows = self._cx.execute("SELECT name, executable, preprocess FROM app")
            self._apps = {app: (executable, preprocess) for app, executable, preprocess in rows}
        return self._apps.get(name or "", (None, ""))

    # --- launchers

    def _of_takers(self, job: Mapping[str, Any], is_ready: bool) -> list[Reason]:
        """Return why no launcher takes the job, and no launch and no queue of the policy would.

        With `is_ready` nothing else keeps the job from running, so that the launchers' present state matters, too.
        """
        around = self._around
        refusals: list[list[tuple[str, Reason]]] = []
        present: list[list[Reason]] = []
        for taker in around.launchers:
            obstacles = self._obstacles(taker, job, has_time=is_ready)
            if obstacles:
                refusals.append(obstacles)
            else:
                present.append(self._at_present(taker, job) if is_ready else [])
        if [] in present:
            return []
        if present:
            return [reason for reasons in present for reason in reasons]
        if around.starting:
            return [*_merged(refusals), make("launcher-starting", ", ".join(around.starting))]
        return _merged(refusals) + self._of_service(job)

    def _obstacles(self, taker: Taker, job: Mapping[str, Any], has_time: bool = True) -> list[tuple[str, Reason]]:
        """Return the predicates of a launcher or a launch that the job does not meet."""
        shape = _shape(job)
        found = taker.scope_obstacles(job["workflow"], job["tags"] or {}, job["queued_launch_id"])
        found += taker.size_obstacles(shape)
        found += taker.time_obstacles(job["wall_time_minutes"]) if has_time else []
        more = {"taker": taker.what, "job": "JOB"}
        if self._is_one:
            more["job"] = job["job_id"][: queries.SHORT_ID]
        else:
            more["more"] = " or more"
        return [(taker.name, make(one.code, **{**more, **one.values})) for one in found]

    def _at_present(self, taker: Taker, job: Mapping[str, Any]) -> list[Reason]:
        """Return why a launcher that takes such jobs does not start this one now."""
        if taker.trouble:
            return [make("in-trouble", taker.name, trouble=taker.trouble)]
        if taker.apart:
            return [make("apart", taker.name)]
        assert taker.lease is not None
        held = self._held.get(taker.lease)
        if held is None:
            held = self._held[taker.lease] = demand.held(self._cx, taker.lease)
        if self._is_prepared(job):
            has_room = _has_room(taker, _shape(job), held)
        else:
            in_steps = round(sum(not run.is_running for run in held.runs) * held.jobs / max(len(held.runs), 1))
            if taker.steps is not None and in_steps >= taker.steps:
                return [make("no-step", taker.name, steps=in_steps)]
            has_room = True  # to be prepared it needs no place
        if has_room:
            return []
        if held.jobs and self._around.nested.issuperset(run.job for run in held.runs) and held.jobs == len(held.runs):
            return [make("nested", running=held.jobs)]
        found = [make("no-place", taker.name, running=_running(held, self._around.now_us))]
        ahead = _jobs_ahead(self._cx, job, taker) if self._is_one else 0
        number = f"{_MOST_AHEAD} or more" if ahead >= _MOST_AHEAD else ahead
        return [*found, make("priority", number=number, job=job["job_id"][: queries.SHORT_ID])] if ahead else found

    def _is_prepared(self, job: Mapping[str, Any]) -> bool:
        """Return whether the program is the next to run, and no step before it."""
        _, preprocess = self._app(job["application"])
        return job["state"] not in states.UNPREPARED_STATES or not (job["stage_in_url"] or preprocess)

    # --- launches and the service

    def _of_service(self, job: Mapping[str, Any], may_run: bool = False) -> list[Reason]:
        """Return why no launcher that would take the job is on its way. `may_run`: any launcher would."""
        around = self._around
        more: list[list[tuple[str, Reason]]] = []
        for taker, row in sorted(around.launches, key=lambda one: one[0].launch != job["queued_launch_id"]):
            obstacles = [] if may_run else self._obstacles(taker, job)
            if not obstacles:
                return [_of_launch(taker.name, row, around.now_us)]
            more.append(obstacles)
        found = _merged(more)
        if around.service is not None and around.service.id in around.holders:
            sign = around.holders[around.service.id].sign
            return [*found, make("service-silent", service=around.service, sign=sign)]
        if around.service is not None:
            return found + self._of_policy(job)
        if around.launchers or around.launches:
            return found
        silent = [one for one in around.holders.values() if one.lease.kind == "launcher" and not one.is_dead]
        if silent:
            return [make("launcher-silent", holder=silent[0].lease, sign=silent[0].sign)]
        last = [] if around.last is None or may_run else _merged([self._obstacles(around.last, job)])
        return [make("no-launcher"), *last]

    def _of_policy(self, job: Mapping[str, Any]) -> list[Reason]:
        policy, around, shape = self._around.policy, self._around, _shape(job)
        if policy is None:
            return [make("service-waits")]
        if policy.trouble:
            return [make("policy-broken", why=policy.trouble)]
        on = [queue for queue in policy.queues if queue.is_on]
        obstacle = policy_obstacle(on, shape.num_nodes, job["wall_time_minutes"], policy.margin)
        if obstacle:
            return [make(obstacle.code, **obstacle.values)]
        allowed = [one for one in on if not policy_obstacle([one], shape.num_nodes, job["wall_time_minutes"], policy.margin)]
        launches = [row["queue"] for row in queries.unended_batch_jobs(self._cx)]
        is_full = full(allowed, {queue: launches.count(queue) for queue in launches})
        refused = {queue: (why, until) for queue, of, why, until in around.refused if of == shape}
        found = []
        for queue in allowed:
            if queue.name in is_full:
                found.append(make("max-queued", queue=queue.name, why=is_full[queue.name]))
            elif queue.name in refused or queue.name in around.closed:
                why, until = refused.get(queue.name) or around.closed[queue.name]
                found.append(make("queue-paused", queue=queue.name, why=why, time=format_us(until)))
            else:
                return [make("service-waits")]
        return found


def _shape(job: Mapping[str, Any]) -> Shape:
    return Shape._make(job[name] for name in field_specs.SHAPE_FIELDS)


_ORDER = {code: number for number, code in enumerate(CATALOGUE)}


def _merged(found: Iterable[Sequence[tuple[str, Reason]]]) -> list[Reason]:
    """Return the reasons of several launchers, each once with all of whom it is true; of those that are nearest first.

    One whose filter matches is nearer than one whose filter does not, as it has only the later reasons of the catalogue.
    """
    names: dict[Reason, list[str]] = {}
    for obstacles in sorted(found, key=lambda one: -_ORDER[one[0][1].code] if one else 0):
        for name, reason in obstacles:
            names.setdefault(reason, []).append(name)
    return [reason._replace(who=_list(who)) for reason, who in names.items()]


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _of_launch(name: str, row: queries.BatchRow, now_us: int) -> Reason:
    if not row["scheduler_id"]:
        return make("launch-submitting", launch=name, state=row["state"])
    if row["started"] is not None:
        return make("launch-starting", launch=name, state=row["state"], log=row["log"])
    why = f": {row['reason']}" if row["reason"] else ""
    why += f"; it should start at {format_us(row['expected_start'])[:-7]} UTC" if row["expected_start"] else ""
    why += f" (as of {spoken((now_us - row['polled']) / SECOND_US)} ago)" if row["polled"] else ""
    return make("launch-queued", launch=name, state=row["state"], why=why)


# --- the state of a launcher ------------------------------------------------------------------------------------------

#: Maximum number of names in a list, and of jobs counted that come before one.
_NAMED, _MOST_AHEAD = 3, 10_000


def _has_room(taker: Taker, shape: Shape, held: demand.HeldJobs) -> bool:
    """Return whether a place is free for a job of that shape, as far as the sum of what runs there tells."""
    factor = held.jobs / max(len(held.runs), 1)
    cost, running = cost_of(shape, taker.mpi), [run.shape for run in held.runs if run.is_running]
    costs = [(one.num_nodes, cost_of(one, taker.mpi)) for one in running]
    nodes = sum(kind.nodes for kind in taker.nodes)
    if sum(number * one.share for number, one in costs) * factor + shape.num_nodes * cost.share > nodes + EPSILON:
        return False
    if taker.mpi and taker.mpi.starts(shape) and sum(map(taker.mpi.starts, running)) * factor >= taker.mpi.most:
        return False
    gpus = sum(kind.nodes * (kind.gpus or 0) for kind in taker.nodes)
    return not cost.gpus or sum(n * one.gpus for n, one in costs) * factor + shape.num_nodes * cost.gpus <= gpus + EPSILON


def _running(held: demand.HeldJobs, now_us: int) -> str:
    """Return in words what runs, and when the first place should be free if the estimates are right."""
    timed = [run for run in held.runs if run.minutes > claims.SHORT and run.began_us is not None]
    ends = [(run.began_us or 0) + run.minutes * _MINUTE_US for run in timed]
    if not held.jobs:
        return ""
    soon = max(0.0, (min(ends) - now_us) / SECOND_US) if ends else None
    return f": {held.jobs} job(s) run" + (f", the first should end in about {spoken(soon)}" if soon is not None else "")


def _jobs_ahead(cx: sqlite3.Connection, job: Mapping[str, Any], taker: Taker) -> int:
    """Return how many jobs of this launcher's filter come before this one in the order of the claim; at most `_MOST_AHEAD`."""
    scope, shape = taker.scope, _shape(job)
    workflows = None if scope.workflow is None else claims.matching_workflows(cx, scope.workflow)
    among = claims.sources(workflows)
    tagged = " AND EXISTS (SELECT 1 FROM json_each(job.tags) WHERE key = ? AND value = ?)" * len(scope.tags)
    words = [word for pair in scope.tags for word in pair]
    found = 0
    for other in claims.shapes(cx, among):
        if taker.size_obstacles(other) or found >= _MOST_AHEAD:
            continue
        mine, theirs = (-shape.num_nodes, shape.node_packing_count), (-other.num_nodes, other.node_packing_count)
        if theirs < mine:  # larger ones come before smaller ones of the same priority
            later, values = "priority >= ?", [job["priority"]]
        elif theirs > mine:
            later, values = "priority > ?", [job["priority"]]
        else:
            minutes = job["wall_time_minutes"]
            later = "(priority > ? OR priority = ? AND (wall_time_minutes > ? OR wall_time_minutes = ? AND job.id < ?))"
            values = [job["priority"], job["priority"], minutes, minutes, job["id"]]
        for source in among:
            fields = " AND ".join(f"{field} = ?" for field in field_specs.SHAPE_FIELDS)
            rows = f"""SELECT 1 FROM job INDEXED BY {source.index_name}
                WHERE {source.condition} AND {fields} AND {later} AND wall_time_minutes <= ?{tagged} AND {VISIBLE} LIMIT ?"""
            longest = claims.longest_estimate(taker.minutes)
            parameters = (*source.parameters, *other, *values, longest, *words, _MOST_AHEAD - found)
            found += cx.execute(f"SELECT count(*) FROM ({rows})", parameters).fetchone()[0]
    return found


# --- relatives ---------------------------------------------------------------------------------------------------


#: Maximum number of ancestors to walk up.
_MAX_STEPS = 1000


def parents_of(cx: sqlite3.Connection, number: int) -> list[Relative]:
    """Return the parents of a job."""
    sql = f"SELECT {RELATIVE} FROM dependency JOIN job ON job.id = parent WHERE child = ? ORDER BY parent"
    return list(map(Relative._make, cx.execute(sql, (number,))))


def _root(cx: sqlite3.Connection, job: Relative) -> Relative:
    """Return the ancestor for which a job that waits for parents waits in the end: the first one that does not itself."""
    sql = f"""SELECT {RELATIVE} FROM dependency JOIN job ON job.id = parent
        WHERE child = ? AND job.state <> '{states.JOB_FINISHED}' ORDER BY parent LIMIT 1"""
    for _ in range(_MAX_STEPS):
        if job.state != states.AWAITING_PARENTS:
            break
        row = cx.execute(sql, (job.number,)).fetchone()
        if row is None:
            break
        job = Relative._make(row)
    return job


def _trouble(cx: sqlite3.Connection, number: object) -> str:
    """Return why a launcher could not start the job and holds it back; "" if it never tried."""
    sql = "SELECT message, from_state FROM event WHERE job = ? ORDER BY id DESC LIMIT 1"
    row = cx.execute(sql, (number,)).fetchone()
    return str(row[0]) if row and row[1] != states.FAILED else ""
