"""Wiring: from what the user asked for to a running launcher, its log, its signals and its lease.

The only place of the launcher that looks at the environment, the machine and the terminal.
"""

from __future__ import annotations

import gc
import logging
import logging.handlers
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import NamedTuple

from ..clock import Clock, SystemClock
from ..db import location, queries
from ..db.connection import Database
from ..db.store import leases
from ..errors import BalsamError, InputError, LostLease
from ..identity import Holder
from ..schedulers.environ import Allocation, allocation
from ..settings import Settings
from . import commands, failpoints, machine
from .loop import Launcher, Limits
from .nodes import Pool, divide_host
from .process import Alarm, Children, end_orphans
from .reaper import reap_dead
from .runner import LocalRunner
from .spawner import Spawner
from .steps import Steps

log = logging.getLogger("balsam_lite.launcher")

_LOG_FORMAT = "%(asctime)s|%(process)d|%(levelname)8s|%(name)s:%(lineno)s] %(message)s"
_LOG_DATE = "%d-%b-%Y %H:%M:%S"

#: After the grace for the jobs, so many seconds of the batch job are kept for the last transaction.
_MARGIN_S = 5.0
#: Nodes or GPUs of one launcher. Each is an object; more would take minutes and all memory.
_MOST_PARTS = 100_000
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class LauncherOptions(NamedTuple):
    """What the command line of `balsam launcher` says."""

    job_mode: str = "serial"  # serial or mpi
    workflow_filter: str | None = None  # exact name or glob; None: all jobs
    time_limit_minutes: float = 0.0  # <= 0: ask the batch job, else no limit
    nodes: int | None = None  # virtual nodes; None: what the batch job has, else one per core
    gpus_per_node: int | None = None
    persistent: bool = False
    transition_threads: int = 0  # 0: as the settings say
    tags: tuple[tuple[str, str], ...] = ()  # only jobs that have all of them


def run_launcher(db_directory: str, options: LauncherOptions) -> int:
    """Run a launcher on this host until its work or time is used up, or a signal comes. Returns the exit code.

    0 also for a launcher that was told to stop: everything is handed back then. 1 if the lease or the DB was lost.

    Raises:
        InputError, SettingsError, DatabaseError, LaunchError: it could not start; nothing was taken.
    """
    settings = Settings.load(db_directory)
    db = location.open_database(db_directory, settings)
    failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
    batch = allocation()
    clock = SystemClock()
    pool = _pool(options, settings, batch)
    log_path = _set_up_log(db.directory, settings)
    _say(f"Started Balsam launcher [{os.getpid()}], log in {log_path}")
    freed = reap_dead(db, settings, clock)
    if freed:
        log.info("Freed %d job(s) of dead launchers.", freed)
    with db.write() as cx:
        lease = leases.open_lease(cx, "launcher", Holder.current(), batch.batch_id if batch else "", clock.now_us())
        eldest = leases.open_leases(cx)[0].id == lease
    db.keep_checkpoints(eldest)
    log.info("Lease %d: %d node(s), %s mode, on %s", lease, len(pool.nodes), options.job_mode, os.uname().nodename)
    return _run(db, settings, options, batch, pool, lease, clock)


def _run(
    db: Database,
    settings: Settings,
    options: LauncherOptions,
    batch: Allocation | None,
    pool: Pool,
    lease: int,
    clock: Clock,
) -> int:
    context = commands.make_context(db.directory, lease, len(pool.nodes), options.job_mode, os.environb)
    children = Children()
    limits = Limits(
        options.workflow_filter,
        True,  # many ranks need an MPI starter
        _end(options, batch, settings, clock),
        None if options.persistent else settings.IDLE_TTL_S,
        options.tags,
    )
    with Alarm() as alarm:

        def hear_of_quick_ends() -> None:
            if children.has_unclaimed:
                alarm.wake()

        spawner = Spawner(clock.now_us, hear_of_quick_ends)
        runner = LocalRunner(context, clock, settings.ERROR_TAIL_LINES, spawner, children)
        progress = _Progress(db)
        steps = Steps(
            context,
            spawner,
            children,
            options.transition_threads or settings.NUM_TRANSITION_THREADS,
            settings.HOOK_TIME_LIMIT_S,
            settings.USER_KILL_GRACE_S,
            alarm.wake,
        )
        launcher = Launcher(db, settings, lease, pool, runner, steps, limits, clock, progress.around(alarm.wait))
        progress.watch(launcher, runner)

        def stop(number: int, _: FrameType | None) -> None:
            launcher.stop(f"signal {signal.Signals(number).name}")

        # What is here by now stays; a loop that makes thousands of short-lived tuples a second need not look at it again.
        gc.collect()
        gc.freeze()
        for number in _STOP_SIGNALS:
            signal.signal(number, stop)
        try:
            return _guarded(launcher, spawner, db, lease, settings, clock)
        finally:
            progress.clear()


