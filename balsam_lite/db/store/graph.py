"""Dependencies between jobs: edges, cycles, and what a parent's end means for its children.

`job.unfinished_parents` is the number of parents that are not JOB_FINISHED; 0 if the job does not
wait for its parents. It is kept here and nowhere else, so that a parent's end costs its children a subtraction and a
waiting job costs nothing. All functions run inside the caller's write transaction.

`CROSS JOIN` is SQLite's way to fix the order of a join: from the few edges to their jobs. Left to itself it reads all jobs
in the state that is asked for, of which there may be a million.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from ... import states
from ...errors import DependencyCycle, DuplicateDependency, StateError, UnknownJob
from ..schema import sql_list
from .moves import Move, id_list, move

PARENT_FAILED = "One or more parent jobs failed"

_UNSTARTED = (states.CREATED, states.AWAITING_PARENTS, states.READY, states.STAGED_IN, states.PREPROCESSED)

#: A job whose last event says which parent's end made it fail.
_FAILED_WITH_PARENT = f"""job.state = '{states.FAILED}' AND (
    SELECT json_extract(data, '$.parent') FROM event WHERE event.job = job.id ORDER BY event.id DESC LIMIT 1) IS NOT NULL"""


def add_dependency(cx: sqlite3.Connection, parent: int, child: int, now_us: int) -> None:
    """Make `child` wait for `parent`.

    Takes time linear in the edges below `child`.

    Raises:
        UnknownJob, DuplicateDependency, DependencyCycle: nothing is written. StateError: the child has started already, or
        a launcher prepares it.
    """
    if parent == child:
        raise DependencyCycle("A job cannot wait for itself: that would be a circular dependency.")
    _check_exist(cx, {parent, child})
    if cx.execute("SELECT 1 FROM dependency WHERE parent = ? AND child = ?", (parent, child)).fetchone():
        raise DuplicateDependency("Dependency already exists; cannot double-create")
    if _is_below(cx, child, parent):
        raise DependencyCycle("Detected circular dependency; not creating link")
    _check_unstarted(cx, child)
    add_edges(cx, [(parent, child)], now_us)


def _check_exist(cx: sqlite3.Connection, jobs: set[int]) -> None:
    found = cx.execute("SELECT id FROM job WHERE id IN (SELECT value FROM json_each(?))", (id_list(jobs),))
    missing = sorted(jobs - {row[0] for row in found})
    if missing:
        raise UnknownJob(f"There is no job number {missing[0]} in this DB (any more).")


def _check_unstarted(cx: sqlite3.Connection, child: int) -> None:
    state, attempt, lease = cx.execute("SELECT state, attempt, lease FROM job WHERE id = ?", (child,)).fetchone()
    if attempt or state not in _UNSTARTED:
        raise StateError(f"The child has already started (it is {state}); a parent added now would have no effect.")
    if lease is not None:
        raise StateError(f"The child is being prepared by launcher {lease}; a parent added now would come too late.")


def set_parents(cx: sqlite3.Connection, child: int, parents: Iterable[int], now_us: int) -> None:
    """Let `child` wait for `parents` and for no other job. One that failed only because of a parent waits again.

    Takes time linear in the edges below `child`.

    Raises:
        UnknownJob, DependencyCycle; StateError: the child has started, or a launcher prepares it. Nothing is written.
    """
    wanted = set(parents)
    _check_exist(cx, {child, *wanted})
    if child in wanted:
        raise DependencyCycle("A job cannot wait for itself: that would be a circular dependency.")
    if wanted and not wanted.isdisjoint(descendants(cx, [child])):
        raise DependencyCycle("Detected circular dependency; the parents stay as they are")
    is_lost = cx.execute(f"SELECT 1 FROM job WHERE id = ? AND {_FAILED_WITH_PARENT}", (child,)).fetchone() is not None
    if not is_lost:
        _check_unstarted(cx, child)
    cx.execute("DELETE FROM dependency WHERE child = ?", (child,))
    cx.executemany("INSERT INTO dependency (parent, child) VALUES (?, ?)", [(parent, child) for parent in sorted(wanted)])
    recount(cx, [child])
    if is_lost:
        move(cx, [Move(child, (states.FAILED, states.AWAITING_PARENTS), now_us, ("It has other parents now",))], states.USER)
        revive_children(cx, [child], now_us)
    wait_for_parents(cx, [child], now_us)


def add_edges(cx: sqlite3.Connection, edges: Sequence[tuple[int, int]], now_us: int) -> None:
    """Add (parent, child) pairs that cannot close a cycle, such as those of children that were just created."""
    cx.executemany("INSERT OR IGNORE INTO dependency (parent, child) VALUES (?, ?)", edges)
    children = sorted({child for _, child in edges})
    recount(cx, children)
    wait_for_parents(cx, children, now_us)


def recount(cx: sqlite3.Connection, children: Iterable[int]) -> None:
    """Count the unfinished parents of `children` afresh."""
    cx.execute(
        f"""UPDATE job SET unfinished_parents = wait_for_parents * (
                SELECT count(*) FROM dependency d JOIN job p ON p.id = d.parent
                WHERE d.child = job.id AND p.state <> '{states.JOB_FINISHED}')
            WHERE id IN (SELECT value FROM json_each(?))""",
        (id_list(children),),
    )


def _is_below(cx: sqlite3.Connection, top: int, wanted: int) -> bool:
    query = """WITH RECURSIVE below (id) AS (
            SELECT ? UNION SELECT dependency.child FROM dependency JOIN below ON dependency.parent = below.id)
        SELECT 1 FROM below WHERE id = ?"""
    return cx.execute(query, (top, wanted)).fetchone() is not None


def descendants(cx: sqlite3.Connection, jobs: Iterable[int]) -> list[int]:
    """All jobs below `jobs`, without themselves unless one is below another."""
    query = """WITH RECURSIVE below (id) AS (
            SELECT child FROM dependency WHERE parent IN (SELECT value FROM json_each(?))
            UNION SELECT dependency.child FROM dependency JOIN below ON dependency.parent = below.id)
        SELECT id FROM below"""
    return [row[0] for row in cx.execute(query, (id_list(jobs),))]


def find_cycle(edges: Iterable[tuple[int, int]], of: int | None = None) -> list[int]:
    """The jobs on a cycle of these (parent, child) pairs, [] if there is none.

    With `of` it is looked for from that job upwards. The store admits none; this is for who wants to be sure. Takes time
    linear in the edges. Pure.
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


