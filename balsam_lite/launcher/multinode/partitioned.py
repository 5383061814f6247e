"""`balsam launcher --part …`: one launcher for each part of the nodes, and a process that waits for all of them.

This process has neither DB nor lease. The launchers share its process group, so that signals of a batch system or a terminal
to the group reach them as well; they treat a signal repeated within a second as one. If only this process is killed, they go on
working until the batch job, which has lost its main process, ends.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from types import FrameType

from ...core import daemon, import_guard
from ...core.errors import SpawnFailed
from ...core.settings import Settings
from ...core.subprocess_run import module_words, python_path
from ...schedulers.base import Partition, check_sum
from .. import resources
from ..exec.children import Alarm
from ..exec.spawner import Companion
from ..resources import LauncherOptions

#: A child's end wakes this process; if that is missed, it checks after this many seconds.
_PERIOD_S = 5.0


def run_parts(db_directory: str, options: LauncherOptions, parts: Sequence[Partition]) -> int:
    """Run a launcher for each part until all have ended. Return the worst of their exit codes.

    The nodes are the batch job's in their order, or shares of this host: as many as the parts need, or `options` has.

    Raises:
        InvalidSpec: the parts do not cover all nodes. LaunchError: the nodes cannot be determined. SpawnFailed.
    """
    import_guard.check_writable()
    total = sum(part.num_nodes for part in parts)
    batch = resources.where_am_i(options, Settings.load(db_directory), os.environ)
    check_sum(parts, resources.count_nodes(options, batch) or total)
    if batch is None:
        options = options._replace(nodes=total)
    with Alarm() as alarm:
        launchers: list[Companion] = []
        heard: list[int] = []

        def pass_on(number: int, _: FrameType | None) -> None:
            heard.append(number)
            for launcher in launchers:
                launcher.signal(number)

        daemon.handle_stop_signals(pass_on)
        try:
            offset = 0
            for part in parts:
                launchers.append(_start(db_directory, options, part, offset))
                offset += part.num_nodes
                for early in heard:
                    launchers[-1].signal(early)
        except SpawnFailed:
            pass_on(signal.SIGTERM, None)
            raise
        while any(launcher.returncode() is None for launcher in launchers):
            alarm.wait(_PERIOD_S)
    return max(_exit_code(launcher.returncode() or 0) for launcher in launchers)


def _start(db_directory: str, options: LauncherOptions, part: Partition, offset: int) -> Companion:
    argv = module_words("balsam_lite.cli", "--db", db_directory, *words(options, part, offset))
    return Companion(argv, {**os.environ, "PYTHONPATH": python_path()})


def words(options: LauncherOptions, part: Partition, offset: int) -> list[str]:
    """Return the command line of the launcher of that part, whose nodes follow the first `offset` ones."""
    given = {
        "--wf-filter": options.workflow_filter,
        "--nodes": options.nodes,
        "--gpus-per-node": options.gpus_per_node,
        "--time-limit-minutes": options.time_limit_minutes or None,
        "--num-transition-threads": options.transition_threads or None,
        "--limit-nodes": part.num_nodes,
        "--offset-nodes": offset,
        "--job-mode": part.job_mode,
    }
    found = ["launcher", *(f"{name}={value}" for name, value in given.items() if value is not None)]
    found += ["--consume-all"] * (options.workflow_filter is None) + ["--persistent"] * options.persistent
    return [*found, *(f"--tag={key}={value}" for key, value in {**dict(options.tags), **part.filter_tags}.items())]


def _exit_code(code: int) -> int:
    """Return an exit code as a shell reports it."""
    return code if code >= 0 else 128 - code
