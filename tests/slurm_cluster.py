"""A real Slurm for tests: several virtual nodes on this machine, in a directory of their own.

Each node has its own host name, process ids, mounts and System V memory (Linux namespaces), four CPUs and four GPUs as
far as Slurm knows. Two partitions: `debug` gives whole nodes and is the default, `shared` gives CPUs. Between SIGTERM and
SIGKILL Slurm waits three seconds here. Several clusters may run at once. All processes end with the one that started the
cluster, whatever happens to that one.

In a test, take the fixture `slurm` (one cluster for all tests of a session); or make one of your own, such as one whose
nodes each have their own mount of one directory, which is as incoherent between them as a parallel file system::

    with slurm_cluster.running(node_command=f"bindfs --enable-lock-forwarding --multithreaded {back} {front}") as cluster:
        cluster.use(monkeypatch)  # sbatch, squeue, `balsam submit-launch` … find it
        cluster.run(["sbatch", "--parsable", "script.sh"]).stdout
        cluster.run(["balsam", "ls"], node="node3")  # as a process on that node
        cluster.kill_node("node2")

By hand: `python tests/slurm_cluster.py start DIR` prints the exports that the shell needs, `… stop DIR` ends it.

**PBS's commands.** Debian's slurm-wlm-torque has qsub, qstat, qdel and pbsnodes as wrappers around Slurm. Installed, they
would take the names of others' commands, so `python tests/slurm_cluster.py pbs-wrappers DIR` (apt-get and the network)
unpacks them into DIR, by default the directory where `running(pbs=True)`, and the option `--pbs` of `start`, look for
them. There `cluster.environ` has a PATH on which they are found, and jobs get PBS_JOBID, PBS_JOBNAME, PBS_O_WORKDIR,
PBS_QUEUE and PBS_NODENUM, but no PBS_NODEFILE. They accept `#PBS` lines, ignore `-o` and `-j oe`, print bare numbers, and
know the states Q, R and C.

Facts about Slurm are those of version 22.05 and its manuals slurm.conf(5) and slurmd(8).
"""

from __future__ import annotations

import argparse
import getpass
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from helpers import wait_until

if TYPE_CHECKING:
    import pytest

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "unshare", "nsenter", "setpriv")
CPUS_PER_NODE, GPUS_PER_NODE = 4, 4
KILL_WAIT_S = 3

#: Where Debian puts daemons, which are not on everybody's PATH.
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_START_TIMEOUT_S = 60.0
PBS_WRAPPERS = Path(os.environ.get("SLURM_PBS_WRAPPERS", "/usr/local/lib/slurm-pbs-wrappers"))
_PBS_PACKAGES = ("slurm-wlm-torque", "libslurm-perl", "libslurmdb-perl", "libslurm38", "libswitch-perl")

_SLURM_CONF = """\
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/jobcomp.txt
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
ReturnToService=2
KillWait={kill_wait}
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
MessageTimeout=60
SlurmdParameters=config_overrides
{more}
NodeName=DEFAULT RealMemory=4000 State=UNKNOWN
{nodes}
PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE DefaultTime=60 State=UP
PartitionName=debug Default=YES OverSubscribe=EXCLUSIVE
PartitionName=shared OverSubscribe=NO
"""

#: The first process of a node. It stays, because the first process of a PID namespace inherits all orphans.
_NODE = """\
#!/bin/bash
set -e
hostname "$1"
mount --bind {folder}/etc/hosts /etc/hosts
mount -t tmpfs tmpfs /dev/shm
{command}
set +e
slurmd -D -N "$1" &
wait
"""


