"""How much time this batch job has left. Where its environment does not tell, the scheduler is asked.

Nothing here raises on what a command prints or does not print: what is not understood is not known.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from ..core.clock import SECOND_US, Clock, SystemClock
from ..core.subprocess_run import run
from . import pbs
from .environ import Allocation

#: Thirty years in seconds. What lies beyond is no limit.
_LONGEST_S = 10**9
#: Before each of the questions; squeue may leave out a batch job for seconds.
_PAUSES_S = (0.0, 1.0, 4.0)

_Environ = Mapping[str, str]


def ask_end_us(
    batch: Allocation,
    *,
    command: str = "",
    timeout_s: float = 20.0,
    environ: _Environ = os.environ,
    clock: Clock | None = None,
) -> int | None:
    """When the batch job ends, in microseconds since the epoch; None where nobody knows, or where it has no limit.

    It runs no command where the environment tells it. An answer without the batch job, or no answer, does not mean that there
    is no limit: the question is asked up to three times. A limit may be changed while the batch job runs.

    Args:
        command: the scheduler's status command; "" is its own, found on PATH.
        timeout_s: how long that may take in all.
    """
    if batch.ends_us is not None:
        return batch.ends_us
    ask = _QUESTIONS.get(batch.scheduler)
    if ask is None:
        return None
    clock = clock or SystemClock()
    left_s = ask(batch.batch_id, command, timeout_s, environ, clock)
    return None if left_s is None or left_s > _LONGEST_S else clock.now_us() + int(left_s * SECOND_US)


def _ask_slurm(batch_id: str, command: str, timeout_s: float, environ: _Environ, clock: Clock) -> float | None:
    """Ask squeue without the user's SQUEUE_ variables, which could hide the job, and SLURM_CLUSTERS, which may name others."""
    plain = {name: value for name, value in environ.items() if not name.startswith("SQUEUE_")}
    if "SLURM_CLUSTERS" in plain and plain.get("SLURM_CLUSTER_NAME"):
        plain["SLURM_CLUSTERS"] = plain["SLURM_CLUSTER_NAME"]
    argv = [command or "squeue", "-h", "-j", batch_id, "-o", "%L"]
    text = _answered(argv, lambda text: _without_heading(text) != "", timeout_s, plain, clock)
    return time_left_slurm(_without_heading(text))


def _without_heading(text: str) -> str:
    """Return squeue's output without the cluster's name, which it prints first where SLURM_CLUSTERS is set."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("CLUSTER:")).strip()


def _ask_pbs(batch_id: str, command: str, timeout_s: float, environ: _Environ, clock: Clock) -> float | None:
    """Without an answer, PBS_WALLTIME: the whole of what was asked for, so at most that is left (Torque 6.1)."""
    argv = [command or "qstat", "-f", batch_id]
    text = _answered(argv, lambda text: next(pbs.parse_text(text), None) is not None, timeout_s, environ, clock)
    left_s = time_left_pbs(text, clock.now_us() / SECOND_US)
    return pbs.duration_s(environ.get("PBS_WALLTIME", "")) if left_s is None else left_s


def _answered(argv: list[str], tells: Callable[[str], bool], timeout_s: float, environ: _Environ, clock: Clock) -> str:
    """Return the command's output as soon as it contains the batch job; "" where it never does."""
    give_up_at = clock.monotonic() + timeout_s
    for pause_s in _PAUSES_S:
        clock.sleep(pause_s)
        left_s = give_up_at - clock.monotonic()
        if left_s <= 0:
            break
        answer = run(argv, timeout_s=left_s, environ=environ)
        if answer.ok and tells(answer.stdout):
            return answer.stdout
        if answer.returncode is None and not answer.was_killed:  # there is no such command
            break
    return ""


_QUESTIONS = {"SlurmScheduler": _ask_slurm, "PBSScheduler": _ask_pbs}


def time_left_slurm(text: str) -> int | None:
    """Seconds that are left by `squeue -o %L`: days-hours:minutes:seconds, or a word (squeue(1), version 22.05).

    >>> time_left_slurm("1-02:03:04"), time_left_slurm("5:00"), time_left_slurm("UNLIMITED")
    (93784, 300, None)
    """
    return pbs.duration_s(text.strip().replace("-", ":", 1))  # with a colon it is as Torque writes it


def time_left_pbs(text: str, now_s: float) -> float | None:
    """Seconds that are left to the batch job in the text of `qstat -f`; None where it does not say.

    Torque says it (`Walltime.Remaining`). OpenPBS says when the job started and how long it may take; else how much of that
    it has used, which is up to some minutes old (qstat(1B), pbs_job_attributes(7B), version 23.06).

    >>> time_left_pbs("Job Id: 7.s\\n    Walltime.Remaining = 60\\n", 0)
    60
    """
    job = next(pbs.parse_text(text), None)
    if job is None:
        return None
    names = ("Walltime.Remaining", "Resource_List.walltime", "resources_used.walltime")
    left_s, limit_s, used_s = (pbs.duration_s(job[1].get(name, "")) for name in names)
    if left_s is not None or limit_s is None:
        return left_s
    started_us = pbs.status_of(*job).started_us
    if started_us is not None:
        return max(started_us / SECOND_US + limit_s - now_s, 0)
    return None if used_s is None else max(limit_s - used_s, 0)