def wait_for_parents(cx: sqlite3.Connection, jobs: Iterable[int], now_us: int, *, held: bool = False) -> None:
    """Let jobs that have not started wait for their parents, or fail with them, or go on, whichever is true now.

    What a launcher holds is left alone, unless `held`.
    """
    rows = cx.execute(
        f"""SELECT id, state, unfinished_parents, (
                SELECT p.id FROM dependency d JOIN job p ON p.id = d.parent
                WHERE d.child = job.id AND p.state IN ('{states.FAILED}', '{states.USER_KILLED}') LIMIT 1)
            FROM job WHERE id IN (SELECT value FROM json_each(?)) AND wait_for_parents AND (lease IS NULL OR ?)
                AND state IN ({sql_list(_UNSTARTED)})""",
        (id_list(jobs), held),
    ).fetchall()
    waits, ready, failed = [], [], []
    for job, state, unfinished, failed_parent in rows:
        if failed_parent is not None:
            failed.append(failed_parent)
        if unfinished and state != states.AWAITING_PARENTS:
            waits.append(Move(job, (state, states.AWAITING_PARENTS), now_us))
        elif not unfinished and state == states.AWAITING_PARENTS:
            ready.append(Move(job, (state, states.READY), now_us))
    # Adding a parent to a job that is prepared already is the user's doing; the steps only ever go from CREATED.
    move(cx, [m for m in waits if m.path[0] == states.CREATED], states.STEP)
    move(cx, [m for m in waits if m.path[0] != states.CREATED], states.USER)
    move(cx, ready, states.STEP)
    parents_failed(cx, failed, now_us)