class Cluster:
    """A cluster that runs, as a test sees it."""

    def __init__(self, folder: Path, environ: Mapping[str, str], nodes: Mapping[str, subprocess.Popen[bytes]]) -> None:
        self.directory = folder
        self.environ = dict(environ)  # what to add to a process's environment
        self._nodes = nodes

    @property
    def node_names(self) -> list[str]:
        return list(self._nodes)

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put `environ` into this process's environment until the test ends, and make Slurm the chosen scheduler."""
        for key, value in {**self.environ, "BALSAM_SCHEDULER_CLASS": "SlurmScheduler"}.items():
            monkeypatch.setenv(key, value)

    def run(
        self, argv: Sequence[str], *, node: str = "", timeout_s: float = 60, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """A command to its end, here or as a process on a node, with the output as text; it may fail."""
        return subprocess.run(
            [*self.enter(node), *argv] if node else list(argv),
            env={**os.environ, **self.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )

    def enter(self, node: str) -> list[str]:
        """The words to put before a command line, so that it runs on a node; the command line's directory is ours."""
        words = ["nsenter", f"--target={self._first_process(node)}", "--uts", "--pid", "--mount", "--ipc"]
        return [*words, f"--wd={os.getcwd()}"]

    def sbatch(self, *words: str) -> str:
        """Submit and return the job's id; `--wrap` and a command line make a script."""
        done = self.run(["sbatch", "--parsable", *words])
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().partition(";")[0]

    def job(self, job_id: str) -> dict[str, str]:
        """What Slurm says of a job: JobState, Reason, ExitCode, NodeList, TimeLimit …; {} if it knows none of that id."""
        words = shlex.split(self.run(["scontrol", "--oneliner", "show", "job", job_id]).stdout.replace("'", ""))
        return dict(word.split("=", 1) for word in words if "=" in word)

    def end_in(self, job_id: str, seconds: int) -> None:
        """Move a running job's end. Slurm looks every 30 seconds whose time is over."""
        ends = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + seconds))
        done = self.run(["scontrol", "update", f"jobid={job_id}", f"endtime={ends}"])
        assert done.returncode == 0, done.stderr

    def cancel_all(self) -> None:
        """Cancel every job, and wait until none is left."""
        self.run(["scancel", f"--user={getpass.getuser()}"])
        _wait_until(lambda: not self.run(["squeue", "--noheader"]).stdout.strip(), "the jobs are gone")

    def kill_node(self, node: str) -> None:
        """As if its power failed. It does not come back, so this is for a cluster of your own."""
        _end_node(self._nodes[node])

    def _first_process(self, node: str) -> int:
        return _only_child(self._nodes[node].pid)


@contextmanager
def running(
    folder: Path | None = None,
    *,
    nodes: int = 4,
    node_command: str = "",
    pbs: bool = False,
    conf: str = "",
    gpus: Sequence[int] = (),
    cpus: Sequence[int] = (),
    slurmd_timeout_s: int = 60,
) -> Iterator[Cluster]:
    """Start a cluster, wait until all its nodes are idle, and end it without leaving anything behind.

    Args:
        folder: where its files lie; an empty or new directory with a short path. None: a temporary one, removed at the end.
        nodes: how many; they are called node1, node2, …
        node_command: shell text that each node runs before it takes part, inside its namespaces ($1 is its name).
        pbs: jobs get PBS_ variables, and `environ` has a PATH with PBS's commands.
        conf: more lines for slurm.conf.
        gpus, cpus: how many each of the first nodes has; the others have four.
        slurmd_timeout_s: seconds without an answer after which a node counts as down.

    Raises:
        RuntimeError: it cannot run here, or does not come up; with the reason, and the ends of the logs.
    """
    missing = why_not(pbs)
    if missing:
        raise RuntimeError(missing)
    with ExitStack() as stack:
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short, for the sake of the socket's path
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        names = [f"node{number}" for number in range(1, nodes + 1)]
        padded = ([*given, *[usual] * nodes] for given, usual in ((cpus, CPUS_PER_NODE), (gpus, GPUS_PER_NODE)))
        parts = dict(zip(names, zip(*padded)))
        lines = [f"SlurmdTimeout={slurmd_timeout_s}", conf, "JobSubmitPlugins=pbs" if pbs else ""]
        _write_files(folder, parts, node_command, "\n".join(lines))
        if pbs:
            (folder / "etc" / "plugstack.conf").write_text("required spank_pbs.so\n")  # sets jobs' PBS_ variables
        environ = {"SLURM_CONF": str(folder / "etc" / "slurm.conf")}
        _start(stack, folder, "munged", [*_munged(folder)], environ)
        _wait_until((folder / "run" / "munge.socket").exists, "munged has its socket", folder)
        _start(stack, folder, "slurmctld", ["slurmctld", "-D", "-c"], environ)
        processes = {name: _start_node(stack, folder, name, environ) for name in names}
        cluster = Cluster(folder, environ, processes)
        _wait_until(lambda: _all_idle(cluster), "all nodes are idle", folder)
        if pbs:
            cluster.environ.update(_pbs_environ(folder))
        yield cluster


