"""The qsub, qstat, qdel and pbsnodes of OpenPBS, as far as a submitter meets them: options, words, exit codes, formats.

From the manual pages of OpenPBS 23.06 and from what such servers printed. With FAKE_PBS=torque they are those of Torque 6.1:
no JSON, -x is XML, ended batch jobs stay in the list with the state C for a while. FAKE_PBS_HISTORY=off: the server keeps no
history, so that ended ones are unknown.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import batch
from batch import Job, Queue, Runner

_QUEUES = ("workq", "debug", "training")
_SERVER = "pbs-server"
_UNKNOWN, _FINISHED = 153, 35
_IS_TORQUE = os.environ.get("FAKE_PBS") == "torque"
_LETTERS = {
    batch.QUEUED: "Q", batch.HELD: "H", batch.STARTING: "R", batch.RUNNING: "R", batch.KILLING: "E",
    batch.ENDED: "C" if _IS_TORQUE else "F",
}  # fmt: skip


def complain(text: str, code: int = 1) -> int:
    print(text, file=sys.stderr)
    return code


def date(seconds: float) -> str:
    return time.strftime("%a %b %e %H:%M:%S %Y", time.localtime(seconds))


def clock(seconds: float) -> str:
    return f"{int(seconds) // 3600:02d}:{int(seconds) % 3600 // 60:02d}:{int(seconds) % 60:02d}"


def full_id(job: Job) -> str:
    return f"{job['id']}.{_SERVER}"


# --- qsub -------------------------------------------------------------------------------------------------------------


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qsub", add_help=False, allow_abbrev=False)
    for name in ("N", "o", "e", "j", "k", "A", "q", "W", "v", "m", "M", "r", "S", "p", "P", "a", "u"):
        parser.add_argument(f"-{name}")
    parser.add_argument("-l", action="append", default=[])
    parser.add_argument("-h", action="store_true")
    parser.add_argument("-V", action="store_true")
    parser.add_argument("script", nargs="?")
    return parser


def directives(script: str) -> list[str]:
    """The words of the lines `#PBS …` before the first command; quoted as in a shell."""
    words: list[str] = []
    for line in Path(script).read_text(errors="replace").splitlines():
        if line.startswith("#PBS "):
            words += shlex.split(line[5:], comments=True)
        elif line.strip() and not line.startswith("#"):
            break
    return words


def _resources(lists: Sequence[str]) -> dict[str, str]:
    """The first -l of a resource wins; the command line comes first."""
    found: dict[str, str] = {}
    for text in lists:
        for pair in text.split(","):
            name, _, value = pair.partition("=")
            found.setdefault(name, value)
    return found


def _seconds(text: str) -> int:
    seconds = 0
    for part in text.split(":"):
        seconds = seconds * 60 + int(part)
    return seconds


@batch.command
def qsub(argv: Sequence[str]) -> int:
    parser = _options()
    first = parser.parse_args(list(argv))
    if not first.script:
        return complain("qsub: no script given (the fake does not read stdin)")
    try:
        own = parser.parse_args(directives(first.script))
    except OSError:
        return complain(f"qsub: script file:: No such file or directory: {first.script}")
    wanted = argparse.Namespace(**{key: value or getattr(own, key) for key, value in vars(first).items()})
    resources = _resources([*first.l, *own.l])
    queue = Queue()
    nodes = int((resources.get("select") or resources.get("nodes") or "1").partition(":")[0])
    if wanted.q and wanted.q not in _QUEUES:
        return complain("qsub: Unknown queue", 170)
    if nodes < 1:
        return complain("qsub: Illegal attribute or resource value Resource_List.select", 19)
    try:
        return _submitted(queue, wanted, nodes, resources, argv)
    except batch.Refused as exc:
        name = wanted.q or _QUEUES[0]
        return complain(
            f"qsub: {exc}" if str(exc) else f"qsub: would exceed queue {name}'s per-user limit of jobs in 'Q' state", 188
        )


def _submitted(queue: Queue, wanted: argparse.Namespace, nodes: int, resources: dict[str, str], argv: Sequence[str]) -> int:
    job = queue.add(
        {
            "dialect": "fake_pbs", "name": wanted.N or os.path.basename(wanted.script), "queue": wanted.q or _QUEUES[0],
            "project": wanted.A or "", "nodes": nodes, "minutes": _seconds(resources.get("walltime", "24:00:00")) / 60,
            "resources": resources, "arguments": " ".join(argv), "cwd": batch.home(), "workdir": os.getcwd(),
            "held": wanted.h, "direct": "d" in (wanted.k or ""), "error": None,
            "variables": dict(pair.partition("=")[::2] for pair in (wanted.v or "").split(",") if pair),
        }
    )  # fmt: skip
    spooled = queue.directory / f"{job['id']}.SC"
    shutil.copyfile(wanted.script, spooled)  # whatever becomes of the script afterwards
    target = os.path.join(os.getcwd(), wanted.o or f"{job['name']}.o{job['id']}")
    output = target if job["direct"] else str(queue.directory / f"{job['id']}.OU")
    job = queue.change(job["id"], script=str(spooled), target=target, output=output)
    queue.start_runner(job)
    print(full_id(job))
    return 0


# --- qstat ------------------------------------------------------------------------------------------------------------


def attributes(job: Job) -> dict[str, Any]:
    """As `qstat -f -F json` nests them."""
    ended = job["state"] == batch.ENDED
    used = (job["ended"] or time.time()) - job["started"] if job["started"] else 0
    scaled = used * 60 / batch.number_from("FAKE_BATCH_MINUTE_S", 60)  # seconds, were a minute as long as it should be
    host = batch.host()
    found: dict[str, Any] = {
        "Job_Name": job["name"], "Job_Owner": f"{job['user']}@{host}",
        **({"resources_used": {"cput": "00:00:00", "mem": "0kb", "walltime": clock(scaled)}} if job["started"] else {}),
        "job_state": _LETTERS[job["state"]], "queue": job["queue"], "server": _SERVER, "Checkpoint": "u",
        "ctime": date(job["submitted"]), "Error_Path": f"{host}:{job['workdir']}/{job['name']}.e{job['id']}",
        **({"exec_host": "+".join(f"{name}/0" for name in job["hosts"])} if job["hosts"] else {}),
        "Join_Path": "oe", "mtime": date(job["ended"] or job["started"] or job["submitted"]),
        "Output_Path": f"{host}:{job['target']}", "qtime": date(job["submitted"]), "Rerunable": True,
        "Resource_List": {"nodect": job["nodes"], **job["resources"], "walltime": clock(job["minutes"] * 60)},
        **({"stime": date(job["started"])} if job["started"] else {}),
        **({"obittime": date(job["ended"])} if ended and job["started"] else {}),
        "substate": _substate(job),
        "Variable_List": {"PBS_O_HOME": batch.home(), "PBS_O_WORKDIR": job["workdir"], "PBS_O_PATH": os.environ["PATH"]},
        "comment": _comment(job), "Submit_arguments": job["arguments"], "project": "_pbs_project_default",
    }  # fmt: skip
    if ended and (job["started"] or not job["stopping"]):
        found["exit_status" if _IS_TORQUE else "Exit_status"] = _exit_status(job)
    return found


def _substate(job: Job) -> int:
    if job["state"] != batch.ENDED:
        return {batch.QUEUED: 10, batch.HELD: 20}.get(job["state"], 42)
    return 91 if job["stopping"] == batch.DELETED else 92 if job["exit"] == 0 else 93


def _exit_status(job: Job) -> int:
    if job["stopping"] == batch.TIME_IS_UP and not _IS_TORQUE:
        return -29
    return 256 + int(job["signal"]) if job["signal"] else int(job["exit"])


def _comment(job: Job) -> str:
    if not job["started"]:
        return "Not Running: Not enough free nodes available"
    began = time.strftime("%a %b %d at %H:%M", time.localtime(job["started"]))
    where = "+".join(f"({host}:ncpus=1)" for host in job["hosts"])
    how = ""
    if job["state"] == batch.ENDED:
        how = " and terminated" if job["stopping"] else " and finished" if job["exit"] == 0 else " and failed"
    return f"Job run at {began} on {where}{how}"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in values.items():
        if key == "Variable_List":
            found[key] = ",".join(f"{name}={text}" for name, text in value.items())
        elif isinstance(value, dict):
            found.update(_flat(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = str(value)
    return found


def _print_text(jobs: Sequence[Job]) -> None:
    """Lines of at most 79 characters; what is longer goes on behind a tab."""
    for job in jobs:
        print(f"Job Id: {full_id(job)}")
        for name, value in _flat(attributes(job)).items():
            text = f"    {name} = {value}"
            print(text[:79])
            for begin in range(79, len(text), 71):
                print("\t" + text[begin : begin + 71])
        print()


def _print_json(jobs: Sequence[Job]) -> None:
    head = {"timestamp": int(time.time()), "pbs_version": "23.06.06", "pbs_server": _SERVER}
    members = {"Jobs": {full_id(job): attributes(job) for job in jobs}} if jobs else {}
    print(json.dumps({**head, **members}, indent=4).replace("/", "\\/"))


def _print_list(jobs: Sequence[Job]) -> None:
    print(f"\n{_SERVER}: \n" + " " * 60 + "Req'd  Req'd   Elap")
    print("Job ID          Username Queue    Jobname    SessID NDS TSK Memory Time  S Time")
    print("--------------- -------- -------- ---------- ------ --- --- ------ ----- - -----")
    for job in jobs:
        name = job["name"] if len(job["name"]) <= 10 else job["name"][:9] + "*"
        state = _LETTERS[job["state"]]
        wall = clock(job["minutes"] * 60)[:5]
        print(
            f"{full_id(job)[:15]:15} {job['user'][:8]:8} {job['queue'][:8]:8} {name:10} {'--':>6} {job['nodes']:3} "
            f"{job['nodes']:3} {'--':>6} {wall:5} {state} {'--':>5}"
        )


@batch.command
def qstat(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="qstat", add_help=False, allow_abbrev=False, usage="qstat [-f] [-x] [-u user] [id…]")
    parser.add_argument("-f", action="store_true")
    parser.add_argument("-x", action="store_true")
    parser.add_argument("-u")
    if not _IS_TORQUE:
        parser.add_argument("-F", choices=["json", "dsv"])
    parser.add_argument("ids", nargs="*")
    wanted = parser.parse_args(list(argv))  # prints the usage and exits with 2, as the real ones do
    jobs = [job for job in Queue().listed() if "output" in job]
    if _IS_TORQUE and wanted.x:
        print("<Data>" + "".join(f"<Job><Job_Id>{full_id(job)}</Job_Id></Job>" for job in jobs) + "</Data>")
        return 0
    history = _IS_TORQUE or (wanted.x and os.environ.get("FAKE_PBS_HISTORY") != "off")
    shown = [job for job in jobs if history or job["state"] != batch.ENDED]
    if wanted.u is not None:
        _print_list([job for job in shown if job["user"] == wanted.u])
        return 0
    code = 0
    if wanted.ids:
        for word in wanted.ids:
            code = _complaint(word, jobs, shown) or code
        numbers = [word.partition(".")[0] for word in wanted.ids]
        shown = [job for number in numbers for job in shown if str(job["id"]) == number]
    if getattr(wanted, "F", None) == "json":
        _print_json(shown)
    elif wanted.f:
        _print_text(shown)
    else:
        for job in shown:
            print(f"{full_id(job):17.17} {job['name']:16.16} {job['user']:17} 00:00:00 {_LETTERS[job['state']]} {job['queue']}")
    return code


def _complaint(word: str, jobs: Sequence[Job], shown: Sequence[Job]) -> int:
    number = word.partition(".")[0]
    if not number.isdigit():
        return complain(f"qstat: illegally formed job identifier: {word}", 1)
    if any(str(job["id"]) == number for job in shown):
        return 0
    if any(str(job["id"]) == number for job in jobs) and os.environ.get("FAKE_PBS_HISTORY") != "off":
        return complain(f"qstat: {word} Job has finished, use -x or -H to obtain historical job information", _FINISHED)
    return complain(f"qstat: Unknown Job Id{' Error' if _IS_TORQUE else ''} {word}", _UNKNOWN)


# --- qdel, pbsnodes ---------------------------------------------------------------------------------------------------


@batch.command
def qdel(argv: Sequence[str]) -> int:
    queue, code = Queue(), 0
    for word in argv:
        job = queue.get(int(word.partition(".")[0])) if word.partition(".")[0].isdigit() else None
        if job is None:
            code = complain(f"qdel: Unknown Job Id {word}", _UNKNOWN)
        elif job["state"] == batch.ENDED:
            code = complain(f"qdel: Job has finished {word}", _FINISHED)
        else:
            queue.delete(job["id"])
    return code


@batch.command
def pbsnodes(argv: Sequence[str]) -> int:
    queue = Queue()
    for name in queue.nodes:
        print(f"{name}\n     Mom = {name}\n     state = free\n     pcpus = 4\n     resources_available.ncpus = 4\n")
    return 0


# --- the batch job ----------------------------------------------------------------------------------------------------


def start(job: Job) -> tuple[list[str], dict[str, str]]:
    """A login shell at home, with an environment of its own, that runs the copy of the script."""
    nodefile = Path(os.environ["FAKE_BATCH"], f"{job['id']}.nodes")
    nodefile.write_text("".join(f"{host}\n" for host in job["hosts"]))
    environ = {
        "HOME": batch.home(), "USER": job["user"], "LOGNAME": job["user"], "SHELL": batch.shell(),
        "PBS_JOBID": full_id(job), "PBS_JOBNAME": job["name"], "PBS_QUEUE": job["queue"], "PBS_ENVIRONMENT": "PBS_BATCH",
        "PBS_NODEFILE": str(nodefile), "PBS_O_WORKDIR": job["workdir"], "PBS_O_HOST": batch.host(), "PBS_NODENUM": "0",
        "PBS_JOBDIR": batch.home(), "PBS_JOBCOOKIE": "0", "NCPUS": "1", "OMP_NUM_THREADS": "1", **job["variables"],
    }  # fmt: skip
    return [batch.shell(), "-l", job["script"]], environ


def note(job: Job, what: str) -> None:
    """At the end the output goes to where it belongs."""
    if what == "ended" and not job["direct"]:
        shutil.copyfile(job["output"], job["target"])


if __name__ == "__main__":
    Runner(int(sys.argv[2]), start, note).run()
