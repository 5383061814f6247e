"""Dependencies between jobs: edges, cycles, and the effects of a parent's end on its children.

`job.unfinished_parents` counts the parents that the job still waits for; 0 means that its `run_when` holds. Only this module
changes it, so that a parent's end costs its children a subtraction and a waiting job costs nothing:

- all_finished: the parents that are not JOB_FINISHED;
- all_ended: the parents that have not ended;
- any_finished: 0 if a parent is JOB_FINISHED, else 1 plus the number of parents that may still become so. At 1 none can.

A job has ended, for its children, when it is in an end state *and* no launcher holds it: its hook may still run, and its
program after a kill. The indexes from which launchers claim hold only jobs whose count is 0. A job that waits for nothing
although it has parents (`wait_for_parents` is off) counts 0, too. All functions run inside the caller's write transaction.

A parent below 0 is a job of another site; see `remote_parents`.

`CROSS JOIN` makes SQLite join in the given order: from the few edges to their jobs. Without it SQLite reads all jobs in the
requested state, of which there may be a million.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...core import causes, states
from ...core.errors import DependencyCycle, DuplicateDependency, StateError, UnknownJob
from ..engine.schema import VISIBLE, sql_list, visible
from . import journal, large_writes, remote_parents
from .remote_parents import MissingFiles
from .transitions import Transition, apply, id_list

#: Maximum number of jobs that an error names.
_NAMED = 5

#: Why a child fails: the message of its event -> the cause by which it is counted.
PARENT_FAILED = "One or more parent jobs failed"
PARENT_REMOVED = "A parent job was removed from the DB"
PARENT_LOST = "A parent was lost with a damaged DB"
_CAUSES = {PARENT_FAILED: causes.PARENT_FAILED, PARENT_REMOVED: causes.PARENT_REMOVED, PARENT_LOST: causes.PARENT_LOST}
PARENT_UNFINISHED = "A parent has yet to finish"

_UNSTARTED = (states.CREATED, states.AWAITING_PARENTS, states.READY, states.STAGED_IN, states.PREPROCESSED)
#: A job in one of these goes back to AWAITING_PARENTS when a parent is put back.
_RECONSIDERED = (*_UNSTARTED, states.RESTART_READY)
_LOST_STATES = (states.FAILED, states.USER_KILLED)

#: About a parent, `p` here or `r` at another site.
_STATE, _IS_FREE = "coalesce(p.state, r.state)", "coalesce(p.lease, r.pending) IS NULL"
_HAS_FINISHED = f"({_STATE} = '{states.JOB_FINISHED}' AND {_IS_FREE})"
_HAS_ENDED = f"({_STATE} IN ({sql_list(remote_parents.ENDS)}) AND {_IS_FREE})"
_IS_LOST = f"({_STATE} IN ({sql_list((*_LOST_STATES, remote_parents.REMOVED))}) AND {_IS_FREE})"
_PARENTS = """FROM dependency d LEFT JOIN job p ON p.id = d.parent LEFT JOIN remote_parent r ON r.id = -d.parent
    WHERE d.child = job.id AND (p.id IS NOT NULL OR r.id IS NOT NULL)"""

#: What `job.unfinished_parents` should be.
UNFINISHED_PARENTS = f"""(job.wait_for_parents * CASE job.run_when
    WHEN 'all_finished' THEN (SELECT count(*) {_PARENTS} AND NOT {_HAS_FINISHED})
    WHEN 'all_ended' THEN (SELECT count(*) {_PARENTS} AND NOT {_HAS_ENDED})
    ELSE (SELECT CASE WHEN count(*) = 0 OR max({_HAS_FINISHED}) THEN 0 ELSE 1 + sum(NOT {_HAS_ENDED}) END {_PARENTS}) END)"""

#: A parent because of which the `run_when` of a waiting job can no longer hold; NULL while it can.
CAUSE = f"""CASE WHEN job.unfinished_parents = 0 THEN NULL
    WHEN job.run_when = 'all_finished' THEN (SELECT d.parent {_PARENTS} AND {_IS_LOST} LIMIT 1)
    WHEN job.run_when = 'any_finished' AND job.unfinished_parents = 1 THEN (SELECT min(d.parent) {_PARENTS})
    END"""

#: A job whose last event names the parent whose end made it fail.
FAILED_WITH_PARENT = f"""job.state = '{states.FAILED}' AND (
    SELECT json_extract(data, '$.parent') FROM event WHERE event.job = job.id ORDER BY event.id DESC LIMIT 1) IS NOT NULL"""


def listed(numbers: Iterable[int]) -> str:
    """Return the first of these numbers, for an error."""
    found = list(numbers)
    return ", ".join(map(str, found[:_NAMED])) + (", …" if len(found) > _NAMED else "")


def add_dependency(cx: sqlite3.Connection, parent: int, child: int, now_us: int) -> None:
    """Make `child` wait for `parent`; see `add_dependencies`."""
    add_dependencies(cx, [(parent, child)], now_us)


def add_dependencies(cx: sqlite3.Connection, pairs: Sequence[tuple[int, int]], now_us: int) -> None:
    """Make the child of each (parent, child) pair wait for the parent; all of them or none.

    Takes time linear in the pairs, the edges of their children and the edges below these.

    Raises:
        UnknownJob, DuplicateDependency, DependencyCycle: nothing is written. StateError: a child has started already, or
        a launcher prepares it.
    """
    children = {child for _, child in pairs}
    journal.note_parents(cx, children)
    for parent, child in pairs:
        if parent == child:
            raise DependencyCycle(f"Job #{child} cannot wait for itself: that would be a circular dependency.")
    _check_exist(cx, children.union(parent for parent, _ in pairs))
    _refuse_duplicates(cx, pairs)
    below = descendants(cx, children)
    cycle = find_cycle([*_edges_from(cx, [*children, *below]), *pairs]) if below or len(pairs) > 1 else []
    if cycle:
        raise DependencyCycle(
            "Detected circular dependency; not creating link",
            hint=f"{len(cycle)} jobs would wait for each other: numbers {listed(cycle)}.",
        )
    _check_unstarted(cx, children, f"none of the {len(pairs)} dependencies was added" if len(pairs) > 1 else "")
    add_edges(cx, pairs, now_us)


def _refuse_duplicates(cx: sqlite3.Connection, pairs: Sequence[tuple[int, int]]) -> None:
    query = "SELECT parent, child FROM dependency WHERE child IN (SELECT value FROM json_each(?))"
    seen: set[tuple[int, int]] = set(cx.execute(query, (id_list({child for _, child in pairs}),)))
    for pair in pairs:
        if pair in seen:
            raise DuplicateDependency(
                "Dependency already exists; cannot double-create", hint="Job #{1} waits for job #{0}.".format(*pair)
            )
        seen.add(pair)


def _edges_from(cx: sqlite3.Connection, parents: Iterable[int]) -> list[tuple[int, int]]:
    query = "SELECT parent, child FROM dependency WHERE parent IN (SELECT value FROM json_each(?))"
    return cx.execute(query, (id_list(parents),)).fetchall()


def _check_exist(cx: sqlite3.Connection, jobs: set[int]) -> None:
    found = cx.execute(f"SELECT id FROM job WHERE id IN (SELECT value FROM json_each(?)) AND {VISIBLE}", (id_list(jobs),))
    missing = sorted(jobs - {row[0] for row in found} - remote_parents.existing(cx, jobs))
    if missing:
        raise UnknownJob(f"There is no job #{missing[0]} in this DB (any more).")


def is_unstarted(job: Mapping[str, Any]) -> bool:
    """Return whether a job, given by its columns, can still get parents."""
    return job["attempt"] == 0 and job["lease"] is None and job["state"] in _UNSTARTED


def _check_unstarted(cx: sqlite3.Connection, children: Iterable[int], consequence: str = "") -> None:
    """Raise StateError if one of `children` has started or is held; with `consequence`, name it in the hint."""
    late = cx.execute(
        f"""SELECT id, state, attempt, lease FROM job WHERE id IN (SELECT value FROM json_each(?))
            AND (attempt > 0 OR lease IS NOT NULL OR state NOT IN ({sql_list(_UNSTARTED)})) LIMIT 1""",
        (id_list(children),),
    ).fetchone()
    if late is None:
        return
    child, state, attempt, lease = late
    hint = f"The child is job #{child}; {consequence}." if consequence else ""
    if attempt or state not in _UNSTARTED:
        reason = f"The child has already started (it is {state}); a parent added now would have no effect."
        raise StateError(reason, hint=hint)
    raise StateError(f"The child is being prepared by launcher {lease}; a parent added now would come too late.", hint=hint)


def set_parents(cx: sqlite3.Connection, child: int, parents: Iterable[int], now_us: int) -> None:
    """Let `child` wait for `parents` and for no other job. A child that failed only because of a parent waits again.

    Takes time linear in the edges below `child`.

    Raises:
        UnknownJob, DependencyCycle; StateError: the child has started, or a launcher prepares it. Nothing is written.
    """
    wanted = set(parents)
    _check_exist(cx, {child, *wanted})
    journal.note_parents(cx, {child})
    if child in wanted:
        raise DependencyCycle("A job cannot wait for itself: that would be a circular dependency.")
    if wanted and not wanted.isdisjoint(descendants(cx, [child])):
        raise DependencyCycle("Detected circular dependency; the parents stay as they are")
    is_lost = cx.execute(f"SELECT 1 FROM job WHERE id = ? AND {FAILED_WITH_PARENT}", (child,)).fetchone() is not None
    if not is_lost:
        _check_unstarted(cx, [child])
    cx.execute("DELETE FROM dependency WHERE child = ?", (child,))
    cx.executemany("INSERT INTO dependency (parent, child) VALUES (?, ?)", [(parent, child) for parent in sorted(wanted)])
    remote_parents.follow(cx, wanted)
    recount(cx, [child])
    if is_lost:
        apply(
            cx,
            [Transition(child, (states.FAILED, states.AWAITING_PARENTS), now_us, ("It has other parents now",))],
            states.USER,
        )
        reconsider_children(cx, [child], now_us)
    settle(cx, [child], now_us)


def add_edges(cx: sqlite3.Connection, edges: Sequence[tuple[int, int]], now_us: int) -> None:
    """Add (parent, child) pairs that cannot close a cycle, such as those of children that were just created."""
    cx.executemany("INSERT OR IGNORE INTO dependency (parent, child) VALUES (?, ?)", edges)
    children = sorted({child for _, child in edges})
    remote_parents.follow(cx, (parent for parent, _ in edges))
    recount(cx, children)
    settle(cx, children, now_us)


def recount(cx: sqlite3.Connection, jobs: Iterable[int]) -> None:
    """Recompute `unfinished_parents` of `jobs`. Takes time linear in their parents."""
    cx.execute(
        f"UPDATE job SET unfinished_parents = {UNFINISHED_PARENTS} WHERE id IN (SELECT value FROM json_each(?))",
        (id_list(jobs),),
    )


def descendants(cx: sqlite3.Connection, jobs: Iterable[int]) -> list[int]:
    """Return all descendants of `jobs`; one of `jobs` is included only if it is a descendant of another."""
    query = f"""WITH RECURSIVE below (id) AS (
            SELECT child FROM dependency WHERE parent IN (SELECT value FROM json_each(?)) AND {visible("child")}
            UNION SELECT dependency.child FROM dependency JOIN below ON dependency.parent = below.id)
        SELECT id FROM below"""
    return [row[0] for row in cx.execute(query, (id_list(jobs),))]


def find_cycle(edges: Iterable[tuple[int, int]], of: int | None = None) -> list[int]:
    """Return the jobs on a cycle of these (parent, child) pairs, [] if there is none.

    With `of`, search from that job upwards. The store never admits a cycle; this function checks. Takes time linear in the
    edges. Pure.
    """
    parents: dict[int, list[int]] = {}
    for parent, child in edges:
        parents.setdefault(child, []).append(parent)
    done: set[int] = set()
    for start in list(parents) if of is None else [of]:
        way: dict[int, None] = {}  # from `start` upwards to where the walk is, in order
        stack = [(start, iter(parents.get(start, ())))] if start not in done else []
        while stack:
            job, above = stack[-1]
            way[job] = None
            for parent in above:
                if parent in way:
                    return list(way)[list(way).index(parent) :]
                if parent not in done:
                    stack.append((parent, iter(parents.get(parent, ()))))
                    break
            else:
                stack.pop()
                way.popitem()
                done.add(job)
    return []


# --- what a parent's end means ----------------------------------------------------------------------------------------


def settle(cx: sqlite3.Connection, jobs: Iterable[int], now_us: int) -> None:
    """Let jobs that no launcher holds wait for their parents, fail with them, or go on, according to their present counts."""
    rows = cx.execute(
        f"""SELECT id, state, unfinished_parents, {CAUSE} FROM job
            WHERE id IN (SELECT value FROM json_each(?)) AND lease IS NULL AND state IN ({sql_list(_RECONSIDERED)})
                AND (unfinished_parents > 0 OR state = '{states.AWAITING_PARENTS}')""",
        (id_list(jobs),),
    ).fetchall()
    waits, ready, failed = [], [], []
    for job, state, unfinished, cause in rows:
        if not unfinished:
            ready.append(Transition(job, (state, states.READY), now_us))
        elif state != states.AWAITING_PARENTS:
            words = () if state == states.CREATED else (PARENT_UNFINISHED,)
            waits.append(Transition(job, (state, states.AWAITING_PARENTS), now_us, words))
        if cause is not None:
            failed.append((job, cause))
    apply(cx, waits, states.STEP)
    remote_parents.follow_parents_of(cx, [move.job for move in waits])
    apply(cx, ready, states.STEP)
    fail(cx, failed, now_us)


def propagate(cx: sqlite3.Connection, finished: Sequence[int], lost: Sequence[int], now_us: int) -> None:
    """Release or fail the children of jobs that have just ended, and then the children of those that fail.

    Call it once for each end: when the job is in its end state and no launcher holds it.

    Args:
        finished: jobs that are JOB_FINISHED now.
        lost: jobs that are FAILED or USER_KILLED now.
    """
    fail(cx, _propagate(cx, finished, lost, now_us), now_us)


def fail(cx: sqlite3.Connection, failed: Sequence[tuple[int, int]], now_us: int, reason: str = PARENT_FAILED) -> None:
    """Fail waiting jobs, given as (job, parent that caused it), and then the jobs that cannot run without them."""
    path = (states.AWAITING_PARENTS, states.FAILED)
    done = 0
    while failed:
        done += len(failed)
        if done > large_writes.MAX_DIRECT_JOBS and reason == PARENT_FAILED:
            large_writes.defer_children(cx, [job for job, _ in failed])
            return
        cause = _CAUSES[reason]
        there = {parent: _remote_reason(cx, parent) for parent in {parent for _, parent in failed} if parent < 0}
        moves = [
            Transition(job, path, now_us, (there.get(parent, reason),), (f'{{"parent":{parent}}}',), cause)
            for job, parent in failed
        ]
        apply(cx, moves, states.STEP)
        failed, reason = _propagate(cx, [], [job for job, _ in failed], now_us), PARENT_FAILED


def _remote_reason(cx: sqlite3.Connection, parent: int) -> str:
    found = remote_parents.find(cx, parent)
    return f"Its parent {found.label} at the site {found.site} is {found.state}" if found else PARENT_FAILED


def note_remote(cx: sqlite3.Connection, site: int, jobs: Iterable[Mapping[str, Any]], now_us: int) -> list[MissingFiles]:
    """Store the states of parents as their site has told them, and let their children go on, fail or wait accordingly.

    Return the files that have to be copied before a parent's end counts. `jobs` are those of `remote_parents.store`.
    """
    seen = remote_parents.store(cx, site, jobs)
    if seen.changed:
        reconsider_children(cx, seen.changed, now_us)
    remote_parents.answered(cx, site, now_us)
    return seen.missing


def _propagate(cx: sqlite3.Connection, finished: Sequence[int], lost: Sequence[int], now_us: int) -> list[tuple[int, int]]:
    """Count these ends and release the children that wait for nothing else. Return (job, parent) for those that cannot run.

    A very large number of children is left to `pieces`: they wait until then.
    """
    ended = id_list((*finished, *lost))
    edges = "SELECT 1 FROM dependency WHERE parent IN (SELECT value FROM json_each(?)) LIMIT ?"
    (children,) = cx.execute(f"SELECT count(*) FROM ({edges})", (ended, large_writes.MAX_DIRECT_JOBS + 1)).fetchone()
    if not children:
        return []
    if children > large_writes.MAX_DIRECT_JOBS:
        large_writes.defer_children(cx, children_of(cx, (*finished, *lost)))
        return []
    if finished:
        _subtract_finished(cx, id_list(finished))
    if lost:
        _subtract_lost(cx, id_list(lost))
    if finished or lost:
        ready = _waiting_children(cx, (*finished, *lost), "job.unfinished_parents = 0")
        apply(cx, [Transition(job, (states.AWAITING_PARENTS, states.READY), now_us) for job, _ in ready], states.STEP)
    doomed = "(job.run_when = 'all_finished' OR job.run_when = 'any_finished' AND job.unfinished_parents = 1)"
    return _waiting_children(cx, lost, f"job.unfinished_parents > 0 AND {doomed}") if lost else []


def _subtract_finished(cx: sqlite3.Connection, finished: str) -> None:
    rows = cx.execute(
        "SELECT child, count(*) FROM dependency WHERE parent IN (SELECT value FROM json_each(?)) GROUP BY child",
        (finished,),
    ).fetchall()
    cx.executemany(
        """UPDATE job SET unfinished_parents = CASE run_when WHEN 'any_finished' THEN 0 ELSE unfinished_parents - ? END
            WHERE id = ? AND wait_for_parents""",
        [(n, job) for job, n in rows],
    )


def _subtract_lost(cx: sqlite3.Connection, lost: str) -> None:
    """Subtract lost parents from the counts of their children, except where all parents have to finish."""
    rows = cx.execute(
        """SELECT child, count(*) FROM dependency CROSS JOIN job ON job.id = dependency.child
            WHERE dependency.parent IN (SELECT value FROM json_each(?))
                AND job.run_when <> 'all_finished' AND job.unfinished_parents > 0 GROUP BY child""",
        (lost,),
    ).fetchall()
    cx.executemany("UPDATE job SET unfinished_parents = unfinished_parents - ? WHERE id = ?", [(n, job) for job, n in rows])


def _waiting_children(cx: sqlite3.Connection, parents: Iterable[int], condition: str) -> list[tuple[int, int]]:
    """Return the jobs in AWAITING_PARENTS below `parents` for which `condition` holds, each with one of these parents."""
    return cx.execute(
        f"""SELECT job.id, min(dependency.parent) FROM dependency CROSS JOIN job ON job.id = dependency.child
            WHERE dependency.parent IN (SELECT value FROM json_each(?)) AND job.lease IS NULL
                AND job.state = '{states.AWAITING_PARENTS}' AND {condition} GROUP BY job.id""",
        (id_list(parents),),
    ).fetchall()


def released(cx: sqlite3.Connection, jobs: Iterable[tuple[int, str]], now_us: int) -> None:
    """Update the graph when no launcher holds `jobs` any more, each given with its present state.

    Ends are propagated to children; jobs that could start wait for a parent that was put back meanwhile.
    """
    by_state: dict[str, list[int]] = {}
    for job, state in jobs:
        by_state.setdefault(state, []).append(job)
    finished = by_state.get(states.JOB_FINISHED, [])
    propagate(cx, finished, [job for state in _LOST_STATES for job in by_state.get(state, ())], now_us)
    unstarted = [job for state in _RECONSIDERED for job in by_state.get(state, ())]
    if unstarted:
        settle(cx, unstarted, now_us)


def reconsider_children(cx: sqlite3.Connection, parents: Iterable[int], now_us: int) -> None:
    """Update the children of jobs that a user has put into another state, an earlier or a later one.

    Children that have not started, or that failed only because of these parents, wait again, and so do their children. Those
    that run or have run stay as they are. A very large number of children is left to `pieces`: none is claimed until then.
    """
    reconsider(cx, children_of(cx, parents), now_us)


def reconsider(cx: sqlite3.Connection, below: Sequence[int], now_us: int) -> None:
    """Update jobs whose parents have changed, as `reconsider_children` and `propagate` do if there are few children."""
    children: set[int] = set()
    while below:
        if len(below) + len(children) > large_writes.MAX_DIRECT_JOBS:
            large_writes.defer_children(cx, below)
            break
        recount(cx, below)
        children.update(below)
        revived = _revive(cx, below, now_us)
        below = children_of(cx, revived) if revived else []
    if children:
        settle(cx, children, now_us)


def children_of(cx: sqlite3.Connection, parents: Iterable[int]) -> list[int]:
    """Return the children of these jobs, each once."""
    query = "SELECT DISTINCT child FROM dependency WHERE parent IN (SELECT value FROM json_each(?))"
    return [row[0] for row in cx.execute(query, (id_list(parents),))]


def _revive(cx: sqlite3.Connection, jobs: Sequence[int], now_us: int) -> list[int]:
    """Let those of `jobs` wait again that failed because of a parent that is no longer lost. Return them."""
    rows = cx.execute(
        f"""SELECT job.id FROM job WHERE job.id IN (SELECT value FROM json_each(?)) AND {FAILED_WITH_PARENT}
                AND job.lease IS NULL AND {CAUSE} IS NULL""",
        (id_list(jobs),),
    ).fetchall()
    path = (states.FAILED, states.AWAITING_PARENTS)
    apply(cx, [Transition(row[0], path, now_us, ("The failed parent was started again",)) for row in rows], states.USER)
    return [row[0] for row in rows]