def parents_finished(cx: sqlite3.Connection, parents: Iterable[int], now_us: int) -> int:
    """Promote the children of jobs that have just become JOB_FINISHED. Returns how many became READY."""
    listed = id_list(parents)
    _adjust(cx, listed, -1)
    rows = cx.execute(
        f"""SELECT DISTINCT job.id FROM dependency CROSS JOIN job ON job.id = dependency.child
            WHERE dependency.parent IN (SELECT value FROM json_each(?))
                AND job.state = '{states.AWAITING_PARENTS}' AND job.unfinished_parents = 0""",
        (listed,),
    ).fetchall()
    move(cx, [Move(row[0], (states.AWAITING_PARENTS, states.READY), now_us) for row in rows], states.STEP)
    return len(rows)


def parents_unfinished(cx: sqlite3.Connection, parents: Iterable[int]) -> None:
    """Take back what `parents_finished` counted: the user lets finished jobs run again."""
    _adjust(cx, id_list(parents), 1)


def _adjust(cx: sqlite3.Connection, parents: str, by: int) -> None:
    rows = cx.execute(
        "SELECT child, count(*) FROM dependency WHERE parent IN (SELECT value FROM json_each(?)) GROUP BY child",
        (parents,),
    ).fetchall()
    cx.executemany(
        f"UPDATE job SET unfinished_parents = unfinished_parents + {by} * ? WHERE id = ? AND wait_for_parents",
        [(n, job) for job, n in rows],
    )


def parents_failed(cx: sqlite3.Connection, parents: Iterable[int], now_us: int, reason: str = PARENT_FAILED) -> None:
    """Fail whatever waits, directly or through others, for jobs that are FAILED, USER_KILLED or about to be deleted."""
    failed = list(parents)
    while failed:
        rows = cx.execute(
            f"""SELECT job.id, min(dependency.parent) FROM dependency CROSS JOIN job ON job.id = dependency.child
                WHERE dependency.parent IN (SELECT value FROM json_each(?)) AND job.state = '{states.AWAITING_PARENTS}'
                GROUP BY job.id""",
            (id_list(failed),),
        ).fetchall()
        path = (states.AWAITING_PARENTS, states.FAILED)
        causes = [(job, f'{{"parent":{parent}}}') for job, parent in rows]
        move(cx, [Move(job, path, now_us, (reason,), (cause,)) for job, cause in causes], states.STEP)
        failed = [job for job, _ in rows]
        reason = PARENT_FAILED


def revive_children(cx: sqlite3.Connection, parents: Iterable[int], now_us: int) -> None:
    """Let children that failed only because of `parents` wait for them again, and their children likewise."""
    revived = list(parents)
    while revived:
        rows = cx.execute(
            f"""SELECT DISTINCT job.id FROM dependency CROSS JOIN job ON job.id = dependency.child
                WHERE dependency.parent IN (SELECT value FROM json_each(?)) AND {_FAILED_WITH_PARENT}
                    AND NOT EXISTS (
                        SELECT 1 FROM dependency d JOIN job p ON p.id = d.parent
                        WHERE d.child = job.id AND p.state IN ('{states.FAILED}', '{states.USER_KILLED}'))""",
            (id_list(revived),),
        ).fetchall()
        path = (states.FAILED, states.AWAITING_PARENTS)
        moves = [Move(row[0], path, now_us, ("The failed parent was started again",)) for row in rows]
        move(cx, moves, states.USER)
        revived = [row[0] for row in rows]
