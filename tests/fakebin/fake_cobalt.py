"""Cobalt's qsub, qstat, qdel and cqwait, as far as a submitter meets them: options, words, exit codes, formats.

From the sources of Cobalt 1.0.33 (clients/POSIX/{qsub,qstat,qdel}.py, cqwait.py, lib/client_utils.py, lib/Components/cqm.py).
Two machines, by FAKE_COBALT_MACHINE: "cluster" (as Cooley: a file of nodes) and "cray" (as Theta: compact numbers, no file).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import batch
from batch import Job, Queue, Runner

_HEADER = "JobID:User:WallTime:Nodes:State:Location"
_FULL = (
    "JobID:JobName:User:WallTime:QueuedTime:RunTime:TimeRemaining:Nodes:State:Location:Mode:Procs:Preemptable:Queue:StartTime"
    ":Index"
)
_QUEUES = ("default", "debug", "training", "debug-cache-quad", "debug-flat-quad")


def complain(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


def stamp(seconds: float) -> str:
    return time.strftime("%a %b %d %H:%M:%S %Y +0000 (UTC)", time.gmtime(seconds))


# --- qsub -------------------------------------------------------------------------------------------------------------


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qsub.py", add_help=False, allow_abbrev=False)
    for names in (
        ("-n", "--nodecount"), ("-t", "--time"), ("-q", "--queue"), ("-A", "--project"), ("-O", "--outputprefix"),
        ("-o", "--output"), ("-e", "--error"), ("--debuglog",), ("--cwd",), ("--env",), ("--mode",), ("--jobname",),
        ("--attrs",), ("--dependencies",), ("-M", "--notify"), ("-u", "--umask"), ("--proccount",), ("-i", "--inputfile"),
    ):  # fmt: skip
        parser.add_argument(*names)
    parser.add_argument("-h", "--held", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    return parser


def directives(script: str) -> list[str]:
    """The words of the lines `#COBALT …` that follow the first one, `#!…`, without a gap."""
    lines = Path(script).read_text(errors="replace").splitlines()
    words: list[str] = []
    if lines and lines[0].startswith("#!"):
        for line in lines[1:]:
            if not line.startswith("#COBALT "):
                break
            words += line.split()[1:]
    return words


def minutes_of(text: str) -> int:
    """Minutes, or [[DD:]HH:]MM[:SS] as qsub reads it: two parts are hours and minutes."""
    parts = [int(part) for part in text.split(":")]
    if len(parts) == 1:
        return parts[0]
    if len(parts) == 2:
        return parts[0] * 60 + parts[1]
    days, hours, minutes, _ = ([0] * 4 + parts)[-4:]
    return (days * 24 + hours) * 60 + minutes


@batch.command
def qsub(argv: Sequence[str]) -> int:
    parser = _options()
    first = parser.parse_args(list(argv))
    if not first.command:
        return complain("Usage: qsub.py [options] <executable> [<excutable options>]\nNo required options provided")
    script = os.path.join(os.getcwd(), first.command[0])
    if not os.path.isfile(script):
        return complain(f"command {first.command[0]} not found, or is not a file")
    if not os.access(script, os.R_OK | os.X_OK):
        return complain(f"command {first.command[0]} is not executable")
    wanted = parser.parse_args([*directives(script), *argv])
    queue = Queue()
    trouble = _trouble(wanted, len(queue.nodes))
    try:
        return complain(trouble) if trouble else _submitted(queue, wanted, script, argv)
    except batch.Refused as exc:
        name = wanted.queue or "default"
        return complain(str(exc) or f"The limit of {batch.knob('LIMIT')} jobs per user in the '{name}' queue has been reached")


def _trouble(wanted: argparse.Namespace, nodes: int) -> str:
    """What the queue manager has against it; "" if nothing."""
    for name, value in (("time", wanted.time), ("nodecount", wanted.nodecount)):
        if value is None:
            return f"'{name}' not provided"
    if not 0 < int(wanted.nodecount) <= nodes:
        return "node count out of realistic range"
    if (wanted.queue or "default") not in _QUEUES:
        return f"<Fault 1001: \"QueueError: trying to add job to non-existent queue '{wanted.queue}'\">"
    return ""


def _submitted(queue: Queue, wanted: argparse.Namespace, script: str, argv: Sequence[str]) -> int:
    cwd = wanted.cwd or os.getcwd()
    job = queue.add(
        {
            "dialect": "fake_cobalt", "name": wanted.jobname or "N/A", "queue": wanted.queue or "default",
            "project": wanted.project or "-", "nodes": int(wanted.nodecount), "minutes": minutes_of(wanted.time),
            "command": script, "arguments": wanted.command[1:], "cwd": cwd, "held": wanted.held,
            "variables": dict(pair.split("=", 1) for pair in (wanted.env or "").split(":") if "=" in pair),
            "machine": os.environ.get("FAKE_COBALT_MACHINE", "cluster"),
        }
    )  # fmt: skip
    prefix = wanted.outputprefix or str(job["id"])
    paths = {
        "output": wanted.output or f"{prefix}.output",
        "error": wanted.error or f"{prefix}.error",
        "log": wanted.debuglog or f"{prefix}.cobaltlog",
    }
    number = str(job["id"])
    paths = {key: os.path.join(cwd, path.replace("$jobid", number)) for key, path in paths.items()}
    job = queue.change(job["id"], **paths)
    with open(job["log"], "a") as log:
        log.write(f"Jobid: {number}\nqsub {' '.join(argv)}\n{stamp(job['submitted'])} submitted with cwd set to: {cwd}\n")
        log.write(f"jobid {number} submitted from terminal None\n")
    queue.start_runner(job)
    print(number)
    return 0


# --- qstat ------------------------------------------------------------------------------------------------------------


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600:02d}:{int(seconds) % 3600 // 60:02d}:{int(seconds) % 60:02d}"


def merged(hosts: Sequence[str]) -> str:
    """node[1-4], or 1-4,7 on a Cray."""
    numbers = sorted(int(host.removeprefix("node")) for host in hosts)
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _state(job: Job) -> str:
    return {batch.HELD: "user_hold"}.get(job["state"], str(job["state"]))


def _fields(job: Job, now: float) -> dict[str, str]:
    started = job["started"]
    location = merged(job["hosts"]) if job["hosts"] else "None"
    return {
        "jobid": str(job["id"]), "jobname": job["name"], "user": job["user"], "walltime": _clock(job["minutes"] * 60),
        "queuedtime": _clock((started or now) - job["submitted"]), "runtime": _clock(now - started) if started else "N/A",
        "timeremaining": _clock(max(0, started + job["minutes"] * 60 - now)) if started else "N/A",
        "nodes": str(job["nodes"]), "state": _state(job), "mode": "script", "procs": str(job["nodes"]), "preemptable": "False",
        "location": f"node[{location}]" if job["hosts"] and job["machine"] == "cluster" else location,
        "queue": job["queue"], "starttime": stamp(started) if started else "N/A", "index": "None",
        "submittime": stamp(job["submitted"]), "project": job["project"], "command": job["command"],
        "outputpath": job["output"], "short_state": _state(job)[0].upper(),
    }  # fmt: skip


@batch.command
def qstat(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="qstat.py", allow_abbrev=False)
    parser.add_argument("-f", "--full", action="store_true")
    parser.add_argument("-l", "--long", action="store_true")
    parser.add_argument("--header")
    parser.add_argument("--sort")
    parser.add_argument("--reverse", action="store_true")
    parser.add_argument("-u", "--user")
    parser.add_argument("ids", nargs="*")
    wanted = parser.parse_args(list(argv))
    live = [job for job in Queue().listed() if job["state"] != batch.ENDED and "output" in job]
    found = [job for job in live if wanted.user in (None, job["user"])]
    if wanted.ids:
        for word in wanted.ids:
            if not word.isdigit() and word not in _QUEUES:
                return complain(f"{word} is not a valid jobid or queue name")
        found = [job for job in found if str(job["id"]) in wanted.ids or job["queue"] in wanted.ids]
        if not found:
            return 1
    variable = "QSTAT_HEADER_FULL" if wanted.full else "QSTAT_HEADER"
    usual = os.environ.get(f"C{variable}") or os.environ.get(variable) or (_FULL if wanted.full else _HEADER)
    _print_table((wanted.header or usual).split(":"), found)
    return 0


def _print_table(titles: Sequence[str], jobs: Sequence[Job]) -> None:
    """Cells at the left, two blanks behind each, a line of = below the titles. Ids have one width."""
    now = time.time()
    rows = [_fields(job, now) for job in jobs]
    width = max((len(row["jobid"]) for row in rows), default=0)
    for row in rows:
        row["jobid"] = row["jobid"].rjust(width)
    table = [list(titles), *([row.get(title.lower(), "-") for title in titles] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = ["".join(cell.ljust(width + 2) for cell, width in zip(line, widths)) for line in table]
    print("\n".join([lines[0], "=" * sum(width + 2 for width in widths), *lines[1:]]))


# --- qdel, cqwait -----------------------------------------------------------------------------------------------------


@batch.command
def qdel(argv: Sequence[str]) -> int:
    if not argv:
        return complain("No Jobid(s) given")
    for word in argv:
        if not word.isdigit():
            return complain(f"jobid must be an integer: {word}")
    queue = Queue()
    live = [job for job in queue.all() if str(job["id"]) in argv and job["state"] != batch.ENDED]
    for job in live:
        queue.delete(job["id"])
    time.sleep(0.1)  # a second, there
    if live:
        rows = [["JobID", "User"], *([str(job["id"]), job["user"]] for job in live)]
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ["".join(cell.ljust(width + 2) for cell, width in zip(row, widths)) for row in rows]
        print("\n".join(["      Deleted Jobs", lines[0], "=" * sum(width + 2 for width in widths), *lines[1:]]))
    return 0


@batch.command
def cqwait(argv: Sequence[str]) -> int:
    if not argv:
        return complain("No Jobid(s) given")
    while any(str(job["id"]) in argv and job["state"] != batch.ENDED for job in Queue().all()):
        time.sleep(0.1)
    return 0


# --- the batch job ----------------------------------------------------------------------------------------------------


def start(job: Job) -> tuple[list[str], dict[str, str]]:
    """A login shell that becomes the script, with an environment of its own."""
    environ = {
        "HOME": batch.home(), "USER": job["user"], "LOGNAME": job["user"], "SHELL": batch.shell(),
        "COBALT_JOBID": str(job["id"]), "COBALT_PARTSIZE": str(job["nodes"]), "COBALT_JOBSIZE": str(job["nodes"]),
        "COBALT_STARTTIME": str(int(job["started"])), "COBALT_ENDTIME": str(int(job["ends"])),
        **job["variables"],
    }  # fmt: skip
    if job["machine"] == "cray":
        environ.update(
            COBALT_PARTNAME=merged(job["hosts"]),
            COBALT_PARTCORES="64",
            COBALT_PROJECT=job["project"],
            COBALT_QUEUE=job["queue"],
        )
    else:
        nodefile = Path(os.environ["FAKE_BATCH"], f"cobalt.{job['id']}")
        nodefile.write_text("".join(f"{host}\n" for host in job["hosts"]))
        environ.update(COBALT_PARTNAME=f"node[{merged(job['hosts'])}]", COBALT_NODEFILE=str(nodefile))
    return [batch.shell(), "-l", "-c", " ".join(["exec", job["command"], *job["arguments"]])], environ  # nothing is quoted


def note(job: Job, what: str) -> None:
    """Cobalt's log of the batch job, the only place where its exit code is. Of one that was ended it has none."""
    now = stamp(time.time())
    if what == "started":
        variables = f"COBALT_JOBID={job['id']}\nCOBALT_STARTTIME={int(job['started'])}\n"
        text = f"Command: '{job['command']}'\n{now} Environment:\n{variables}\n{now} Info: stdout sent to {job['output']}"
    elif what == "ended":
        code = job["exit"] if job["signal"] is None else 128 + job["signal"]
        text = f"Info: task completed normally with an exit code of {code}; initiating job cleanup and removal"
    else:
        text = {
            "deleted in the queue": "Info: user delete requested; removing job from the queue",
            batch.DELETED: f"Info: user delete requested with signal SIGTERM by user {job['user']}",
            batch.TIME_IS_UP: "Info: maximum execution time exceeded; initiating job terminiation",
        }[what]
    if what != "ended" or not job["stopping"]:
        with open(job["log"], "a") as log:
            log.write(f"{now} {text}\n")


if __name__ == "__main__":
    Runner(int(sys.argv[2]), start, note).run()