def why_not(pbs: bool = False) -> str:
    """Why there can be no cluster here; "" if there can."""
    lacking = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    if lacking:
        return f"no Slurm here: {', '.join(lacking)} not installed (slurmctld, slurmd, slurm-client, munge, util-linux)"
    if os.geteuid() != 0:
        return "a Slurm with nodes of their own needs root"
    tried = subprocess.run(["unshare", "--uts", "--pid", "--mount", "--ipc", "--fork", "true"], capture_output=True, text=True)
    if tried.returncode:
        return f"no namespaces for virtual nodes: {tried.stderr.strip()}"
    if pbs and not _qsub(PBS_WRAPPERS).exists():
        return f"no PBS wrappers in {PBS_WRAPPERS}: python tests/slurm_cluster.py pbs-wrappers"
    return ""


# --- files ------------------------------------------------------------------------------------------------------------


def _write_files(folder: Path, parts: Mapping[str, tuple[int, int]], node_command: str, conf: str) -> None:
    names = list(parts)
    for name in ("etc", "run", "log", "state", "dev", *(f"spool/{name}" for name in names)):
        (folder / name).mkdir(parents=True)
    etc, first_port = folder / "etc", _free_ports(len(names) + 1)
    host = socket.gethostname().partition(".")[0]
    nodes = [
        f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={first_port + 1 + index} CPUs={cpus}"
        + (f" Gres=gpu:{gpus}" if gpus else "")
        for index, (name, (cpus, gpus)) in enumerate(parts.items())
    ]
    (etc / "slurm.conf").write_text(
        _SLURM_CONF.format(
            name=re.sub(r"\W", "", folder.name).lower() or "cluster", host=host, port=first_port, user=getpass.getuser(),
            folder=folder, kill_wait=KILL_WAIT_S, more=conf, nodes="\n".join(nodes),
        )
    )  # fmt: skip
    (etc / "cgroup.conf").write_text("CgroupAutomount=no\n")  # it has to be there
    lines = [f"NodeName={name} Name=gpu File={folder}/dev/gpu[0-{gpus - 1}]\n" for name, (_, gpus) in parts.items() if gpus]
    (etc / "gres.conf").write_text("".join(lines))
    for number in range(GPUS_PER_NODE):  # without a device file of each, Slurm drains the node
        os.mknod(folder / "dev" / f"gpu{number}", 0o20666, os.makedev(1, 3))
    (etc / "hosts").write_text(f"127.0.0.1 localhost {host} {' '.join(names)}\n")
    (etc / "node.sh").write_text(_NODE.format(folder=folder, command=node_command or ":"))
    key = etc / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)


def _free_ports(count: int) -> int:
    """Return the first of this number of free ports in a row, below those that the kernel gives to clients."""
    for _ in range(100):
        first = random.randrange(11000, 32000)
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise RuntimeError("no ports are free")


# --- processes --------------------------------------------------------------------------------------------------------


