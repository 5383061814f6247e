"""Collect what the setting ON_EVENT is to be told: failed jobs, finished workflows, launches, a DB in which nothing runs.

One row of `meta` holds what nothing has been told of yet. Each launcher and the service looks at the new events in its write
transactions, adds to that row, and takes from it what is due. So each thing is told once, however many launchers run; many
failures are one notification; and what a launcher did not tell before it died, the next one tells.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ...core import causes as causes_of_failure
from ...core import states
from ...core.clock import SECOND_US
from ..engine.schema import sql_list
from ..query import queries

JOB_FAILED, WORKFLOW_FINISHED, STUCK = "job-failed", "workflow-finished", "stuck"
LAUNCH_STARTED, LAUNCH_ENDED = "launch-started", "launch-ended"
#: All kinds, in the order in which they are told. At the end of a launcher there may be no time for the last ones.
KINDS = (WORKFLOW_FINISHED, JOB_FAILED, STUCK, LAUNCH_ENDED, LAUNCH_STARTED)

_KEY = "notifications"
#: Maximum number of examples and of causes in one notification, and of characters in a text of these.
_MAX_EXAMPLES, _MAX_CAUSES, _MAX_TEXT = 5, 10, 200
#: Maximum number of events to look at in one transaction.
_MAX_EVENTS = 5000
#: What happens shortly after the first thing is told with it.
WINDOW_US = 2 * SECOND_US
#: If nothing has looked at the events for this long, those of that time are not told: they are old news.
_STALE_US = 600 * SECOND_US


class Pending(NamedTuple):
    """What happened of one kind and was not told yet."""

    kind: str
    since_us: int
    number: int  # of jobs, workflows or launches
    causes: dict[str, int]  # of failures
    examples: list[dict[str, Any]]

    def plus(self, examples: Iterable[Mapping[str, Any]], causes: Mapping[str, int], count: int) -> Pending:
        """Return this with `count` more of the same kind, some of them as examples."""
        kept = [*self.examples, *map(_short, examples)][:_MAX_EXAMPLES]
        found = Counter(self.causes)
        for cause, number in causes.items():
            cause = cause[:_MAX_TEXT]
            found[cause if cause in found or len(found) < _MAX_CAUSES else causes_of_failure.OTHER] += number
        return self._replace(number=self.number + count, causes=dict(found.most_common()), examples=kept)


class Due(NamedTuple):
    """What to tell now, and when there may be more: in microseconds since the epoch; None: not by itself."""

    pending: list[Pending]
    next_us: int | None


def look(cx: sqlite3.Connection, now_us: int, stuck_after_us: int, found: Iterable[tuple[str, Mapping[str, Any]]] = ()) -> bool:
    """Add to what is pending: `found` by the caller, as (kind, example), and what the new events tell.

    Return whether there are more events to look at.

    Args:
        stuck_after_us: for how long nothing runs in a DB that is stuck; 0: it never is.
    """
    state = _Outbox.of(cx)
    for kind, example in found:
        state.add(kind, now_us, [example])
    is_behind = state.read_events(cx, now_us)
    state.look_whether_stuck(cx, now_us, stuck_after_us)
    state.write(cx)
    return is_behind


def add(cx: sqlite3.Connection, kind: str, example: Mapping[str, Any], now_us: int) -> None:
    """Add one thing to what is pending."""
    state = _Outbox.of(cx)
    state.add(kind, now_us, [example])
    state.write(cx)


def take(cx: sqlite3.Connection, now_us: int, interval_us: int, ends: bool = False) -> Due:
    """Take what is due from what is pending: each kind at most once per interval, and shortly after the first of its kind.

    With `ends` the caller is about to end, and no other process would tell it: all is due.
    """
    state = _Outbox.of(cx)
    due, later = [], []
    for kind in KINDS:
        pending = state.pending.get(kind)
        if pending is None:
            continue
        due_us = max(pending.since_us + WINDOW_US, state.told.get(kind, 0) + interval_us)
        if ends or due_us <= now_us or pending.since_us > now_us:  # the clock was set back
            due.append(state.pending.pop(kind))
            state.told[kind] = now_us
        else:
            later.append(due_us)
    if due:
        state.write(cx)
    return Due(due, min(later, default=None))


def forget(cx: sqlite3.Connection) -> None:
    """Forget all that is pending: this DB is a copy, whose original tells it."""
    cx.execute("DELETE FROM meta WHERE key = ?", (_KEY,))


class _Outbox:
    """The row of `meta`."""

    def __init__(self, stored: Mapping[str, Any]) -> None:
        self._before = json.dumps(stored)
        self.event: int | None = stored.get("event")  # the last one that was looked at
        self.looked_us: int = stored.get("looked", 0)
        self.active_us: int = stored.get("active", 0)  # when something ran, or nothing waited
        self.is_stuck: bool = stored.get("stuck", False)  # and that was told
        self.told: dict[str, int] = stored.get("told", {})
        self.pending = {kind: Pending(kind, *rest) for kind, *rest in stored.get("pending", ())}

    @classmethod
    def of(cls, cx: sqlite3.Connection) -> _Outbox:
        row = cx.execute("SELECT value FROM meta WHERE key = ?", (_KEY,)).fetchone()
        try:
            return cls(json.loads(row[0]) if row else {})
        except (ValueError, TypeError, AttributeError):  # of another version, or changed by hand
            return cls({})

    def write(self, cx: sqlite3.Connection) -> None:
        stored = {
            "event": self.event,
            "looked": self.looked_us,
            "active": self.active_us,
            "stuck": self.is_stuck,
            "told": self.told,
            "pending": list(self.pending.values()),
        }
        cx.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_KEY, json.dumps(stored)))

    def add(
        self,
        kind: str,
        now_us: int,
        examples: list[Mapping[str, Any]],
        causes: Mapping[str, int] | None = None,
        count: int | None = None,
    ) -> None:
        pending = self.pending.get(kind) or Pending(kind, now_us, 0, {}, [])
        self.pending[kind] = pending.plus(examples, causes or {}, len(examples) if count is None else count)

    # --- jobs and workflows -------------------------------------------------------------------------------------------

    def read_events(self, cx: sqlite3.Connection, now_us: int) -> bool:
        """Read the events since the last look, at most `_MAX_EVENTS`. Return whether there are more."""
        last = cx.execute("SELECT coalesce(max(id), 0) FROM event").fetchone()[0]
        is_stale = self.event is None or not now_us - _STALE_US <= self.looked_us <= now_us
        first = last if is_stale or self.event is None else min(self.event, last)  # the newest may have been removed
        if is_stale or last != self.event:
            self.active_us = now_us
        self.looked_us, self.event = now_us, min(last, first + _MAX_EVENTS)
        if first == self.event:
            return False
        rows = cx.execute(
            f"""SELECT event.to_state, job.id, job.job_id, job.name, job.workflow, coalesce(failure.cause, event.message)
            FROM event CROSS JOIN job ON job.id = event.job LEFT JOIN failure ON failure.id = job.failure
            WHERE event.id > ? AND event.id <= ? AND event.to_state IN ({sql_list(states.END_STATES)})
            AND event.from_state NOT IN ({sql_list(states.END_STATES)}) ORDER BY event.id""",
            (first, self.event),
        ).fetchall()
        failed = [row[1:] for row in rows if row[0] == states.FAILED]
        if failed:
            examples = [dict(zip(("id", "job_id", "name", "workflow", "cause"), row)) for row in failed[:_MAX_EXAMPLES]]
            causes = Counter(row[-1].partition("\n")[0] or causes_of_failure.UNKNOWN for row in failed)
            self.add(JOB_FAILED, now_us, list(examples), causes, len(failed))
        for workflow in dict.fromkeys(row[4] for row in rows):
            counts = queries.count_workflow(cx, workflow)
            if counts and counts.keys() <= set(states.END_STATES):
                self.add(WORKFLOW_FINISHED, now_us, [{"workflow": workflow, "states": counts}])
        return self.event < last

    # --- nothing runs -------------------------------------------------------------------------------------------------

    def look_whether_stuck(self, cx: sqlite3.Connection, now_us: int, stuck_after_us: int) -> None:
        counts = dict(cx.execute("SELECT state, jobs FROM state_count WHERE jobs > 0"))
        waiting = sum(jobs for state, jobs in counts.items() if state not in states.END_STATES)
        if not waiting or queries.is_any_held(cx) or self.active_us > now_us:
            self.active_us = now_us
        if self.active_us == now_us:
            self.is_stuck = False
        elif stuck_after_us and not self.is_stuck and now_us - self.active_us >= stuck_after_us:
            self.is_stuck = True
            self.add(STUCK, now_us, [{"waiting": waiting, "idle_s": (now_us - self.active_us) // SECOND_US}])


def _short(example: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value[:_MAX_TEXT] if isinstance(value, str) else value for key, value in example.items()}
