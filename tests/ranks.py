"""Ranks for tests: a transport in memory, and whole launchers over several ranks of a real mpiexec on this host."""

from __future__ import annotations

import os
import signal
from collections import deque
from pathlib import Path

from helpers import wait_until
from launching import Bench
from mpi import mpiexec

from balsam_lite.core.process_table import Process, belonging
from balsam_lite.db.engine.binding import id_of


class Wire:
    """What several `MemoryTransport`s hang on. Frames to a cut rank, and from it, go nowhere."""

    def __init__(self, size: int) -> None:
        self.boxes: list[deque[tuple[int, bytes]]] = [deque() for _ in range(size)]
        self.cut: set[int] = set()
        self.sent: list[tuple[int, int, bytes]] = []  # from, to, frame

    def links(self) -> list[MemoryTransport]:
        return [MemoryTransport(self, rank) for rank in range(len(self.boxes))]


class MemoryTransport:
    """`Transport` within one process."""

    is_moving = is_for_threads = False

    def __init__(self, wire: Wire, rank: int) -> None:
        self.rank, self.size, self.broken = rank, len(wire.boxes), set[int]()
        self._wire = wire

    def send(self, peer: int, frame: bytes) -> None:
        if not {peer, self.rank} & self._wire.cut:
            self._wire.sent.append((self.rank, peer, frame))
            self._wire.boxes[peer].append((self.rank, frame))

    def poll(self) -> list[tuple[int, bytes]]:
        box = self._wire.boxes[self.rank]
        return [box.popleft() for _ in range(len(box))]


class Ensemble(Bench):
    """A bench whose launchers run in a batch job of several nodes: as many ranks of an MPI program, all on this host.

    Args:
        mpi: the words that start this number of ranks; None: those of this Python's MPICH, whose ranks survive one another.
    """

    def __init__(self, directory: Path, ranks: int, mpi: str | None = None, **settings: str) -> None:
        nodes = directory / "nodes"
        nodes.write_text("".join(f"n{number}\n" for number in range(ranks)))
        # With names of their own the ranks have MPI daemons of their own, as on real nodes, and speak through the network.
        mpi = (
            mpi
            or f"{mpiexec()} -bootstrap fork -hosts {{{{ hosts | join(',') }}}} -ppn 1 -disable-auto-cleanup -n {{{{ ranks }}}}"
        )
        batch_job = {"COBALT_JOBID": "7", "COBALT_NODEFILE": str(nodes), "COBALT_PARTSIZE": str(ranks)}
        super().__init__(directory, BALSAM_MPI_RUN_TEMPLATE=mpi, BALSAM_CPUS_PER_NODE="4", **batch_job, **settings)
        with self.db.read() as cx:
            self.mark = id_of(cx).encode() + b":"

    def processes(self, kind: str = "") -> list[Process]:
        """All that have to do with this DB: jobs, ranks and what started them; or those with `kind` in their command line."""
        found = []
        for process in belonging(prefix=(self.mark, b"ensemble:")).members:
            try:
                line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
                environ = Path(f"/proc/{process.pid}/environ").read_bytes()
            except OSError:
                continue
            if os.fsencode(os.path.dirname(self.directory)) + b"/" not in environ:
                continue  # of another test
            if kind.encode() in line:
                found.append(process)
        return found

    def ranks(self, number: int) -> list[Process]:
        """The ranks of a running launcher, once they are all there; the first is rank 0."""

        def found() -> list[Process]:
            by_rank = {
                rank_of(p.pid): p for p in self.processes("balsam_lite.launcher.multinode.rank") if rank_of(p.pid) is not None
            }
            return [by_rank[rank] for rank in sorted(by_rank)] if len(by_rank) == number else []

        return wait_until(found)

    def stderr(self) -> str:
        return Path(self.directory, "log", "stderr").read_text()

    def close(self) -> None:
        super().close()
        for process in self.processes():
            process.signal(signal.SIGKILL)


def rank_of(pid: int) -> int | None:
    """Its number, from what MPI has put into its environment."""
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    named = dict(entry.partition(b"=")[::2] for entry in environ)
    number = named.get(b"PMI_RANK", named.get(b"PMIX_RANK"))
    return None if number is None else int(number)
