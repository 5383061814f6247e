"""Set up a launcher from the user's options, with its log, signal handlers and lease, and run it.

Together with `resources` this is the only module of the launcher that reads the environment, the machine and the terminal.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, TypeVar, cast

from ..core import daemon, import_guard, states
from ..core.clock import SECOND_US, Clock, SystemClock
from ..core.errors import DatabaseBusy, DatabaseError, DatabaseFull, DatabaseGone, LostLease
from ..core.process_table import Holder, sees_processes
from ..core.settings import Settings
from ..db.engine import directories
from ..db.engine.binding import id_of
from ..db.engine.connection import Database
from ..db.engine.filesystem import LOCAL
from ..db.query import queries, select
from ..db.query.queries import BatchRow
from ..db.query.takers import as_end_reason
from ..db.store import leases, notifications
from ..schedulers.environ import Allocation
from . import environment, failpoints, logs, mpirun, resources
from .exec import hardware, invocation
from .exec.invocation import Context
from .exec.run_file import RunFiles, end_own_runs, forget
from .exec.spawner import Alarm, Spawner
from .exit_grace import ExitGraceRunner, exit_grace_s, hold_back_s
from .loop import Launcher
from .notifier import Notifier, counted
from .parents_exchange import ParentsExchange
from .placement import NodePool
from .reaper import Reaper
from .reporting import Limits, Progress
from .resources import LauncherOptions, Resources
from .runner import LocalRunner, Runner
from .steps import Steps

log = logging.getLogger(__name__)
T = TypeVar("T")

#: The submitter of this batch job may need this long to record its id, in seconds.
_SUBMITTER_S = 5.0

_NO_PROC = (
    "/proc is not mounted here. What a job leaves in the background is ended as soon as its program ends, and processes that "
    "it starts in separate sessions cannot be found."
)

#: At the start, a DB that could not be used is tried again after this number of seconds.
_RETRY_PERIOD_S = 1.0

#: A batch system signals every process of a batch job, and the process that started this one passes it on: one signal, twice.
_SAME_SIGNAL_S = 1.0

#: Maximum number of causes of failures in the last words of a launcher.
_MAX_SHOWN_CAUSES = 5


class Nodes:
    """The other nodes on which this launcher runs jobs; this class: none. The host of this process is no other one."""

    def begin(self, context: Context, settings: Settings, job_mode: str, lease: int, dead_marks: tuple[bytes, ...]) -> None:
        """End processes of dead launchers, given by their run marks, on all nodes, and make the nodes get ready.

        On this host the reaper ends them.
        """

    def runner(self, local: LocalRunner, pool: NodePool) -> Runner:
        """Return the runner for all nodes, given the runner for this one."""
        return local

    def waiter(self, nap: Callable[[float], bool]) -> Callable[[float], object]:
        """Return a function that sleeps until a message of a node arrives or `nap` is woken."""
        return nap

    def abandon(self) -> None:
        """Make the nodes end all runs at once."""


def run_launcher(db_directory: str, options: LauncherOptions) -> int:
    """Run a launcher on this host until its work or time is used up, or a signal arrives. Return the exit code.

    This is 0 also for a launcher that was told to stop, as it has released its jobs. It is 1 if the lease or the DB was lost,
    or if the launcher ended because of trouble of the machine.

    Raises:
        InputError, SettingsError, DatabaseError, LaunchError: it could not start; nothing was taken.
    """
    import_guard.check_writable()
    settings = Settings.load(db_directory)
    batch = resources.where_am_i(options, settings, os.environ)
    found = resources.survey(options, settings, batch, os.environ)
    if found.are_elsewhere and options.job_mode != "mpi":
        from .multinode.supervisor import supervise  # and all that messages between nodes need

        return supervise(found, db_directory, settings, options)
    return run_on(found, db_directory, settings, options, Nodes())


def run_on(
    found: Resources,
    db_directory: str,
    settings: Settings,
    options: LauncherOptions,
    nodes: Nodes,
    lost_lease: int | None = None,
) -> int:
    """Run a launcher on these resources, which include this host. Return the exit code of `run_launcher`.

    Args:
        lost_lease: the lease of a launcher that ended because of a lost node, not because of one of its jobs.

    Raises:
        LostLease: the lease was taken over while this launcher got ready; nothing was taken.
    """
    db = directories.open_database(db_directory, settings)
    try:
        return _Setup(db, found, settings, options, nodes, lost_lease).run()
    finally:
        db.close()  # so that the one file holds everything


class _Setup:
    """Gets a launcher ready, and ends what is left of it."""

    def __init__(
        self, db: Database, found: Resources, settings: Settings, options: LauncherOptions, nodes: Nodes, lost_lease: int | None
    ) -> None:
        self._db, self._found, self._settings, self._options, self._nodes = db, found, settings, options, nodes
        self._clock = SystemClock()
        self._reaper = Reaper(db, settings, self._clock, lost_lease)
        self._notifier = Notifier(db, settings, self._clock)
        self._lease = 0
        self._submitted = ""  # the environment of who submitted its batch job, as JSON

    def run(self) -> int:
        """Run the launcher and return its exit code."""
        failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
        log_path = logs.set_up(self._db.directory, self._settings)
        _say(f"Started Balsam launcher [{os.getpid()}], log in {log_path}")
        if not sees_processes():
            log.warning(_NO_PROC)
        eldest, dead, db_id = self._patiently(self._open_lease)
        self._db.own_checkpoints(eldest)
        mode, nodes = self._options.job_mode, len(self._found.nodes)
        log.info("Lease %d: %d node(s), %s mode, on %s", self._lease, nodes, mode, os.uname().nodename)
        context = invocation.make_context(
            self._db.directory,
            invocation.lease_mark(db_id, self._lease),
            nodes,
            mode,
            # It may itself have been started by MPI, whose variables would tell a job that it is one of the launcher's ranks.
            mpirun.scrubbed(os.environb),
            self._found.mpi,
            gpu_variables=hardware.gpu_variables(self._settings.GPU_VARIABLES),
            shares_host=self._found.are_shares,
            worker_limits=(self._settings.WORKER_MAX_CALLS, self._settings.WORKER_MAX_MIB),
        )
        dead_marks = tuple(invocation.lease_mark(db_id, one) for one in dead)
        self._nodes.begin(context, self._settings, mode, self._lease, dead_marks)
        self._patiently(self._beat)  # the nodes may have taken minutes
        freed = self._patiently(self._reaper.reap)
        if freed:
            log.info("Freed %d job(s) of dead launchers.", freed)
        with Alarm() as alarm:
            return self._run(context, alarm)

    def _open_lease(self) -> tuple[bool, list[int], str]:
        """Open the lease; return whether it is the eldest, the leases of dead launchers, and the DB's id."""
        expiry_s, watch = self._settings.LEASE_EXPIRY_S, self._reaper.watch
        batch_id = self._found.batch.batch_id if self._found.batch else ""
        with self._db.write() as cx:
            self._lease = leases.open_lease(cx, "launcher", Holder.current(), batch_id, self._clock.now_us())
            return leases.is_eldest(cx, self._lease, expiry_s, watch), leases.dead(cx, expiry_s, watch), id_of(cx)

    def _patiently(self, act: Callable[[], T]) -> T:
        """Call `act`, which needs the DB. While a DB on a local disk is busy or full, retry for TROUBLE_TTL_S."""
        give_up, is_told = self._clock.monotonic() + self._settings.TROUBLE_TTL_S, False
        while True:
            try:
                return act()
            except (DatabaseBusy, DatabaseFull) as exc:
                if self._db.access != LOCAL or self._clock.monotonic() >= give_up:
                    raise
                if not is_told:
                    log.error("The DB cannot be used, still trying: %s", exc)
                is_told = True
            self._clock.sleep(_RETRY_PERIOD_S)

    def _beat(self, note: str | None = None, record: str = "") -> None:
        with self._db.write() as cx:
            leases.heartbeat(cx, self._lease, self._clock.now_us(), note)
            if record:
                leases.record_environment(cx, self._lease, record)

    def _run(self, context: Context, alarm: Alarm) -> int:
        db, settings, found, clock = self._db, self._settings, self._found, self._clock
        pool, limits = NodePool(found.nodes, found.mpi_rules), self._limits()
        run_files = RunFiles.of(db.directory, context.mark)
        spawner = Spawner(context.environ, settings.USER_KILL_GRACE_S, _silence_s(db, settings), run_files)
        alarm.attach(spawner)
        local = LocalRunner(context, clock, settings.ERROR_TAIL_LINES, spawner, found.cpus)
        runner = self._nodes.runner(local, pool)
        step_doubt_s: Callable[[bool, float], float] | None = None
        if found.batch and found.batch.node_names:  # of a batch system that signals its batch jobs' programs, too
            exit_grace = exit_grace_s(len(found.nodes))
            runner = cast(Runner, ExitGraceRunner(runner, clock, exit_grace))
            step_doubt_s = partial(hold_back_s, exit_grace_s=exit_grace)
        progress = Progress(db, limits)
        steps = Steps(
            context,
            spawner,
            self._options.transition_threads or settings.NUM_TRANSITION_THREADS,
            settings.HOOK_TIME_LIMIT_S,
            settings.USER_KILL_GRACE_S,
            alarm.wake,
            step_doubt_s,
        )
        wait = progress.around(self._nodes.waiter(alarm.wait))
        exchange = ParentsExchange(db, settings, clock)

        def on_beat() -> None:
            spawner.beat()
            exchange.start_due()

        launcher = Launcher(
            db, settings, self._lease, pool, runner, steps, limits, clock, wait, self._reaper, on_beat, self._notifier,
            exchange.is_settled,
        )  # fmt: skip
        exchange.start_due()
        record = environment.record_of(self._submitted)
        # What had to end first may have taken minutes, too.
        self._patiently(partial(self._beat, launcher.obstacles.note(), record))
        self._notifier.add(notifications.LAUNCH_STARTED, self._facts(limits))
        progress.watch(launcher, runner)
        # What is here by now stays; a loop that makes thousands of short-lived tuples a second need not look at it again.
        gc.freeze()  # without gc.collect(): it takes 8 ms and frees next to nothing after so short a time
        _stop_at_signals(launcher, clock)
        try:
            if not self._guard(launcher, spawner, context):
                return 1
            progress.clear()  # the last line must not be appended to the progress line
            return self._close(launcher, context, limits)
        finally:
            progress.clear()
            self._notifier.close()

    def _guard(self, launcher: Launcher, spawner: Spawner, context: Context) -> bool:
        """Run the launcher, and leave no process running in any case. Return False if it has lost its lease."""
        is_over = False
        try:
            launcher.run()
            spawner.abandon()
            is_over = True
        except LostLease as exc:
            log.error("%s", exc)
        except BaseException:
            log.exception("The launcher stops because of an internal error.")
            raise
        finally:
            if not is_over:
                self._nodes.abandon()
                spawner.abandon()
                end_own_runs(context.db_directory, context.mark, self._settings.KILL_GRACE_S)
        return is_over

    def _facts(self, limits: Limits) -> dict[str, Any]:
        """Return what notifications report of this launcher."""
        return {
            "launcher": self._lease,
            "host": os.uname().nodename,
            "launch": "" if limits.launch is None else f"qlaunch{limits.launch}",
            "nodes": len(self._found.nodes),
            "job_mode": self._options.job_mode,
        }

    def _close(self, launcher: Launcher, context: Context, limits: Limits) -> int:
        """Close the lease and report what was done, what failed and what is left; return the exit code."""
        left: list[str] = []
        failures: list[str] = []
        try:
            left = launcher.obstacles.survey(launcher.filter())
            failures = self._failures(launcher, limits)
            with self._db.write() as cx:
                end_reason = as_end_reason(launcher.stop_reason, launcher.obstacles.left, launcher.lost_nodes)
                leases.close_lease(cx, self._lease, self._clock.now_us(), end_reason, launcher.obstacles.note())
                ended = {"states": +launcher.tally.jobs, "left": launcher.obstacles.left, "reason": launcher.stop_reason}
                self._notifier.add(notifications.LAUNCH_ENDED, {**self._facts(limits), **ended})
                self._notifier.look(cx, ends=True)
            self._notifier.send()
        except DatabaseGone:
            raise
        except DatabaseError as exc:
            log.error(
                "Lease %d stays open, which the next launcher finds; it has no jobs any more. %s", self._lease, exc.message
            )
        forget(context.db_directory, context.mark)
        _say(f"Launcher ends ({launcher.stop_reason}): {launcher.tally}")
        for line in [*failures, *(f"Left: {reason}" for reason in left)]:
            _say(line)
        return 1 if launcher.stop_reason in (launcher.pause.reason, launcher.trouble) else 0

    def _failures(self, launcher: Launcher, limits: Limits) -> list[str]:
        """Return a line with the causes of the failures in the launcher's filter, if jobs failed here."""
        if not launcher.tally.jobs[states.FAILED]:
            return []
        with self._db.read() as cx:
            causes = select.count_failures(cx, limits.conditions)
        shown = counted(dict(list(causes.items())[:_MAX_SHOWN_CAUSES]))
        more = len(causes) - _MAX_SHOWN_CAUSES
        return [f"FAILED jobs{limits.scope} by cause: {shown}{f' and {more} more causes' if more > 0 else ''}"]

    def _limits(self) -> Limits:
        found, options, clock = self._found, self._options, self._clock
        launch = _launch(self._db, found.batch, clock) if found.batch else None
        self._submitted = launch["environment"] if launch else ""
        return Limits(
            workflow=options.workflow_filter,
            serial_only=found.mpi_rules is None,
            ends_at=resources.end(options, _with_end(found.batch, launch, clock), self._settings, clock),
            idle_ttl_s=None if options.persistent else self._settings.IDLE_TTL_S,
            tags=options.tags,
            no_mpi=found.no_mpi,
            launch=launch["id"] if launch else None,
            launch_only=bool(launch and launch["prescheduled_only"]),
        )


