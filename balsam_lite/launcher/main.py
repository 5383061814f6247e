"""Wiring: from what the user asked for to a running launcher, its log, its signals and its lease.

The only place of the launcher, with `resources`, that looks at the environment, the machine and the terminal.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from ..clock import Clock, SystemClock
from ..db import location
from ..db.connection import Database
from ..db.store import leases
from ..errors import LostLease
from ..identity import Holder
from ..schedulers.environ import allocation
from ..settings import Settings
from . import commands, failpoints, logs, mpirun, resources
from .commands import Context
from .loop import Launcher, Limits
from .nodes import Pool
from .process import Alarm, Children, end_orphans
from .progress import Progress
from .reaper import reap_dead
from .resources import LauncherOptions, Resources
from .runner import LocalRunner, Runner
from .spawner import Spawner
from .steps import Steps

log = logging.getLogger("balsam_lite.launcher")

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

#: Makes what runs the jobs, of a runner for those that run on this host.
MakeRunner = Callable[[LocalRunner], Runner]


def run_launcher(db_directory: str, options: LauncherOptions) -> int:
    """Run a launcher on this host until its work or time is used up, or a signal comes. Returns the exit code.

    0 also for a launcher that was told to stop: everything is handed back then. 1 if the lease or the DB was lost.

    Raises:
        InputError, SettingsError, DatabaseError, LaunchError: it could not start; nothing was taken.
    """
    settings = Settings.load(db_directory)
    found = resources.survey(options, settings, allocation(), os.environ)
    return run_on(found, db_directory, settings, options, lambda local: local)


def run_on(found: Resources, db_directory: str, settings: Settings, options: LauncherOptions, make_runner: MakeRunner) -> int:
    """The same on these resources, with a runner of the caller's."""
    db = location.open_database(db_directory, settings)
    failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
    clock = SystemClock()
    log_path = logs.set_up(db.directory, settings)
    _say(f"Started Balsam launcher [{os.getpid()}], log in {log_path}")
    freed = reap_dead(db, settings, clock)
    if freed:
        log.info("Freed %d job(s) of dead launchers.", freed)
    batch_id = found.batch.batch_id if found.batch else ""
    with db.write() as cx:
        lease = leases.open_lease(cx, "launcher", Holder.current(), batch_id, clock.now_us())
        eldest = leases.open_leases(cx)[0].id == lease
    db.keep_checkpoints(eldest)
    log.info("Lease %d: %d node(s), %s mode, on %s", lease, len(found.nodes), options.job_mode, os.uname().nodename)
    return _run(db, settings, options, found, lease, clock, make_runner)


def _run(
    db: Database,
    settings: Settings,
    options: LauncherOptions,
    found: Resources,
    lease: int,
    clock: Clock,
    make_runner: MakeRunner,
) -> int:
    context = _context(db, lease, options, found)
    children = Children()
    with Alarm() as alarm:

        def hear_of_quick_ends() -> None:
            if children.has_unclaimed:
                alarm.wake()

        spawner = Spawner(clock.now_us, hear_of_quick_ends)
        runner = make_runner(LocalRunner(context, clock, settings.ERROR_TAIL_LINES, spawner, children))
        progress = Progress(db)
        steps = Steps(
            context,
            spawner,
            children,
            options.transition_threads or settings.NUM_TRANSITION_THREADS,
            settings.HOOK_TIME_LIMIT_S,
            settings.USER_KILL_GRACE_S,
            alarm.wake,
        )
        pool, limits = Pool(found.nodes, found.mpi_rules), _limits(options, found, settings, clock)
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


def _context(db: Database, lease: int, options: LauncherOptions, found: Resources) -> Context:
    # A launcher may itself have been started by MPI. Its variables would tell a job that it is one of the launcher's ranks.
    environ = mpirun.scrubbed(os.environb)
    return commands.make_context(db.directory, lease, len(found.nodes), options.job_mode, environ, found.mpi_words)


def _limits(options: LauncherOptions, found: Resources, settings: Settings, clock: Clock) -> Limits:
    return Limits(
        workflow=options.workflow_filter,
        serial_only=found.mpi_rules is None,
        ends_at=resources.end(options, found.batch, settings, clock),
        idle_ttl_s=None if options.persistent else settings.IDLE_TTL_S,
        tags=options.tags,
        no_mpi=found.no_mpi,
    )


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


__all__ = ["LauncherOptions", "run_launcher"]
