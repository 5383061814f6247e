"""In which batch job does this process run? The environment that the scheduler gave it says so.

To teach it a scheduler: write a detector and append it to the table.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Callable, NamedTuple

from ..clock import SECOND_US
from ..errors import LaunchError

LOCAL_JOBID, LOCAL_NODES, LOCAL_ENDTIME = "BALSAM_LOCAL_JOBID", "BALSAM_LOCAL_NODES", "BALSAM_LOCAL_ENDTIME"


class Allocation(NamedTuple):
    """What a batch job was given."""

    scheduler: str  # as in Settings.SCHEDULER_CLASS
    batch_id: str
    num_nodes: int
    node_names: tuple[str, ...] = ()  # () is: virtual nodes, shares of this host
    ends_us: int | None = None  # microseconds since the epoch; None is: the environment does not say
    cpus_per_node: int = 0  # 0 is: the environment does not say
    gpus_per_node: int | None = None  # None is: likewise
    runs_on_node: bool = True  # False where the script runs on a service node, as on a Cray with aprun


def allocation(environ: Mapping[str, str] = os.environ) -> Allocation | None:
    """The batch job that this environment belongs to; None outside of any.

    Raises:
        LaunchError: a variable of the scheduler holds something that it never writes there.
    """
    for detect in _DETECTORS:
        found = detect(environ)
        if found is not None:
            return found
    return None


def _local(environ: Mapping[str, str]) -> Allocation | None:
    batch_id = environ.get(LOCAL_JOBID)
    if batch_id is None:
        return None
    if not (batch_id.isascii() and batch_id.isdigit()):
        raise _nonsense(LOCAL_JOBID, batch_id, "the number of a local batch job")
    ends_us = None
    if LOCAL_ENDTIME in environ:
        ends_us = int(_number(environ, LOCAL_ENDTIME, "a time in seconds since 1970") * SECOND_US)
    num_nodes = int(_number(environ, LOCAL_NODES, "a number of nodes")) if LOCAL_NODES in environ else 1
    return Allocation("LocalScheduler", batch_id, num_nodes, ends_us=ends_us)


def _number(environ: Mapping[str, str], variable: str, what: str) -> float:
    """A finite number of at least 1.

    >>> _number({"N": "2"}, "N", "a number")
    2.0
    """
    text = environ[variable]
    try:
        number = float(text)
    except ValueError:
        raise _nonsense(variable, text, what) from None
    if not 1 <= number < math.inf or (variable.endswith("NODES") and number != int(number)):
        raise _nonsense(variable, text, what)
    return number


def _nonsense(variable: str, text: str, what: str) -> LaunchError:
    return LaunchError(
        f"The environment variable {variable} should hold {what}, not {text!r}",
        hint=f"Outside of a batch job, `unset {variable}` helps.",
    )


#: Asked in this order; the first that answers wins. Local is first: a local batch job may run inside another
#: scheduler's allocation, never the other way round.
_DETECTORS: tuple[Callable[[Mapping[str, str]], Allocation | None], ...] = (_local,)
