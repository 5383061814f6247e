"""Judge a campaign from outside: the file by plain sqlite3, the jobs' own records, and the process table.

Nothing of balsam_lite is imported. What must hold is written down here a second time, from the documentation of the states,
so that a fault in the program's own tables is seen.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

ENDS = {"JOB_FINISHED", "FAILED", "USER_KILLED"}

#: state -> the states that follow it without a user's doing. States in which nothing is done are not recorded.
EDGES = {
    "CREATED": {"AWAITING_PARENTS", "READY", "STAGED_IN", "PREPROCESSED", "FAILED"},
    "AWAITING_PARENTS": {"READY", "FAILED"},
    "READY": {"AWAITING_PARENTS", "STAGED_IN", "PREPROCESSED", "FAILED"},
    "STAGED_IN": {"AWAITING_PARENTS", "PREPROCESSED", "FAILED"},
    "PREPROCESSED": {"AWAITING_PARENTS", "RUNNING"},
    "RESTART_READY": {"AWAITING_PARENTS", "RUNNING"},
    # Also, when the run certainly never began, back to where the claim found the job.
    "RUNNING": {
        "RUN_DONE",
        "RUN_ERROR",
        "RUN_TIMEOUT",
        "FAILED",
        "RESTART_READY",
        "PREPROCESSED",
        "STAGED_IN",
        "READY",
        "CREATED",
    },
    "RUN_DONE": {"POSTPROCESSED", "JOB_FINISHED", "FAILED"},
    "RUN_ERROR": {"FAILED", "RESTART_READY"},
    "RUN_TIMEOUT": {"FAILED", "RESTART_READY"},
    "POSTPROCESSED": {"JOB_FINISHED", "FAILED"},
}
BEFORE_RUNNING = {"PREPROCESSED", "RESTART_READY"}

#: What a job's own script leads to, whatever is killed around it.
END_OF_KIND = {"ok": "JOB_FINISHED", "flaky": "JOB_FINISHED", "handled": "JOB_FINISHED", "mk": "JOB_FINISHED", "fail": "FAILED"}

#: A job whose launchers died while it ran is given up in the end: it may have been the cause.
GIVEN_UP = re.compile(r"launchers? died")


class Line(NamedTuple):
    """One line that a job or the campaign appended to the record file; the file's order is the order of time."""

    what: str  # start, beat, end, hook, mk
    name: str
    attempt: int
    time: str
    pid: int
    ticks: str  # when the process started, as in /proc/PID/stat
    more: str


def lines_of(records: Path) -> list[Line]:
    found = []
    for text in records.read_text().splitlines():
        what, name, attempt, time, pid, ticks, more = [*text.split(" ", 6), ""][:7]
        found.append(Line(what, name, int(attempt or 0), time, int(pid), ticks, more))
    return found


class Event(NamedTuple):
    id: int
    source: str
    target: str
    message: str