def _stop_at_signals(launcher: Launcher, clock: Clock) -> None:
    """Make signals stop the launcher from now on."""
    heard_at = float("-inf")

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal heard_at
        if clock.monotonic() - heard_at > _SAME_SIGNAL_S:
            launcher.stop(f"signal {signal.Signals(number).name}")
        heard_at = clock.monotonic()

    daemon.handle_stop_signals(stop)


def _silence_s(db: Database, settings: Settings) -> float:
    """Return the seconds without a heartbeat after which spawn helpers end the runs, since other hosts may restart them then.

    Return 0 for a DB on a local disk: there a living process keeps its lease, even if it is stopped or the computer sleeps.
    """
    if db.access == LOCAL:
        return 0.0
    return settings.LEASE_EXPIRY_S - min(settings.USER_KILL_GRACE_S, settings.LEASE_EXPIRY_S / 3)


def _with_end(batch: Allocation | None, launch: BatchRow | None, clock: Clock) -> Allocation | None:
    """Return the batch job; if neither environment nor scheduler tells its end, assume the requested time from now on."""
    if batch is None or launch is None or batch.ends_us is not None:
        return batch
    return batch._replace(ends_us=clock.now_us() + launch["wall_minutes"] * 60 * SECOND_US)


def _launch(db: Database, batch: Allocation, clock: Clock) -> BatchRow | None:
    """Return the row of the batch job in which this process runs. Its submitter may not have recorded the id yet."""
    give_up_at = clock.monotonic() + _SUBMITTER_S
    while True:
        with db.read() as cx:
            found = queries.launch_of(cx, batch.scheduler, batch.batch_id, batch.cluster)
            is_known = found is not None or not queries.has_pending_batch_job(cx, batch.scheduler)
        if is_known or clock.monotonic() > give_up_at:
            return found
        clock.sleep(0.2)


def _say(line: str) -> None:
    """Write a line to the log, and on a terminal to the user, too; elsewhere stderr has the log anyway."""
    log.info(line)
    if sys.stderr.isatty():
        daemon.write_stderr(line + "\n")


__all__ = ["LauncherOptions", "run_launcher"]
