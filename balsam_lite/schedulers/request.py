"""What is asked of a batch system for a launcher, and whether that makes sense. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..core import durations, field_specs
from ..core.errors import InvalidSpec
from ..core.partitions import Partition, check_sum
from ..core.settings import Settings

_LARGEST_COUNT = 10**7


class LaunchRequest(NamedTuple):
    """What a user or the service asks for: one launcher on `nodes` nodes for `wall_minutes` minutes."""

    nodes: int
    wall_minutes: int | str  # text is a time that `durations` reads; `validated` makes minutes of it
    queue: str = ""
    project: str = ""  # "" is Settings.DEFAULT_PROJECT
    job_mode: str = "serial"
    wf_filter: str = ""  # "" is: any workflow
    filter_tags: Mapping[str, str] = {}
    sched_flags: str = ""  # as typed; split like a shell does before the scheduler's command gets them
    prescheduled_only: bool = False
    partitions: Sequence[Partition] = ()  # all of the nodes, each part with a launcher of its own; () is: one for all
    optional_params: Mapping[str, str] = {}  # more variables for the job template


def validated(request: LaunchRequest, settings: Settings) -> LaunchRequest:
    """The request with its defaults filled in.

    Raises:
        InvalidSpec: a value makes no sense, or would break out of its line in a job script.
    """
    if isinstance(request.wall_minutes, str):
        try:
            request = request._replace(wall_minutes=durations.whole_minutes(request.wall_minutes))
        except ValueError as exc:
            raise InvalidSpec(f"wall_minutes {exc}") from None
    for field in ("nodes", "wall_minutes"):
        value = getattr(request, field)
        if type(value) is not int or not 1 <= value <= _LARGEST_COUNT:
            raise InvalidSpec(f"{field} must be a whole number from 1 to {_LARGEST_COUNT}, not {value!r}")
    if request.job_mode not in field_specs.JOB_MODES:
        raise InvalidSpec(f"job_mode must be one of {', '.join(field_specs.JOB_MODES)}, not {request.job_mode!r}")
    for field in ("queue", "project", "wf_filter", "sched_flags"):
        _check_line(field, getattr(request, field))
    for field, words in _mappings(request):
        for key, value in words.items():
            _check_line(field, key)
            _check_line(f"{field}: {key}", value)
    check_sum(request.partitions, request.nodes)
    try:
        shlex.split(request.sched_flags)
    except ValueError as exc:
        raise InvalidSpec(f"sched_flags cannot be split into words ({exc}): {request.sched_flags}") from None
    return request._replace(project=request.project or settings.DEFAULT_PROJECT)


def _mappings(request: LaunchRequest) -> Iterator[tuple[str, Mapping[str, str]]]:
    yield "filter_tags", request.filter_tags
    yield "optional_params", request.optional_params
    for part in request.partitions:
        yield "filter_tags of a partition", part.filter_tags


def _check_line(field: str, value: Any) -> None:
    if not isinstance(value, str) or not value.isprintable():
        raise InvalidSpec(f"{field} must be one line of printable characters, not {value!r}")
