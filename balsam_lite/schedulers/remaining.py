"""How long has this batch job left? Where its environment does not say, one question to the scheduler may tell.

Nothing here raises on what a command prints or does not print: what is not understood is not known.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping

from ..clock import SECOND_US, Clock, SystemClock
from .base import run
from .environ import Allocation

#: Thirty years in seconds. What lies beyond is no limit.
_LONGEST_S = 10**9

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

    It runs one command at most, and none where the environment said it. The answer is as of now: a limit may be changed
    while the batch job runs.

    Args:
        command: the scheduler's status command; "" is its own, found on PATH.
        timeout_s: how long that may take.
    """
    if batch.ends_us is not None:
        return batch.ends_us
    ask = _QUESTIONS.get(batch.scheduler)
    if ask is None:
        return None
    clock = clock or SystemClock()
    left_s = ask(batch.batch_id, command, timeout_s, environ, clock)
    return None if left_s is None else clock.now_us() + int(left_s * SECOND_US)


def _ask_slurm(batch_id: str, command: str, timeout_s: float, environ: _Environ, clock: Clock) -> float | None:
    """%L is the time left, or a word (squeue(1), version 22.05). The SQUEUE_ variables of the user could hide the job."""
    plain = {name: value for name, value in environ.items() if not name.startswith("SQUEUE_")}
    answer = run([command or "squeue", "-h", "-j", batch_id, "-o", "%L"], timeout_s=timeout_s, environ=plain)
    return seconds_of(answer.stdout.strip()) if answer.ok else None


def _ask_pbs(batch_id: str, command: str, timeout_s: float, environ: _Environ, clock: Clock) -> float | None:
    """Without an answer, PBS_WALLTIME: the whole of what was asked for, so at most that is left (Torque 6.1)."""
    answer = run([command or "qstat", "-f", batch_id], timeout_s=timeout_s, environ=environ)
    left_s = time_left_pbs(answer.stdout, clock.now_us() / SECOND_US) if answer.ok else None
    return seconds_of(environ.get("PBS_WALLTIME", "")) if left_s is None else left_s


_QUESTIONS = {"SlurmScheduler": _ask_slurm, "PBSScheduler": _ask_pbs}


#: Slurm's days-hours:minutes:seconds, Torque's days:hours:minutes:seconds, everybody's hours:minutes:seconds, and less.
_SPAN = re.compile(r"([0-9]{1,9}[-:][0-9]{1,9}:[0-9]{1,9}:[0-9]{1,9}|([0-9]{1,9}:){0,2}[0-9]{1,9})")


def seconds_of(text: str) -> int | None:
    """A span of time as schedulers print it, in seconds; None for everything else.

    >>> seconds_of("1-02:03:04"), seconds_of("26:03:04"), seconds_of("5:00"), seconds_of("3600"), seconds_of("UNLIMITED")
    (93784, 93784, 300, 3600, None)
    """
    if not _SPAN.fullmatch(text):
        return None
    fields = reversed(re.split("[-:]", text))
    seconds = sum(int(field) * unit for field, unit in zip(fields, (1, 60, 3600, 86400)))
    return seconds if seconds <= _LONGEST_S else None


def time_left_pbs(text: str, now_s: float) -> float | None:
    """Seconds that are left to the batch job in the output of `qstat -f`; None where it does not say.

    Torque says it (`Walltime.Remaining`). OpenPBS says when the job started, in local time, and how long it may take; else
    how much of that it has used, which is up to some minutes old (qstat(1B), pbs_job_attributes(7B), version 23.06).

    >>> time_left_pbs("Job Id: 7.s\\n    Walltime.Remaining = 60\\n", 0)
    60
    """
    fields: dict[str, str] = {}
    for name, value in re.findall(r"^[ \t]*([A-Za-z_.]+) = (.*)$", text, re.MULTILINE):
        fields.setdefault(name, value.strip())
    left_s = seconds_of(fields.get("Walltime.Remaining", ""))
    limit_s = seconds_of(fields.get("Resource_List.walltime", ""))
    if left_s is not None or limit_s is None:
        return left_s
    started_s = _local_time(fields.get("stime", ""))
    if started_s is not None:
        return max(started_s + limit_s - now_s, 0)
    used_s = seconds_of(fields.get("resources_used.walltime", ""))
    return None if used_s is None else max(limit_s - used_s, 0)


def _local_time(text: str) -> float | None:
    """Seconds since the epoch of a time as ctime(3) writes it; None for everything else."""
    try:
        return time.mktime(time.strptime(text, "%a %b %d %H:%M:%S %Y"))
    except (ValueError, OverflowError):
        return None
