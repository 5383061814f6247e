"""Bytes from rank to rank, without waiting. The only module that uses MPI."""

from __future__ import annotations

import os
import threading
from typing import Any

from ...core.errors import LaunchError

#: For every error that has to do with mpi4py.
INSTALL = (
    "Install mpi4py for the MPI of this machine, into the Python that runs balsam: `pip install mpi4py`, or the module "
    "that your site provides. A launcher for its own node alone needs none."
)
_TAG = 4711
#: Limit in seconds for MPI_Finalize, which waits for all ranks, and for ever if one is missing.
_FINALIZE_LIMIT_S = 10.0


class MpiTransport:
    """Carries frames over MPI's world. Those of one sender arrive in order, except that a large one may come late.

    MPI's own waiting keeps a core busy, so it is only ever asked (MPI_Test, MPI_Improbe), and memory is handed over until
    a transfer is complete (MPI 4.1, sections 3.7 and 3.8).

    Args:
        mpi: the module mpi4py.MPI, initialised.
    """

    def __init__(self, mpi: Any) -> None:
        self._mpi, self._world = mpi, mpi.COMM_WORLD
        # A frame that cannot be delivered must not end all ranks.
        self._world.Set_errhandler(mpi.ERRORS_RETURN)
        self.rank: int = self._world.Get_rank()
        self.size: int = self._world.Get_size()
        self.broken: set[int] = set()  # ranks that MPI reports as gone
        #: Whether threads may call `send` while the main thread calls anything.
        self.is_for_threads = mpi.Query_thread() >= mpi.THREAD_SERIALIZED
        self._lock = threading.Lock()
        self._sending: list[tuple[Any, int, bytes]] = []  # request, peer, message
        self._receiving: list[tuple[Any, int, bytearray]] = []
        self._sources = [mpi.ANY_SOURCE]

    @property
    def is_moving(self) -> bool:
        """Return whether frames are under way that `poll` advances."""
        return bool(self._sending or self._receiving)

    def send(self, peer: int, frame: bytes) -> None:
        """Send a frame; return at once. One to a rank that is gone is dropped."""
        if peer in self.broken:
            return
        with self._lock:
            try:
                request = self._world.Isend([frame, self._mpi.BYTE], dest=peer, tag=_TAG)
            except self._mpi.Exception:
                self.broken.add(peer)
                return
            self._sending.append((request, peer, frame))
            self._sending = self._unfinished(self._sending)

    def poll(self) -> list[tuple[int, bytes]]:
        """Return the frames since the last call: (sender, frame)."""
        with self._lock:
            self._sending = self._unfinished(self._sending)
            for source in list(self._sources):
                self._receive_from(source)
            if not self._receiving:
                return []
            before, self._receiving = self._receiving, self._unfinished(self._receiving)
            left = {id(buffer) for _, _, buffer in self._receiving}
            return [(peer, bytes(buffer)) for _, peer, buffer in before if id(buffer) not in left and peer not in self.broken]

    def _receive_from(self, source: int) -> None:
        status = self._mpi.Status()
        try:
            while True:
                message = self._world.Improbe(source, _TAG, status)
                if message is None:
                    return
                buffer = bytearray(status.Get_count(self._mpi.BYTE))
                request = message.Irecv([buffer, self._mpi.BYTE])
                self._receiving.append((request, status.Get_source(), buffer))
        except self._mpi.Exception:
            self._ask_one_by_one(source)

    def _ask_one_by_one(self, source: int) -> None:
        """Receive from each rank separately: one is gone, and MPI then may refuse to receive from any source."""
        if source == self._mpi.ANY_SOURCE:
            self._sources = [peer for peer in range(self.size) if peer != self.rank]
        else:
            self.broken.add(source)
            self._sources.remove(source)

    def _unfinished(self, transfers: list[Any]) -> list[Any]:
        return [transfer for transfer in transfers if not self._is_over(transfer[0], transfer[1])]

    def _is_over(self, request: Any, peer: int) -> bool:
        try:
            return bool(request.Test())
        except self._mpi.Exception:
            self.broken.add(peer)
            return True

    def close(self) -> None:
        """Leave MPI together with all other ranks, which do the same now. If one does not, end this process."""
        guard = threading.Timer(_FINALIZE_LIMIT_S, os._exit, (0,))
        guard.daemon = True
        guard.start()
        self._mpi.Finalize()
        guard.cancel()


def connect(ranks: int) -> MpiTransport:
    """Join the MPI program of that number of ranks in which this process was started.

    Raises:
        LaunchError: mpi4py is missing or cannot load its MPI, or that is not the one that started this program.
    """
    try:
        import mpi4py

        mpi4py.rc.thread_level = "serialized"  # a thread sends heartbeats while the main thread is busy
        mpi4py.rc.finalize = False  # at the exit of a process whose peers are dead it would hang
        from mpi4py import MPI
    except (ImportError, RuntimeError) as exc:  # RuntimeError is: "cannot load MPI library"
        raise LaunchError(f"mpi4py cannot be used on {os.uname().nodename}: {exc}", hint=INSTALL) from exc
    transport = MpiTransport(MPI)
    if transport.size != ranks:
        raise LaunchError(
            f"{ranks} programs were started, but mpi4py sees {transport.size} of them: it was built for another MPI than "
            f"the one whose command started them ({MPI.Get_library_version().strip().splitlines()[0]})",
            hint=f"{INSTALL} Or set MPI_FLAVOUR or MPI_RUN_EXE to that MPI's own start command.",
        )
    return transport