def _guarded(launcher: Launcher, spawner: Spawner, db: Database, lease: int, settings: Settings, clock: Clock) -> int:
    """Run it, and whatever happens leave no process behind."""
    try:
        launcher.run()
    except LostLease as exc:
        log.error("%s", exc)
        spawner.abandon()
        end_orphans(commands.lease_mark(db.directory, lease), settings.KILL_GRACE_S)
        return 1
    except BaseException:
        log.exception("The launcher stops because of an error of its own.")
        spawner.abandon()
        end_orphans(commands.lease_mark(db.directory, lease), settings.KILL_GRACE_S)
        raise
    for reason in launcher.why_nothing_runs():
        _say(f"Left: {reason}")
    with db.write() as cx:
        leases.close_lease(cx, lease, clock.now_us(), launcher.stop_reason)
    done, failed, timed_out = launcher.tally
    _say(f"Launcher ends ({launcher.stop_reason}): {done} done, {failed} failed, {timed_out} timed out")
    return 0


def _say(line: str) -> None:
    """Into the log, and on a terminal to the user too; elsewhere stderr has the log anyway."""
    log.info(line)
    if sys.stderr.isatty():
        sys.stderr.write(line + "\n")


# --- what it runs on --------------------------------------------------------------------------------------------------


def _pool(options: LauncherOptions, settings: Settings, batch: Allocation | None) -> Pool:
    cpus = machine.cpus()
    nodes = options.nodes or (batch.num_nodes if batch else cpus)
    if not 1 <= nodes <= _MOST_PARTS:
        raise InputError(f"The number of nodes must be from 1 to {_MOST_PARTS}, not {nodes}")
    per_node = settings.GPUS_PER_NODE if options.gpus_per_node is None else options.gpus_per_node
    if per_node * nodes > _MOST_PARTS:
        raise InputError(f"The number of GPUs must be at most {_MOST_PARTS}, not {per_node * nodes}")
    gpus = machine.gpus() if per_node < 0 else tuple(str(number) for number in range(per_node * nodes))
    if settings.CPUS_PER_NODE:
        cpus = settings.CPUS_PER_NODE * nodes
    return Pool(divide_host(nodes, cpus, gpus))


def _end(options: LauncherOptions, batch: Allocation | None, settings: Settings, clock: Clock) -> float | None:
    """When to stop, on the monotonic clock: what the user said, or what the batch job has left, whichever is first."""
    ends = []
    if options.time_limit_minutes > 0:
        ends.append(60 * options.time_limit_minutes)
    if batch and batch.ends_us is not None:
        left_s = (batch.ends_us - clock.now_us()) / 1e6
        ends.append(max(left_s - min(settings.KILL_GRACE_S + _MARGIN_S, left_s / 4), 0))
    return clock.monotonic() + min(ends) if ends else None


# --- the log ----------------------------------------------------------------------------------------------------------


def _set_up_log(db_directory: str, settings: Settings) -> str:
    """A file of its own for this launcher; on a plain stderr the same lines appear there too."""
    stamp = time.strftime("%Y-%m-%d_%H%M%S")
    path = os.path.join(db_directory, location.LOG, f"launcher_{stamp}_{os.getpid()}.log")
    formatter = logging.Formatter(_LOG_FORMAT, _LOG_DATE)
    root = logging.getLogger("balsam_lite")
    root.setLevel(_level(settings.LOG_HANDLER_LEVEL))
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        file = logging.handlers.RotatingFileHandler(
            path, maxBytes=settings.LOG_FILE_SIZE_LIMIT, backupCount=max(settings.LOG_BACKUP_COUNT, 1), encoding="utf-8"
        )
    except OSError as exc:
        raise BalsamError(f"The log {path} cannot be written: {exc}") from exc
    handlers: list[logging.Handler] = [file]
    if not sys.stderr.isatty():
        handlers.append(logging.StreamHandler())
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    logging.raiseExceptions = False  # a full disk under the log must not stop the launcher
    return path


def _level(name: str) -> int:
    level = logging.getLevelName(name.upper())
    return level if isinstance(level, int) else logging.INFO


class _Progress:
    """One live line on a terminal: done, running, waiting, failed, rate. Elsewhere nothing (the log has it all)."""

    _PERIOD_S = 0.5

    def __init__(self, db: Database) -> None:
        self._db = db
        self._shown_at = self._started = time.monotonic()
        self._on = sys.stderr.isatty()
        self._launcher: Launcher | None = None
        self._runner: LocalRunner | None = None

    def watch(self, launcher: Launcher, runner: LocalRunner) -> None:
        """Say whom to ask."""
        self._launcher, self._runner = launcher, runner

    def around(self, wait: Callable[[float], None]) -> Callable[[float], None]:
        """`wait`, with a look at the line before."""
        if not self._on:
            return wait

        def wait_and_show(seconds: float) -> None:
            if time.monotonic() - self._shown_at >= self._PERIOD_S:
                self._show()
            wait(seconds)

        return wait_and_show

    def _show(self) -> None:
        self._shown_at = time.monotonic()
        assert self._launcher is not None and self._runner is not None
        try:
            with self._db.read() as cx:
                counts = queries.state_counts(cx)
        except BalsamError:
            return
        done, failed, timed_out = self._launcher.tally
        waiting = sum(counts.get(state, 0) for state in (*queries.WAITING_STATES,))
        rate = (done + failed) / max(self._shown_at - self._started, 0.001)
        line = f"{done} done, {len(self._runner)} running, {waiting} waiting, {failed + timed_out} failed, {rate:.1f} jobs/s"
        width = os.get_terminal_size(2).columns or 80
        sys.stderr.write(f"\r{line[: width - 1]:<{width - 1}}")
        sys.stderr.flush()

    def clear(self) -> None:
        """Leave the line."""
        if self._on:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


__all__ = ["LauncherOptions", "run_launcher"]
