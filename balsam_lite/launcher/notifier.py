"""Tell the setting ON_EVENT what happens in a DB, from within the turns of a launcher or of the service."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..core import states
from ..core.clock import SECOND_US, Clock, iso_us, spoken
from ..core.errors import DatabaseError
from ..core.event_hook import HookProcess
from ..core.settings import Settings
from ..db.engine.connection import Connection, Database
from ..db.query import reasons
from ..db.query.reasons import Surroundings
from ..db.store import leases, notifications
from ..db.store.notifications import Pending

log = logging.getLogger(__name__)

#: Minimum seconds between two looks at the new events of a DB.
_LOOK_PERIOD_S = 1.0
#: Seconds to wait at the end of a launcher or service for a call under way before the last one.
_LAST_BUT_ONE_TIMEOUT_S = 1.0
#: Seconds in which the reason is looked for why nothing runs.
_REASONS_BUDGET_S = 0.5
#: Maximum number of names in one sentence.
_MAX_NAMES = 3

#: The key of the list of examples in the JSON of each kind.
EXAMPLES = {
    notifications.JOB_FAILED: "jobs",
    notifications.WORKFLOW_FINISHED: "workflows",
    notifications.LAUNCH_STARTED: "launches",
    notifications.LAUNCH_ENDED: "launches",
}


class Notifier:
    """The notifications of one DB, as one launcher or the service sends them. Without ON_EVENT nothing happens.

    `look` is called in a write transaction, `send` when that is committed. Nothing blocks but `close`, for ON_EVENT_END_S.

    Args:
        surroundings: returns what could run jobs, to tell why nothing runs; None: what the DB alone tells.
    """

    def __init__(
        self, db: Database, settings: Settings, clock: Clock, surroundings: Callable[[Connection], Surroundings] | None = None
    ) -> None:
        self._db, self._settings, self._clock = db, settings, clock
        self._surroundings = surroundings or self._seen_in_db
        self._hook = HookProcess(settings.ON_EVENT, settings.ON_EVENT_TIMEOUT_S) if settings.ON_EVENT else None
        self._found: list[tuple[str, Mapping[str, Any]]] = []  # to be added in the next transaction
        self._taken: list[Pending] = []  # in the transaction that is not committed yet
        self._look_at = clock.monotonic()
        self._due_at = float("inf")
        self._has_looked = False  # in the transaction that is not committed yet
        self._is_behind = False  # there are more events than were looked at

    def add(self, kind: str, example: Mapping[str, Any]) -> None:
        """Add something that happened; the next `look` records it."""
        if self._hook is not None:
            self._found.append((kind, example))

    @property
    def wakes_at(self) -> float:
        """Return when the next `look` should be, on the monotonic clock."""
        return max(self._look_at, self._due_at)

    def look(self, cx: Connection, ends: bool = False) -> None:
        """Record what happened, and take what is to be told now. With `ends` the caller ends and has closed its lease."""
        self._taken, self._has_looked = [], False
        now = self._clock.monotonic()
        if self._hook is None or (now < self._look_at and not ends):
            return
        now_us, settings = self._clock.now_us(), self._settings
        stuck_after_us = int(settings.STUCK_AFTER_S * SECOND_US)
        self._has_looked = True
        self._is_behind = notifications.look(cx, now_us, stuck_after_us, self._found)
        while self._is_behind and ends:
            self._is_behind = notifications.look(cx, now_us, stuck_after_us)
        if self._hook.is_busy and not ends:
            due_at = self._look_at + _LOOK_PERIOD_S
        else:
            is_last = ends and not leases.any_at_work(cx, now_us, settings.LEASE_EXPIRY_S)
            due = notifications.take(cx, now_us, int(settings.ON_EVENT_INTERVAL_S * SECOND_US), is_last)
            self._taken = due.pending
            due_at = float("inf") if due.next_us is None else now + (due.next_us - now_us) / SECOND_US
        self._due_at = now if self._is_behind else due_at

    def send(self) -> None:
        """Call ON_EVENT for what the committed `look` has taken, and log the calls that failed."""
        if self._hook is None:
            return
        if self._hook.is_busy:
            self._log(self._hook.poll())
        if self._has_looked:
            self._look_at = self._clock.monotonic() + (0.0 if self._is_behind else _LOOK_PERIOD_S)
            self._has_looked, self._found = False, []
        if self._taken:
            taken, self._taken = self._taken, []
            self._log(self._hook.close(_LAST_BUT_ONE_TIMEOUT_S))  # busy only at the end
            for pending in taken:
                if pending.kind == notifications.STUCK:
                    pending.examples[-1]["reason"] = self._why_stuck()
            now_us = self._clock.now_us()
            trouble = self._hook.start([composed(pending, self._db.directory, now_us) for pending in taken])
            self._log([trouble] if trouble else [])

    def close(self) -> None:
        """Wait a moment for the calls under way, then end them."""
        if self._hook is not None:
            self._log(self._hook.close(self._settings.ON_EVENT_END_S))

    def _why_stuck(self) -> str:
        """Return why most of the waiting jobs wait; "" if that is unknown."""
        try:
            with self._db.read() as cx:
                groups = reasons.explain_jobs(cx, {}, self._surroundings(cx), _REASONS_BUDGET_S)
        except DatabaseError:
            return ""
        return str(groups[0].reason) if groups else ""

    def _seen_in_db(self, cx: Connection) -> Surroundings:
        return reasons.surroundings(cx, self._clock.now_us(), self._settings.LEASE_EXPIRY_S)

    def _log(self, lines: Sequence[str]) -> None:
        for line in lines:
            log.warning("%s", line)


def composed(pending: Pending, db_directory: str, now_us: int) -> dict[str, Any]:
    """Return a notification: what ON_EVENT gets on its stdin. `docs/json.rst` documents the keys."""
    notification: dict[str, Any] = {
        "event": pending.kind,
        "text": described(pending),
        "db": db_directory,
        "host": os.uname().nodename,
        "time": iso_us(now_us),
        "since": iso_us(pending.since_us),
        "count": pending.number,
    }
    if pending.kind == notifications.JOB_FAILED:
        notification["causes"] = pending.causes
    if pending.kind in EXAMPLES:
        notification[EXAMPLES[pending.kind]] = pending.examples
    else:
        notification.update(pending.examples[-1])
    return notification


# --- words ------------------------------------------------------------------------------------------------------------


def described(pending: Pending) -> str:
    """Return what happened in a sentence.

    >>> jobs = [{"job_id": "1b2c3d4e-0000-4000-8000-000000000000", "name": "relax_12", "workflow": "w1"}]
    >>> described(Pending("job-failed", 0, 3, {"exit code 1": 2, "signal 9 (SIGKILL)": 1}, jobs))
    '3 jobs failed: exit code 1 (2), signal 9 (SIGKILL) (1); the first is relax_12 [1b2c3d4e] of workflow w1'
    """
    return _SENTENCES[pending.kind](pending)


def _failed(pending: Pending) -> str:
    first = pending.examples[0]
    workflow = f" of workflow {first['workflow']}" if first["workflow"] else ""
    job = f"{first['name'] or 'unnamed'} [{first['job_id'][:8]}]{workflow}"
    if pending.number == 1:
        return f"Job {job} failed: {next(iter(pending.causes))}"
    return f"{pending.number} jobs failed: {counted(pending.causes)}; the first is {job}"


def _finished(pending: Pending) -> str:
    names = [str(one["workflow"]) or "(jobs without a workflow)" for one in pending.examples]
    if pending.number == 1:
        counts = ", ".join(f"{number} {state}" for state, number in pending.examples[0]["states"].items())
        return f"Workflow {names[0]} has finished: {counts}"
    return f"{pending.number} workflows have finished: {_listed(names, pending.number)}"


def _launched(pending: Pending) -> str:
    hosts = [str(one["host"]) for one in pending.examples]
    if pending.number > 1:
        return f"{pending.number} launchers started, on {_listed(list(dict.fromkeys(hosts)), len(set(hosts)))}"
    one = pending.examples[0]
    launch = f", {one['launch']}" if one["launch"] else ""
    return f"Launcher {one['launcher']} started on {hosts[0]}: {one['nodes']} node(s), {one['job_mode']} mode{launch}"


def _ended(pending: Pending) -> str:
    ends = [str(one["reason"]) for one in pending.examples]
    if pending.number > 1:
        return f"{pending.number} launches ended: {_listed(list(dict.fromkeys(ends)), len(set(ends)))}"
    one = pending.examples[0]
    who = f"Launcher {one['launcher']} on {one['host']}" if one.get("launcher") else str(one["launch"])
    counts = ", ".join(f"{number} {state}" for state, number in one.get("states", {}).items())
    left = sum(one.get("left", {}).values())
    return f"{who} ended: {ends[0]}{counts and f'; {counts}'}{f'; {left} job(s) left' if left else ''}"


def _stuck(pending: Pending) -> str:
    one = pending.examples[-1]
    reason = f": {one['reason']}" if one.get("reason") else ""
    return f"Nothing has run for {spoken(one['idle_s'])} though {one['waiting']} job(s) wait{reason}"


_SENTENCES = {
    notifications.JOB_FAILED: _failed,
    notifications.WORKFLOW_FINISHED: _finished,
    notifications.LAUNCH_STARTED: _launched,
    notifications.LAUNCH_ENDED: _ended,
    notifications.STUCK: _stuck,
}


def counted(numbers: Mapping[str, int]) -> str:
    """Return the words with their numbers: `exit code 1 (2), signal 9 (SIGKILL) (1)`."""
    return ", ".join(f"{word} ({number})" for word, number in numbers.items())


def _listed(names: Sequence[str], count: int) -> str:
    shown = ", ".join(names[:_MAX_NAMES])
    rest = count - min(len(names), _MAX_NAMES)
    return f"{shown} and {rest} more" if rest > 0 else shown


def sample(kind: str, now_us: int) -> Pending:
    """Return an example of a kind of notification, to try ON_EVENT with."""
    job = {"id": 1, "job_id": "00000000-0000-4000-8000-000000000000", "name": "example", "workflow": "test"}
    counts = {states.JOB_FINISHED: 9, states.FAILED: 1}
    launcher = {"launcher": 1, "host": os.uname().nodename, "launch": "", "nodes": 1, "job_mode": "serial"}
    examples: dict[str, dict[str, Any]] = {
        notifications.JOB_FAILED: {**job, "cause": "exit code 1"},
        notifications.WORKFLOW_FINISHED: {"workflow": "test", "states": counts},
        notifications.LAUNCH_STARTED: launcher,
        notifications.LAUNCH_ENDED: {**launcher, "reason": "every job has ended", "states": counts, "left": {}},
        notifications.STUCK: {"waiting": 1, "idle_s": 3600, "reason": "no launcher runs and none is queued"},
    }
    causes = {"exit code 1": 1} if kind == notifications.JOB_FAILED else {}
    return Pending(kind, now_us, 1, causes, [examples[kind]])
