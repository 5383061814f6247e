"""A real sshd on this host's loopback, and `ssh`, `scp` and `rsync` that find it, without touching ~/.ssh."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import ROOT, wait_until

SSHD = "/usr/sbin/sshd"
HOST = "far-away"  # known to the wrappers' configuration only

_SSHD_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
MaxStartups 100
"""

_SSH_CONFIG = """\
Host {host} 127.0.0.1
    HostName 127.0.0.1
    Port {port}
    IdentityFile {folder}/user_key
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    StrictHostKeyChecking yes
    LogLevel ERROR
"""


class Remote(NamedTuple):
    """The server, as a test sees it."""

    port: int
    path: str  # a PATH on which ssh and scp know the host

    def run(self, argv: Sequence[str], directory: str) -> tuple[int, str]:
        """A `Run` of `launcher.staging.transfers`."""
        done = subprocess.run(
            argv,
            cwd=directory,
            env={**os.environ, "PATH": self.path},
            executable=shutil.which(argv[0], path=self.path),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=60,
        )
        return done.returncode, done.stdout


@contextmanager
def remote_host(folder: Path, prefix: Sequence[str] = ()) -> Iterator[Remote]:
    """Start the server with keys and configuration of its own in `folder`; end it afterwards.

    The words of `prefix` before its command line put it elsewhere, such as into a virtual host.
    """
    for program in (SSHD, "ssh", "scp", "rsync", "ssh-keygen"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    port = _free_port()
    (folder / "sshd_config").write_text(_SSHD_CONFIG.format(port=port, folder=folder))
    (folder / "ssh_config").write_text(_SSH_CONFIG.format(port=port, folder=folder, host=HOST))
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text()}")
    path = f"{_wrappers(folder)}:{os.environ['PATH']}"
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd insists
    with open(folder / "sshd.log", "wb") as log:
        words = [*prefix, SSHD, "-D", "-e", "-f", str(folder / "sshd_config")]
        server = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=log)
    try:
        wait_until(lambda: _answers(port) or server.poll() is not None)
        assert server.poll() is None, (folder / "sshd.log").read_text()
        yield Remote(port, path)
    finally:
        server.terminate()
        server.wait(10)


@contextmanager
def far_site(directory: str, name: str = "far") -> Iterator[Remote]:
    """Register the DB in `directory` as a site on the other host, which runs until the end.

    BALSAM_HOME names the registry. PATH has to be `path` of what this yields.
    """
    # `slurm_cluster.py` needs `helpers.py`, not this, where the package is not installed yet.
    from balsam_lite.db.engine import registry

    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as place, remote_host(Path(place)) as remote:
        command = Path(place, "balsam")
        words = shlex.join([sys.executable, "-m", "balsam_lite.cli"])
        command.write_text(f'#!/bin/sh\nBALSAM_HOME={place}/home PYTHONPATH={ROOT} exec {words} "$@"\n')
        command.chmod(0o755)
        registry.add(directory, name, HOST, str(command))
        yield remote


def _wrappers(folder: Path) -> Path:
    """ssh and scp as staging calls them have no option for a configuration; these add it."""
    bin_ = folder / "bin"
    bin_.mkdir()
    for name in ("ssh", "scp"):
        real = shutil.which(name)
        options = f"-F {shlex.quote(str(folder / 'ssh_config'))}"
        # scp starts the ssh of its own prefix and hands -F on; rsync finds this ssh by PATH.
        (bin_ / name).write_text(f'#!/bin/sh\nexec {real} {options} "$@"\n')
        (bin_ / name).chmod(0o755)
    return bin_


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
