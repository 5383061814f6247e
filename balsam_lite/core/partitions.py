"""Parts of a batch job's nodes, each with a launcher of its own. Pure.

As text a part is `MODE:NUM_NODES[:KEY=VALUE...]` (Balsam 0.7). A colon or a backslash in a tag has a backslash before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from . import field_specs
from .errors import InvalidSpec

#: What may be between two colons; a backslash at the very end stands for itself.
_PIECE = re.compile(r"(?:\A|:)((?:[^\\:]|\\.|\\\Z)*)", re.DOTALL)
_FIELDS = ("job_mode", "num_nodes", "filter_tags")


class Partition(NamedTuple):
    """So many nodes, in the order of the batch job's, for one launcher."""

    job_mode: str
    num_nodes: int
    filter_tags: Mapping[str, str] = {}  # beside those of the batch job; of a key that both have these count

    @classmethod
    def parse(cls, text: str) -> Partition:
        r"""Read what `as_text` wrote, or a user typed.

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
        """From an object with these fields, such as JSON or Python's API has.

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
        r"""For a command line.

        >>> Partition("serial", 1, {"when": "12:00"}).as_text()
        'serial:1:when=12\\:00'
        """
        tags = [re.sub(r"([\\:])", r"\\\1", f"{key}={value}") for key, value in sorted(self.filter_tags.items())]
        return ":".join([self.job_mode, str(self.num_nodes), *tags])

    def as_fields(self) -> dict[str, Any]:
        """For JSON."""
        return {"job_mode": self.job_mode, "num_nodes": self.num_nodes, "filter_tags": dict(self.filter_tags)}


def check_sum(parts: Sequence[Partition], nodes: int) -> None:
    """Refuse parts that are not all of the nodes. No parts at all are no partition. Raises InvalidSpec."""
    total = sum(part.num_nodes for part in parts)
    if parts and total != nodes:
        raise InvalidSpec(f"Sum of partition sizes must equal batchjob num_nodes: they have {total}, it has {nodes}.")