class Reader:
    """What there is at the end of a campaign, and what is wrong with it."""

    def __init__(self, directory: Path, database: Path, plan: dict[str, Any]) -> None:
        self.directory, self.plan = directory, plan
        self.problems: list[str] = []
        copy = directory / "copy"
        copy.mkdir(exist_ok=True)
        for name in ("balsam.sqlite3", "balsam.sqlite3-wal"):
            if (database / name).exists():
                shutil.copy(database / name, copy / name)
        self.data = database / "data"
        self.cx = sqlite3.connect(copy / "balsam.sqlite3")
        self.lines = lines_of(directory / "records")

    def read(self) -> list[str]:
        """Return all that is wrong, a sentence each."""
        whole = self.cx.execute("PRAGMA integrity_check").fetchall()
        if whole != [("ok",)]:
            return [f"the file is damaged: {whole[:3]}"]
        columns = "id, name, state, attempt, lease, workdir, unfinished_parents"
        self.jobs = {row[0]: row for row in self.cx.execute(f"SELECT {columns} FROM job")}
        self.numbers = {row[1]: row[0] for row in self.jobs.values()}
        self.events: dict[int, list[Event]] = defaultdict(list)
        for number, *event in self.cx.execute("SELECT job, id, from_state, to_state, message FROM event ORDER BY id"):
            self.events[number].append(Event(*event))
        self._counters()
        self._holders()
        self._accepted()
        self._chains()
        self._ends()
        self._order()
        self._attempts()
        self.cx.close()
        return self.problems

    def _says(self, name: str, trouble: str) -> None:
        """Note a problem of a job, with its history and its records."""
        number = self.numbers.get(name, 0)
        chain = "\n    ".join(f"event {e.id} {e.source}>{e.target} {e.message[:150]}" for e in self.events[number])
        own = [line for line in self.lines if line.name == name and line.what != "beat"]
        told = "\n    ".join(" ".join(map(str, line)) for line in own)
        self.problems.append(
            f"{name} (job {number}): {trouble}\n    plan: {self.plan['jobs'].get(name)}\n    {chain}\n    {told}"
        )

    # --- the file -----------------------------------------------------------------------------------------------------

    def _counters(self) -> None:
        kept = {state: n for state, n in self.cx.execute("SELECT state, jobs FROM state_count") if n}
        counted = dict(Counter(row[2] for row in self.jobs.values()))
        if kept != counted:
            self.problems.append(f"state_count has {kept}, counted are {counted}")
        for table, column in (("dependency", "parent"), ("dependency", "child"), ("event", "job"), ("job_tag", "job")):
            lost = self.cx.execute(f"SELECT count(*) FROM {table} WHERE {column} NOT IN (SELECT id FROM job)").fetchone()[0]
            if lost:
                self.problems.append(f"{lost} rows of {table} name a {column} that is no job")

    def _holders(self) -> None:
        for number, name, state, _, lease, *_ in self.jobs.values():
            if lease is not None or state not in ENDS:
                self._says(name, f"{state}, held by lease {lease}, when all has ended (number {number})")
        for lease in self.cx.execute("SELECT id, kind, host, pid, note FROM lease WHERE closed IS NULL"):
            # Whether a launcher of a host that was killed is dead is known only after as long as a lease lasts.
            if lease[2] not in self.plan["killed_hosts"]:
                self.problems.append(f"a lease is open: {lease}")

    def _accepted(self) -> None:
        removed = set(self.plan["removed"]) | set(self.plan["perhaps_removed"])
        groups: dict[str, set[bool]] = defaultdict(set)
        for name, job in self.plan["jobs"].items():
            is_there = name in self.numbers
            if job["accepted"] and not is_there and name not in removed:
                self.problems.append(f"{name} was accepted and is not there")
            if name in self.plan["removed"] and is_there:
                self.problems.append(f"{name} was removed and is there")
            if name not in removed:
                groups[job["group"]].add(is_there)
        self.problems += [
            f"half of the jobs of one command are there: {group}" for group, is_there in groups.items() if len(is_there) > 1
        ]
        for line in self.lines:
            child = f"{line.name}-{line.attempt}"
            if line.what == "mk" and line.more == "0" and child not in self.numbers and child not in removed:
                self.problems.append(f"{child}, made by mkchild, is not there")

    def _chains(self) -> None:
        by_user = set(self.plan["restarted"]) | set(self.plan["loose"])
        for number, name, state, attempt, *_ in self.jobs.values():
            last, runs = "CREATED", 0
            for event in self.events[number]:
                if event.source != last:
                    self._says(name, f"event {event.id} leaves {event.source}, the one before entered {last}")
                last = event.target
                runs += last == "RUNNING"
                is_ours = event.target in EDGES.get(event.source, ())
                if event.target == "RUNNING" and event.source not in BEFORE_RUNNING:
                    self._says(name, f"event {event.id}: RUNNING after {event.source}")
                elif not is_ours and not self.plan["bulk_restarts"] and not (by_user & self._with_ancestors(name)):
                    self._says(name, f"event {event.id}: {event.source} > {event.target}, and no user had a hand in it")
            if last != state:
                self._says(name, f"is {state}, its last event says {last}")
            if runs < attempt:
                self._says(name, f"attempt is {attempt}, and RUNNING was entered {runs} times")

    # --- what came of the jobs ----------------------------------------------------------------------------------------

    def _with_ancestors(self, name: str) -> set[str]:
        found, rest = set(), [name]
        while rest:
            one = rest.pop()
            if one not in found:
                found.add(one)
                rest += self.plan["jobs"].get(one, {"parents": []})["parents"]
        return found

    def _state(self, name: str) -> str:
        return str(self.jobs[self.numbers[name]][2]) if name in self.numbers else "removed"

    def _given_up(self, name: str) -> bool:
        return any(e.target == "FAILED" and GIVEN_UP.search(e.message) for e in self.events[self.numbers.get(name, 0)])

    def _expected(self, name: str) -> set[str]:
        """The states in which a job may end."""
        jobs, loose = self.plan["jobs"], set(self.plan["loose"]) | set(self.plan["removed"]) | set(self.plan["perhaps_removed"])
        family = self._with_ancestors(name)
        if (
            name not in jobs
            or family & loose
            or any(jobs[one]["kind"] == "victim" or self._given_up(one) for one in family if one in jobs)
        ):
            return ENDS
        job, parents = jobs[name], [self._state(parent) for parent in jobs[name]["parents"]]
        good = [state == "JOB_FINISHED" for state in parents]
        if parents and not {"all_finished": all(good), "any_finished": any(good), "all_ended": True}[job["run_when"]]:
            return {"FAILED"}
        return {END_OF_KIND[job["kind"]]}

    def _ends(self) -> None:
        ran = {line.name: line for line in self.lines if line.what in ("start", "end")}
        loose = set(self.plan["loose"])
        for _, name, state, _, _, workdir, _ in self.jobs.values():
            expected = self._expected(name)
            if state not in expected:
                self._says(name, f"is {state}, and should be {' or '.join(sorted(expected))}")
            if state != "JOB_FINISHED" or name in loose:
                continue
            if name not in ran or (ran[name].what, ran[name].more) != ("end", "0"):
                self._says(name, "is JOB_FINISHED, and its program says otherwise")
            job = self.plan["jobs"].get(name, {"kind": "", "flags": ""})
            if job["kind"] == "victim" and "g" in job["flags"]:
                continue  # the campaign ended it, which it takes for a good end
            result = self.data / workdir / f"out-{name}.txt"
            if not result.exists():
                self._says(name, f"is JOB_FINISHED without its result {result}")
            if self.plan["jobs"].get(name, {}).get("stage") and not (self.directory / "results" / f"out-{name}.txt").exists():
                self._says(name, "is JOB_FINISHED, and its result was not staged out")

    def _order(self) -> None:
        """No job becomes RUNNING before its `run_when` holds; the events' numbers are the order of commits."""
        for name, job in self.plan["jobs"].items():
            parents = [self.numbers[parent] for parent in job["parents"] if parent in self.numbers]
            if name not in self.numbers or len(parents) < len(job["parents"]) or not parents:
                continue
            for event in self.events[self.numbers[name]]:
                if event.target == "RUNNING":
                    states = [self._state_before(parent, event.id) for parent in parents]
                    good = [state == "JOB_FINISHED" for state in states]
                    # `dep` may have added one that lets it run.
                    is_linked = job["run_when"] == "any_finished" and name in self.plan["loose"]
                    may = {"all_finished": all(good), "any_finished": any(good), "all_ended": ENDS.issuperset(states)}
                    if not (is_linked or may[job["run_when"]]):
                        self._says(name, f"event {event.id}: RUNNING ({job['run_when']}), its parents were {states}")
        self._order_of_programs()

    def _state_before(self, number: int, event_id: int) -> str:
        return next((e.target for e in reversed(self.events[number]) if e.id < event_id), "CREATED")

    def _order_of_programs(self) -> None:
        """The same by the programs' own records: no parent runs when a child starts. A user may restart one then."""
        if self.plan["bulk_restarts"]:
            return
        by_user = set(self.plan["restarted"]) | set(self.plan["loose"])
        # A program that is killed writes no end: it ran until its last line at least.
        last = {
            (line.name, line.attempt): place
            for place, line in enumerate(self.lines)
            if line.more != "left" and line.what != "hook"
        }
        latest: dict[str, int] = {}
        for place, line in enumerate(self.lines):
            if line.what == "start":
                job = self.plan["jobs"].get(line.name)
                parents = set(job["parents"]) - by_user if job and job["run_when"] != "any_finished" else set()
                early = [parent for parent in parents if last.get((parent, latest.get(parent, 0)), 0) > place]
                if early:
                    self._says(line.name, f"attempt {line.attempt} started while its parents {early} ran")
                latest[line.name] = line.attempt

    def _attempts(self) -> None:
        """The numbers of attempts rise, each is used once, and none of one job overlaps another."""
        current: dict[str, int] = {}
        for line in self.lines:
            if line.what == "start":
                if line.attempt <= current.get(line.name, 0):
                    self._says(line.name, f"attempt {line.attempt} started after attempt {current[line.name]}")
                current[line.name] = max(line.attempt, current.get(line.name, 0))
            elif line.what in ("beat", "end") and line.attempt < current.get(line.name, 0):
                self._says(
                    line.name, f"attempt {line.attempt} (process {line.pid}, {line}) runs beside attempt {current[line.name]}"
                )
                current[line.name] = -1  # once is enough
        for name, attempt in current.items():
            if name in self.numbers and attempt > self.jobs[self.numbers[name]][3]:
                self._says(name, f"attempt {attempt} ran, the file knows of {self.jobs[self.numbers[name]][3]}")


