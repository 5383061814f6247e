"""Launches as users request them: queue, nodes, time, filter, and the partitions of their nodes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..core import clock, field_specs
from ..core.errors import InvalidSpec
from ..core.settings import Settings

#: The text between two colons; a backslash at the very end stands for itself.
_PIECE = re.compile(r"(?:\A|:)((?:[^\\:]|\\.|\\\Z)*)", re.DOTALL)
_FIELDS = ("job_mode", "num_nodes", "filter_tags")


class Partition(NamedTuple):
    """Some nodes of a batch job, in its order, for one launcher."""

    job_mode: str
    num_nodes: int
    filter_tags: Mapping[str, str] = {}  # in addition to those of the batch job, whose values they override

    @classmethod
    def parse(cls, text: str) -> Partition:
        r"""Parse what `as_text` wrote or a user typed.

        >>> Partition.parse(r"mpi:2:kind=large:when=12\:00")
        Partition(job_mode='mpi', num_nodes=2, filter_tags={'kind': 'large', 'when': '12:00'})

        Raises:
            InvalidSpec.
        """
        mode, *rest = [re.sub(r"\\(.)", r"\1", piece, flags=re.DOTALL) for piece in _PIECE.findall(text)]
        pairs = [piece.partition("=") for piece in rest[1:]]
        is_number = bool(rest) and re.fullmatch("[0-9]{1,8}", rest[0]) is not None
        if not is_number or not all(key and equals for key, equals, _ in pairs):
            raise InvalidSpec(f"{text!r} needs to be in format MODE:NUM_NODES[:KEY=VALUE]")
        return cls.from_fields({"job_mode": mode, "num_nodes": int(rest[0]), "filter_tags": {k: v for k, _, v in pairs}})

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Partition:
        """Create a partition from a mapping with these fields, such as JSON or the Python API provides.

        Raises:
            InvalidSpec.
        """
        unknown = sorted(set(fields) - set(_FIELDS))
        if unknown or not {"job_mode", "num_nodes"} <= set(fields):
            raise InvalidSpec(f"A partition has the fields {', '.join(_FIELDS)}, not {', '.join(map(str, fields))}")
        tags = fields.get("filter_tags") or {}
        made = cls(str(fields["job_mode"]), fields["num_nodes"], tags)
        if made.job_mode not in field_specs.JOB_MODES:
            raise InvalidSpec(
                f"job_mode of a partition must be one of {', '.join(field_specs.JOB_MODES)}, not {made.job_mode!r}"
            )
        if type(made.num_nodes) is not int or made.num_nodes < 1:
            raise InvalidSpec(f"num_nodes of a partition must be a whole number from 1, not {made.num_nodes!r}")
        if not isinstance(tags, Mapping) or not all(isinstance(word, str) for pair in tags.items() for word in pair):
            raise InvalidSpec(f"filter_tags of a partition must have text as names and values, not {tags!r}")
        return made

    def as_text(self) -> str:
        r"""Format the partition for a command line.

        >>> Partition("serial", 1, {"when": "12:00"}).as_text()
        'serial:1:when=12\\:00'
        """
        tags = [re.sub(r"([\\:])", r"\\\1", f"{key}={value}") for key, value in sorted(self.filter_tags.items())]
        return ":".join([self.job_mode, str(self.num_nodes), *tags])

    def as_fields(self) -> dict[str, Any]:
        """Return the partition as a dict for JSON."""
        return {"job_mode": self.job_mode, "num_nodes": self.num_nodes, "filter_tags": dict(self.filter_tags)}


def check_sum(parts: Sequence[Partition], nodes: int) -> None:
    """Refuse parts that are not all of the nodes. No parts at all are no partition. Raises InvalidSpec."""
    total = sum(part.num_nodes for part in parts)
    if parts and total != nodes:
        raise InvalidSpec(f"Sum of partition sizes must equal batchjob num_nodes: they have {total}, it has {nodes}.")


_MAX_COUNT = 10**7


class LaunchRequest(NamedTuple):
    """A request of a user or the service: one launcher on `nodes` nodes for `wall_minutes` minutes."""

    nodes: int
    wall_minutes: int | str  # text is a time that `durations` reads; `validated` converts it to minutes
    queue: str = ""
    project: str = ""  # "" means Settings.DEFAULT_PROJECT
    job_mode: str = "serial"
    wf_filter: str = ""  # "" means any workflow
    filter_tags: Mapping[str, str] = {}
    sched_flags: str = ""  # as typed; split like a shell does before the scheduler's command gets them
    prescheduled_only: bool = False
    partitions: Sequence[Partition] = ()  # all of the nodes, each part with a separate launcher; () means one launcher for all
    optional_params: Mapping[str, str] = {}  # more variables for the job template


def validated(request: LaunchRequest, settings: Settings) -> LaunchRequest:
    """Return the request with its defaults filled in.

    Raises:
        InvalidSpec: a value makes no sense, or would break out of its line in a job script.
    """
    if isinstance(request.wall_minutes, str):
        try:
            request = request._replace(wall_minutes=clock.whole_minutes(request.wall_minutes))
        except ValueError as exc:
            raise InvalidSpec(f"wall_minutes {exc}") from None
    for field in ("nodes", "wall_minutes"):
        value = getattr(request, field)
        if type(value) is not int or not 1 <= value <= _MAX_COUNT:
            raise InvalidSpec(f"{field} must be a whole number from 1 to {_MAX_COUNT}, not {value!r}")
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
