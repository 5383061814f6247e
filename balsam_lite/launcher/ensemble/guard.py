"""A process beside each rank that has one thing to do: end the rank's jobs if the rank dies without a word.

Jobs have sessions of their own and survive a rank that is killed, on a node that is as well as ever. Rank 0 gives them to
another node when this one is silent for long enough; by then nothing of them may run here. So the rank holds the other end
of this process's stdin: a line there says that all is well, the end of it alone that nobody can say anything any more.

Its words are MARK NODE GRACE_S.
"""

from __future__ import annotations

import os
import signal
import sys

from ...programs import module_words
from ..commands import Context
from ..process import end_orphans
from ..spawner import Piped

_DISMISSED = b"dismissed\n"


class Guard:
    """The rank's side.

    Args:
        context: what all jobs of the rank share.
    """

    def __init__(self, context: Context, grace_s: float) -> None:
        marks = [os.fsdecode(mark) for mark in (context.mark, context.node_mark)]
        self._process = Piped(module_words(__name__, *marks, str(grace_s)), os.environ)

    def dismiss(self) -> None:
        """The jobs of this rank are over or nobody's business any more."""
        self._process.tell(_DISMISSED)


def main() -> None:
    """Wait for the end of stdin, and act."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # whoever ends the rank may mean us, too
    if sys.stdin.buffer.readline() != _DISMISSED:
        mark, node, grace_s = sys.argv[1:]
        end_orphans(os.fsencode(mark), float(grace_s), os.fsencode(node))


if __name__ == "__main__":
    main()
