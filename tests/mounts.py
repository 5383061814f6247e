"""Hosts made of namespaces, each with its own mount of one directory: a parallel file system, as far as SQLite can tell.

Such a host has its own name, pids and mount table. The directory is mounted in each by a bindfs of its own, so that
memory maps and caches of one know nothing of the other's, while names, O_EXCL and file contents are shared: what two hosts
have of NFS or Lustre. Starts in a fifth of a second. All share one kernel, boot id, network and user.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from helpers import wait_until


def bindfs(back: Path | str, point: Path | str, *, locks: bool = True) -> str:
    """The shell command that mounts `back` at `point`.

    With `locks`, those of fcntl reach `back` and so all hosts, as on NFS or on Lustre with -o flock; without, each host has
    its own, as on sshfs or on NFS with -o nolock.
    """
    options = "--enable-lock-forwarding --multithreaded " if locks else ""
    return f"bindfs {options}{shlex.quote(str(back))} {shlex.quote(str(point))}"


PROGRAMS = ("unshare", "nsenter", "bindfs", "fusermount3")


def why_not() -> str:
    """Why there can be no such hosts here; "" if there can."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"not installed here: {' '.join(missing)} (util-linux, bindfs, fuse3)"
    if os.geteuid() != 0:
        return "hosts with mounts of their own need root"
    return "" if os.path.exists("/dev/fuse") else "there is no /dev/fuse here"


def need() -> None:
    """Skip a test where there can be no such hosts."""
    import pytest  # here, not above: benchmarks use this module, too

    reason = why_not()
    if reason:
        pytest.skip(reason)


class Process(subprocess.Popen[str]):
    """A process on a `Host`. What `Popen` holds is nsenter, which ends with it and as it."""

    @property
    def inner(self) -> int:
        """The pid of the process itself, as this side of the wall counts."""
        return wait_until(lambda: _child_of(self.pid) or (self.poll() is not None and -1))

    def signal_inside(self, number: signal.Signals) -> None:
        """Send a signal to the process itself; nsenter would not pass it on."""
        if self.inner > 0:
            os.kill(self.inner, number)
        if number == signal.SIGCONT:  # nsenter stops when its child does, but does not go on when that does
            os.kill(self.pid, number)


class Host:
    """One virtual host; `point` is where the shared directory is mounted, the same path on all hosts."""

    def __init__(self, name: str, point: Path, init: int) -> None:
        self.name, self.point, self.init = name, point, init
        self._started: list[Process] = []
        self._prefix = ["nsenter", f"--target={init}", "--uts", "--pid", "--mount", "--ipc", "--"]

    def argv(self, *words: str) -> list[str]:
        """The words that run a command on this host."""
        return [*self._prefix, *words]

    def start(self, *words: str, **options: Any) -> Process:
        """Start a program on this host, in a process group of its own; it is gone when the host is."""
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True, **options}
        self._started.append(Process(self.argv(*words), start_new_session=True, **options))
        return self._started[-1]

    def run(self, *words: str, timeout: float = 60, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a program on this host to its end."""
        return subprocess.run(
            self.argv(*words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **environ},
        )

    def kill(self) -> None:
        """End the host with all its processes and its mount, as a power cut does; what it wrote is kept by the others."""
        os.kill(self.init, signal.SIGKILL)

    def forget(self) -> None:
        """Take leave of all that was started, once the host is gone."""
        for process in self._started:
            process.communicate(timeout=20)


@contextmanager
def hosts(number: int, directory: Path, *, locks: bool = True) -> Iterator[list[Host]]:
    """Make this number of hosts, named host1, host2, …, which share `directory`/shared, with their `locks` or without.

    They are gone with all their processes and mounts at the end. In a test, say `need()` before.
    """
    back, point = directory / "back", directory / "shared"
    back.mkdir(exist_ok=True)
    point.mkdir(exist_ok=True)
    with ExitStack() as stack:
        yield [stack.enter_context(one_host(f"host{n + 1}", point, bindfs(back, point, locks=locks))) for n in range(number)]


@contextmanager
def one_host(name: str, point: Path, mounting: str) -> Iterator[Host]:
    """A host of that name, whose mount of the shared directory at `point` is made by the shell command `mounting`."""
    # bash stays as pid 1, so that orphans are reaped and signals have their usual meaning for everybody else.
    script = f"hostname {name} && {mounting} && mountpoint -q {shlex.quote(str(point))} && echo ready && read -r never"
    flags = ["--uts", "--pid", "--mount", "--ipc", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
    with subprocess.Popen(
        ["unshare", *flags, "bash", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as keeper:
        host = None
        try:
            assert keeper.stdout is not None
            said = keeper.stdout.readline()
            if said != "ready\n":
                raise RuntimeError(f"no host can be made here: {said}{keeper.stdout.read()}")
            host = Host(name, point, _child_of(keeper.pid))
            yield host
        finally:
            keeper.kill()
            if host is not None:
                host.forget()


def _child_of(pid: int) -> int:
    try:
        return int((Path(f"/proc/{pid}/task/{pid}/children").read_text() or "0").split()[0])
    except OSError:
        return 0