# --- the process table ------------------------------------------------------------------------------------------------


class Process(NamedTuple):
    pid: int
    ticks: str  # start time: with the pid it names one process for ever
    parent: int
    state: str
    words: tuple[str, ...]
    inner: int  # its pid in its own pid namespace


def _text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def process(pid: int) -> Process | None:
    """Return what /proc tells of a process that has not ended; None for a zombie."""
    stat = _text(f"/proc/{pid}/stat")
    fields = stat[stat.rfind(")") + 2 :].split()
    if not fields or fields[0] in "ZX":
        return None
    inner = re.search(r"^NSpid:.*\s(\d+)$", _text(f"/proc/{pid}/status"), re.MULTILINE)
    words = tuple(_text(f"/proc/{pid}/cmdline").split("\0"))
    return Process(pid, fields[19], int(fields[1]), fields[0], words, int(inner[1]) if inner else pid)


def processes_of(directory: Path) -> list[Process]:
    """Find all processes of a campaign: by the variable CAMPAIGN, by their words, and by the pids that jobs wrote down."""
    mark, place = f"CAMPAIGN={directory}\0", f"{directory}/"
    records = directory / "records"
    told = {(line.pid, line.ticks) for line in lines_of(records)} if records.exists() else set()
    found = []
    for entry in os.listdir("/proc"):
        one = process(int(entry)) if entry.isdigit() and int(entry) != os.getpid() else None
        if one and (
            (one.inner, one.ticks) in told
            or any(place in word for word in one.words)
            or mark in _text(f"/proc/{entry}/environ")
        ):
            found.append(one)
    return found


def load_plan(directory: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((directory / "plan.json").read_text())
    return loaded
