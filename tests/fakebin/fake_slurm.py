"""Slurm's sbatch, squeue, sacct and scancel, as far as a submitter meets them: options, words, exit codes, formats.

From sbatch(1), squeue(1), sacct(1) and scancel(1) of Slurm 22.05, and from what that version printed; for what a real Slurm
of four nodes on one machine cannot be made to do: several clusters, listings that lag or leave batch jobs out, an accounting.
FAKE_SLURM_CLUSTERS names the other clusters, each with a separate queue in FAKE_BATCH/NAME. FAKE_SLURM_LISTED_S is how many
seconds squeue lists an ended batch job [300], after which only sacct has it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import batch
from batch import Job, Queue, Runner

_PARTITIONS = ("debug", "training")
_LIMIT = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"


def complain(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


def _enter(clusters: str, command: str) -> list[str]:
    """Return the clusters that are meant, "" for the default one. Exit where one is unknown; see `_at`."""
    names = (clusters or os.environ.get("SLURM_CLUSTERS", "")).split(",")
    for name in filter(None, names):
        if name not in os.environ.get("FAKE_SLURM_CLUSTERS", "").split():
            sys.exit(complain(f"{command}: error: No cluster '{name}' known by database."))
    return names


def _at(cluster: str) -> Queue:
    """Return the queue of a cluster. The knobs are the same for all."""
    root = os.environ.setdefault("FAKE_SLURM_ROOT", os.environ["FAKE_BATCH"])
    os.environ.setdefault("FAKE_BATCH_KNOBS", os.path.join(root, "knobs"))
    os.environ["FAKE_BATCH"] = os.path.join(root, cluster)
    return Queue()


# --- sbatch -----------------------------------------------------------------------------------------------------------


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sbatch", add_help=False, allow_abbrev=False)
    for names in (
        ("-J", "--job-name"), ("-D", "--chdir"), ("-o", "--output"), ("-e", "--error"), ("--open-mode",), ("-N", "--nodes"),
        ("-t", "--time"), ("-p", "--partition"), ("-A", "--account"), ("-M", "--clusters", "--cluster"), ("-C", "--constraint"),
        ("--comment",), ("-n", "--ntasks"), ("-x", "--exclude"), ("--signal",), ("-q", "--qos"), ("--gres",), ("--gpus",),
    ):  # fmt: skip
        parser.add_argument(*names)
    for names in (("--parsable",), ("-H", "--hold"), ("-k", "--no-kill"), ("--exclusive",)):
        parser.add_argument(*names, action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    return parser


def directives(script: str) -> list[str]:
    """Return the words of the lines `#SBATCH …` before the first command."""
    words: list[str] = []
    for line in Path(script).read_text(errors="replace").splitlines():
        if line.startswith("#SBATCH "):
            words += shlex.split(line[8:], comments=True)
        elif line.strip() and not line.startswith("#"):
            break
    return words


@batch.command
def sbatch(argv: Sequence[str]) -> int:
    parser = _options()
    first = parser.parse_args(list(argv))
    if not first.command:
        return complain("sbatch: error: the fake does not read a script from stdin")
    script = first.command[0]
    if not os.path.isfile(script):
        return complain(f"sbatch: error: Unable to open file {script}")
    wanted = parser.parse_args([*directives(script), *argv])
    cluster = _enter(wanted.clusters or "", "sbatch")[0]
    if (wanted.partition or "debug") not in _PARTITIONS:
        return complain(
            f"sbatch: error: invalid partition specified: {wanted.partition}\n"
            "sbatch: error: Batch job submission failed: Invalid partition name specified"
        )
    try:
        job = _add(_at(cluster), wanted, script)
    except batch.Refused as exc:
        return complain(f"sbatch: error: Batch job submission failed: {str(exc) or _LIMIT}")
    told = f"{job['id']};{cluster}" if cluster else str(job["id"])
    print(told if wanted.parsable else f"Submitted batch job {told.replace(';', ' on cluster ')}")
    return 0


def _add(queue: Queue, wanted: argparse.Namespace, script: str) -> Job:
    cwd = wanted.chdir or os.getcwd()
    job = queue.add(
        {
            "dialect": "fake_slurm", "name": wanted.job_name or os.path.basename(script), "nodes": int(wanted.nodes or 1),
            "minutes": int(wanted.time or 60), "command": os.path.join(cwd, script), "cwd": cwd, "held": wanted.hold,
            "partition": wanted.partition or "debug",
        }
    )  # fmt: skip
    spooled = queue.directory / f"{job['id']}.script"
    spooled.write_bytes(Path(script).read_bytes())
    spooled.chmod(0o700)
    paths = {
        name: os.path.join(cwd, (path or f"slurm-{job['id']}.out").replace("%%", "%"))
        for name, path in (("output", wanted.output), ("error", wanted.error or wanted.output))
    }
    job = queue.change(job["id"], script=str(spooled), **paths)
    queue.start_runner(job)
    return job


# --- squeue, sacct ----------------------------------------------------------------------------------------------------


def _state(job: Job) -> str:
    if job["state"] != batch.ENDED:
        return {batch.QUEUED: "PENDING", batch.HELD: "PENDING", batch.KILLING: "COMPLETING"}.get(job["state"], "RUNNING")
    if job["stopping"]:
        return "TIMEOUT" if job["stopping"] == batch.TIME_IS_UP else "CANCELLED"
    return "COMPLETED" if job["exit"] == 0 else "FAILED"


def _reason(job: Job) -> str:
    waits = {batch.QUEUED: "Resources", batch.HELD: "JobHeldUser"}
    return waits.get(job["state"], "NonZeroExitCode" if job["exit"] else "None")


def _time(seconds: float | None) -> str:
    return "N/A" if seconds is None else str(int(seconds))  # the user asks for %s


def _times(job: Job) -> tuple[str, str, str]:
    started = job["ended"] if job["started"] is None else job["started"]  # a cancelled one "starts" at its end
    return _time(job["submitted"]), _time(started), _time(job["ended"])


_SQUEUE: dict[str, Callable[[Job], str]] = {
    "JobID": lambda job: str(job["id"]),
    "State": _state,
    "exit_code": lambda job: str((job["exit"] or 0) << 8 | (job["signal"] or 0)),
    "Reason": _reason,
    "SubmitTime": lambda job: _times(job)[0],
    "StartTime": lambda job: _times(job)[1],
    "EndTime": lambda job: _times(job)[2],
    "Name": lambda job: job["name"],
    "Command": lambda job: job["command"],
}
_SACCT: dict[str, Callable[[Job], str]] = {
    "JobIDRaw": lambda job: str(job["id"]),
    "State": lambda job: _state(job) + (f" by {os.getuid()}" if _state(job) == "CANCELLED" else ""),
    "ExitCode": lambda job: f"{job['exit'] or 0}:{job['signal'] or 0}",
    "Submit": lambda job: _times(job)[0],
    "Start": lambda job: _times(job)[1],
    "End": lambda job: _times(job)[2],
    "JobName": lambda job: job["name"],
}


def _is_listed(job: Job) -> bool:
    return job["ended"] is None or time.time() - job["ended"] < batch.number_from("FAKE_SLURM_LISTED_S", 300)


@batch.command
def squeue(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="squeue", add_help=False, allow_abbrev=False)
    for names in (("-M", "--clusters"), ("-t", "--states"), ("-u", "--user"), ("-O", "--Format"), ("-j", "--jobs"), ("-o",)):
        parser.add_argument(*names)
    for names in (("-h", "--noheader"), ("-a", "--all")):
        parser.add_argument(*names, action="store_true")
    wanted = parser.parse_args(list(argv))
    for cluster in _enter(wanted.clusters or "", "squeue"):
        jobs = [job for job in _at(cluster).listed() if "output" in job and _is_listed(job)]
        if cluster:
            print(f"CLUSTER: {cluster}")
        if wanted.jobs:
            jobs = [job for job in jobs if str(job["id"]) == wanted.jobs]
            for job in jobs:
                left_s = int(max(0, job["ends"] - time.time())) if job["started"] else 60 * job["minutes"]
                print(f"{left_s // 3600}:{left_s % 3600 // 60:02d}:{left_s % 60:02d}")
            continue
        fields = [(field.partition(":")[0], field.partition(":0")[2]) for field in wanted.Format.split(",")]
        for job in jobs:
            print("".join(_SQUEUE[name](job) + after for name, after in fields))
    return 0


@batch.command
def sacct(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="sacct", add_help=False, allow_abbrev=False)
    for name in ("--clusters", "--delimiter", "--format", "--jobs", "--user", "--starttime"):
        parser.add_argument(name)
    for name in ("--noheader", "--parsable2", "--allocations"):
        parser.add_argument(name, action="store_true")
    wanted = parser.parse_args(list(argv))
    for cluster in _enter(wanted.clusters or "", "sacct"):
        for job in _at(cluster).all():
            if wanted.jobs is None or str(job["id"]) in wanted.jobs.split(","):
                print(wanted.delimiter.join(_SACCT[name](job) for name in wanted.format.split(",")))
    return 0


# --- scancel ----------------------------------------------------------------------------------------------------------


@batch.command
def scancel(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scancel", add_help=False, allow_abbrev=False)
    parser.add_argument("-M", "--clusters")
    parser.add_argument("ids", nargs="+")
    wanted = parser.parse_args(list(argv))
    queue = _at(_enter(wanted.clusters or "", "scancel")[0])
    for word in wanted.ids:
        job = queue.get(int(word)) if word.isdigit() else None
        if job is None:
            return complain(f"scancel: error: Kill job error on job id {word}: Invalid job id specified")
        queue.delete(job["id"])
    return 0


# --- the batch job ----------------------------------------------------------------------------------------------------


def start(job: Job) -> tuple[list[str], dict[str, str]]:
    """Start the copy of the script, with the submitter's environment (--export=ALL)."""
    own = {
        "SLURM_JOB_ID": str(job["id"]), "SLURM_JOBID": str(job["id"]), "SLURM_JOB_NAME": job["name"], "SLURM_PROCID": "0",
        "SLURM_JOB_NODELIST": ",".join(job["hosts"]), "SLURM_JOB_NUM_NODES": str(job["nodes"]), "SLURM_NODEID": "0",
        "SLURMD_NODENAME": job["hosts"][0], "SLURM_JOB_CPUS_PER_NODE": f"4(x{job['nodes']})", "SLURM_LOCALID": "0",
        "SLURM_JOB_PARTITION": job["partition"], "SLURM_CLUSTER_NAME": os.path.basename(os.environ["FAKE_BATCH"]),
    }  # fmt: skip
    return [job["script"]], {**os.environ, **own}


def note(job: Job, what: str) -> None:
    """Slurm leaves no file behind."""


if __name__ == "__main__":
    Runner(int(sys.argv[2]), start, note).run()