def _munged(folder: Path) -> Iterator[str]:
    yield from ("munged", "--foreground", "--force", "--num-threads=4")
    for option, place in (
        ("socket", "run/munge.socket"),
        ("key-file", "etc/munge.key"),
        ("pid-file", "run/munged.pid"),
        ("log-file", "log/munged.log"),
        ("seed-file", "run/munged.seed"),
    ):
        yield f"--{option}={folder / place}"


def _start(
    stack: ExitStack, folder: Path, name: str, argv: Sequence[str], environ: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a daemon that dies with this process, and has died when the stack is closed."""
    with open(folder / "log" / f"{name}.out", "wb") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", *argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={**_clean(os.environ), **environ, "PATH": _PATH},
            start_new_session=True,
        )
    stack.callback(_end_node if argv[0] == "unshare" else _end, process)
    return process


def _start_node(stack: ExitStack, folder: Path, name: str, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    apart = ["unshare", "--uts", "--pid", "--mount", "--ipc", "--fork", "--kill-child=KILL", "--mount-proc"]
    return _start(stack, folder, f"{name}-start", [*apart, "bash", str(folder / "etc" / "node.sh"), name], environ)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(30)


def _end_node(process: subprocess.Popen[bytes]) -> None:
    """Kill a node's first process. It takes all others of its node along, and has gone only when they have."""
    first = _only_child(process.pid)
    if first and process.poll() is None:
        os.kill(first, signal.SIGKILL)
        process.wait(30)
    _end(process)


def _only_child(pid: int) -> int:
    """The child of a process; 0 if it has none, or has ended."""
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return int(words[0]) if words else 0


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment for daemons: what users' jobs inherit comes from sbatch."""
    return {key: value for key, value in environ.items() if not key.startswith(("SLURM", "BALSAM", "PYTEST"))}


def _all_idle(cluster: Cluster) -> bool:
    for name, process in cluster._nodes.items():
        if process.poll() is not None:
            log = cluster.directory / "log" / f"{name}-start.out"
            raise RuntimeError(f"{name} ended with code {process.returncode}: {log.read_text()}")
    answer = cluster.run(["sinfo", "--noheader", "--Node", "--partition=debug", "--format=%T"])
    return answer.stdout.split() == ["idle"] * len(cluster.node_names)


def _wait_until(holds: Callable[[], object], what: str, folder: Path | None = None) -> None:
    try:
        wait_until(holds, _START_TIMEOUT_S)
    except AssertionError:
        logs = _log_ends(folder) if folder else ""
        raise RuntimeError(f"not within {_START_TIMEOUT_S:g} s: {what}\n{logs}") from None


def _log_ends(folder: Path) -> str:
    return "\n".join(f"{path.name}: {path.read_text(errors='replace')[-800:]}" for path in sorted((folder / "log").iterdir()))


# --- PBS's commands ---------------------------------------------------------------------------------------------------


def fetch_pbs_wrappers(folder: Path = PBS_WRAPPERS) -> None:
    """Download Debian's packages with the wrappers and unpack them into `folder`; they are not installed."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["apt-get", "download", "-q", *_PBS_PACKAGES], cwd=scratch, check=True)
        for package in Path(scratch).glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), str(folder)], check=True)


def _qsub(folder: Path) -> Path:
    return folder / "usr" / "bin" / "qsub"


def _pbs_environ(folder: Path) -> dict[str, str]:
    """A directory with commands that call the wrappers, which look for Slurm's commands beside themselves."""
    commands, wrappers = folder / "bin", folder / "pbs"
    commands.mkdir()
    wrappers.mkdir()
    for name in ("sbatch", "scancel", "squeue", "sinfo", "scontrol", "salloc", "srun"):
        (wrappers / name).symlink_to(str(shutil.which(name, path=_PATH)))
    unpacked = PBS_WRAPPERS / "usr"
    perl = ":".join(map(str, [*unpacked.glob("share/perl5"), *unpacked.glob("lib/*/perl5/*")]))
    libraries = ":".join(str(found.parent) for found in unpacked.glob("lib/*/libslurm.so.*.*"))
    for name in ("qsub", "qstat", "qdel", "qhold", "qrls", "pbsnodes"):
        shutil.copy(unpacked / "bin" / name, wrappers)
        environ = f"PERL5LIB={shlex.quote(perl)} LD_LIBRARY_PATH={shlex.quote(libraries)}"
        (commands / name).write_text(f'#!/bin/sh\n{environ} exec {shlex.quote(str(wrappers / name))} "$@"\n')
        (commands / name).chmod(0o755)
    return {"PATH": f"{commands}:{os.environ['PATH']}"}


# --- by hand ----------------------------------------------------------------------------------------------------------


class _Keeper(NamedTuple):
    """The process that a cluster started by hand depends on."""

    folder: Path

    @property
    def _file(self) -> Path:
        return self.folder / "keeper"

    def start(self, nodes: int, node_command: str, pbs: bool) -> int:
        """Start it, and the cluster; prints what the shell has to do."""
        if self._file.exists():
            return _fail(f"there is a cluster in {self.folder}; first: {sys.argv[0]} stop {self.folder}")
        reading, writing = os.pipe()
        if os.fork():
            os.close(writing)
            with open(reading, encoding="utf-8") as pipe:
                text = pipe.read()
            print(text, end="")
            return 0 if text.startswith("export") else 1
        os.close(reading)
        os.setsid()
        self._keep(writing, nodes, node_command, pbs)
        os._exit(0)

    def _keep(self, pipe: int, nodes: int, node_command: str, pbs: bool) -> None:
        def leave(*_: object) -> None:
            raise SystemExit

        signal.signal(signal.SIGTERM, leave)
        try:
            with running(self.folder, nodes=nodes, node_command=node_command, pbs=pbs) as cluster:
                self._file.write_text(str(os.getpid()))
                exports = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in cluster.environ.items())
                os.write(pipe, exports.encode())
                os.close(pipe)
                log = os.open(self.folder / "log" / "keeper.out", os.O_WRONLY | os.O_CREAT)
                for descriptor, other in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
                    os.dup2(other, descriptor)
                while True:
                    signal.pause()
        except RuntimeError as exc:
            os.write(pipe, f"{exc}\n".encode())
        except SystemExit:
            self._file.unlink()

    def stop(self) -> int:
        """End it and wait for that."""
        if not self._file.exists():
            return _fail(f"no cluster in {self.folder}")
        try:
            os.kill(int(self._file.read_text()), signal.SIGTERM)
        except ProcessLookupError:
            self._file.unlink()
        _wait_until(lambda: not self._file.exists(), "the cluster is down")
        return 0


def _fail(reason: str) -> int:
    print(reason, file=sys.stderr)
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(description="A real Slurm on virtual nodes, for tests.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    start = verbs.add_parser("start", help="start a cluster in DIR and print the exports that the shell needs")
    start.add_argument("dir", type=Path)
    start.add_argument("--nodes", type=int, default=4)
    start.add_argument("--node-command", default="", help="shell text that each node runs first")
    start.add_argument("--pbs", action="store_true", help="with PBS's commands")
    stop = verbs.add_parser("stop", help="end the cluster in DIR; its files stay")
    stop.add_argument("dir", type=Path)
    wrappers = verbs.add_parser("pbs-wrappers", help="download PBS's commands for Slurm into DIR")
    wrappers.add_argument("dir", type=Path, nargs="?", default=PBS_WRAPPERS)
    wrappers.add_argument("--where", action="store_true", help="only print where qsub would be")
    asked = parser.parse_args()
    if asked.verb == "start":
        return _Keeper(asked.dir.absolute()).start(asked.nodes, asked.node_command, asked.pbs)
    if asked.verb == "stop":
        return _Keeper(asked.dir.absolute()).stop()
    if asked.where:
        print(_qsub(asked.dir))
    else:
        fetch_pbs_wrappers(asked.dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
