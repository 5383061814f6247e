"""Random campaigns: launchers, a service and commands work on one DB while all of them are killed, stopped and started again.

    python tests/campaign.py --world local --seconds 40 --rounds 10 --seed 1

One seed decides the jobs, the commands, and what is killed when. Jobs, hooks and the campaign append what they do to files
outside of the DB; at the end a calm launcher runs everything to its end, and `campaign_reader` judges.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import campaign_reader
import mounts
from campaign_reader import Process, process, processes_of

ROOT = Path(__file__).resolve().parent.parent

#: What every job runs: bin/job NAME KIND MILLISECONDS FLAGS COUNT INPUTS
#: Flags: e an empty environment, s a separate session, t ignores TERM, g exits with 0 at TERM, i wants a staged file,
#: b leaves a process in a separate session, B in the same session, E leaves it an empty environment.
JOB = r"""#!/bin/bash
export LC_ALL=C
name=$1 kind=$2 ms=$3 flags=$4 count=$5 inputs=$6
attempt=${CAMPAIGN_ATTEMPT:-$BALSAM_ATTEMPT}
say() {
    local stat
    read -ra stat < /proc/$BASHPID/stat
    printf '%s %s %s %s %s %s %s\n' "$1" "$name" "$attempt" "$EPOCHREALTIME" "$BASHPID" "${stat[21]}" "$2" >> DIRECTORY/records
}
beat() {
    local until=$((${EPOCHREALTIME/./} + $1 * 1000))
    exec 9<> <(:)
    while ((${EPOCHREALTIME/./} < until)); do say beat "$2"; read -rt 0.1 -u 9; done
}
finish() { say end "$1"; exit "$1"; }
keep=("PATH=$PATH" "CAMPAIGN_ATTEMPT=$attempt")
if [[ $CAMPAIGN_STAGE == left ]]; then
    beat 20000 left
    exit
elif [[ -z $CAMPAIGN_STAGE && $flags == *[es]* ]]; then
    words=(env)
    [[ $flags == *s* ]] && words=(setsid --wait env)
    [[ $flags == *e* ]] && words+=(-i)
    exec "${words[@]}" "${keep[@]}" CAMPAIGN_STAGE=inner bash "$0" "$@"
fi
[[ $flags == *t* ]] && trap '' TERM
[[ $flags == *g* ]] && trap 'finish 0' TERM
say start
for parent in ${inputs//,/ }; do [[ $parent == - || -e out-$parent.txt ]] || finish 9; done
[[ $flags == *i* && ! -e given.txt ]] && finish 8
words=(env)
[[ $flags == *E* ]] && words+=(-i)
[[ $flags == *b* ]] && (setsid "${words[@]}" "${keep[@]}" CAMPAIGN_STAGE=left bash "$0" "$@" &)
[[ $flags == *B* ]] && ("${words[@]}" "${keep[@]}" CAMPAIGN_STAGE=left bash "$0" "$@" &)
((ms)) && beat "$ms"
if [[ $kind == flaky || $kind == handled ]]; then
    failures=()
    [[ -e DIRECTORY/failures/$name ]] && mapfile -t failures < "DIRECTORY/failures/$name"
    ((${#failures[@]} < count)) && { echo "$attempt" >> "DIRECTORY/failures/$name"; finish 1; }
fi
[[ $kind == fail ]] && finish 3
if [[ $kind == mk ]]; then
    BALSAM mkchild --name "$name-$attempt" --application work --args "$name-$attempt ok 50 - 0 -" --yes \
        > /dev/null 2>> DIRECTORY/stderr
    say mk $?
fi
echo "$name" > "out-$name.txt"
finish 0
"""

#: A hook that records its run, and one that puts a failed job back.
BEFORE = """#!/bin/bash
LC_ALL=C
read -ra stat < /proc/$BASHPID/stat
printf 'hook %s 0 %s %s %s before\\n' "$BALSAM_JOB_ID" "$EPOCHREALTIME" "$BASHPID" "${stat[21]}" >> DIRECTORY/records
"""
AFTER = """
from balsam_lite.launcher import dag
if dag.current_job.state == "RUN_ERROR" and dag.current_job.return_code == 1:
    dag.current_job.update_state("RESTART_READY", "again")
"""

KINDS = {"ok": 55, "flaky": 12, "fail": 8, "handled": 4, "mk": 6, "victim": 15}
DURATIONS_MS = ((0, 40), (20, 35), (300, 10), (1500, 10), (5000, 5))
#: Where two hosts share a DB, a lease lasts this long, and some programs, and stops of a launcher, last longer.
LEASE_EXPIRY_S = 4.0
LONG_MS = 12000


class Host:
    """This machine, or one of those that share a file system: where a command is started."""

    def __init__(self, name: str, home: Path, argv: Callable[[list[str]], list[str]]) -> None:
        self.name, self.home, self.argv = name, home, argv
        self.launched_at = 0.0


class Command(NamedTuple):
    """A running command and what is done once it has ended: with True if it was done, None if it was killed."""

    process: subprocess.Popen[bytes]
    words: list[str]
    started: float
    then: Callable[[bool | None], None]
    kill_at: float | None


class Campaign:
    """One DB and all that is done to it."""

    def __init__(
        self, directory: Path, seed: int, seconds: float, *, world: str, hidden: bool = True, background: bool = True
    ) -> None:
        self.directory, self.world, self.seconds = directory, world, seconds
        self.hidden, self.background = hidden, background
        self.random = random.Random(seed)
        self.db = directory / "shared" / "db" if world == "shared" else directory / "db"
        self.back = directory / "back" / "db" if world == "shared" else self.db
        self.jobs: dict[str, dict[str, Any]] = {}
        self.ids: dict[str, str] = {}
        self.removed: set[str] = set()
        self.perhaps_removed: set[str] = set()
        self.restarted: set[str] = set()
        self.loose: set[str] = set()  # a user decides how these end
        self.bulk_restarts = 0
        self.killed_hosts: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.commands: list[Command] = []
        self.launchers: list[subprocess.Popen[bytes]] = []
        self.stopped: list[tuple[float, Process]] = []
        self.hosts: list[Host] = []
        self.began = time.monotonic()
        self._number = 0
        self._mounted: list[tuple[mounts.Host, ExitStack]] = []

    def log(self, *words: object) -> None:
        with open(self.directory / "schedule", "a") as file:
            print(f"{time.monotonic() - self.began:8.3f} {time.time():.3f}", *words, file=file)

    # --- the world ----------------------------------------------------------------------------------------------------

    def environ(self, host: Host) -> dict[str, str]:
        settings = {
            "SCHEDULER_CLASS": "LocalScheduler", "HOME": str(host.home), "IDLE_TTL_S": "1.5", "KILL_GRACE_S": "1",
            "SERVICE_PERIOD": "1", "START_DELAY_S": "0.3", "MAX_LOCAL_LAUNCHES": "2",
        }  # fmt: skip
        if self.world == "shared":
            settings |= {"HEARTBEAT_S": "0.5", "LEASE_EXPIRY_S": f"{LEASE_EXPIRY_S:g}"}
        outer = {key: value for key, value in os.environ.items() if not key.startswith(("BALSAM_", "_BALSAM", "SLURM_"))}
        return {
            **outer,
            **{f"BALSAM_{key}": value for key, value in settings.items()},
            "BALSAM_DB_PATH": str(self.db), "CAMPAIGN": str(self.directory), "PYTHONPATH": str(ROOT),
        }  # fmt: skip

    def prepare(self) -> None:
        """Make the hosts, the programs, the DB and its first jobs."""
        for name in ("bin", "failures", "results", "given"):
            (self.directory / name).mkdir()
        (self.directory / "given" / "given.txt").write_text("given\n")
        (self.directory / "records").touch()
        balsam = f"{sys.executable} -m balsam_lite.cli"
        for name, text in (("job", JOB), ("before", BEFORE), ("after", f"#!{sys.executable}\n{AFTER}")):
            path = self.directory / "bin" / name
            path.write_text(text.replace("DIRECTORY", str(self.directory)).replace("BALSAM mkchild", f"{balsam} mkchild"))
            path.chmod(0o755)
        if self.world == "shared":
            (self.directory / "back").mkdir()
            (self.directory / "shared").mkdir()
            for number in (1, 2):
                self._mount(number)
        else:
            self.hosts.append(Host("here", self.directory / "home", lambda words: words))
        self._calm("init", str(self.db))
        self._calm("app", "--name", "work", "--executable", str(self.directory / "bin" / "job"))
        self._calm(
            "app",
            "--name",
            "prepared",
            "--executable",
            str(self.directory / "bin" / "job"),
            "--preprocess",
            str(self.directory / "bin" / "before"),
        )
        self._calm(
            "app",
            "--name",
            "handled",
            "--executable",
            str(self.directory / "bin" / "job"),
            "--postprocess",
            str(self.directory / "bin" / "after"),
        )
        self._add_many(100)
        self._wait_for_commands(120)
        if not self.jobs or not all(job["accepted"] for job in self.jobs.values()):
            raise AssertionError(f"the first jobs could not be added: {self._stderr()}")

    def _mount(self, number: int) -> None:
        """Make a host; one of that number that was killed is forgotten."""
        stack = ExitStack()
        # Without forwarded locks: each host has its own, as on sshfs.
        mounting = mounts.bindfs(self.directory / "back", self.directory / "shared", locks=False)
        made = stack.enter_context(mounts.one_host(f"host{number}", self.directory / "shared", mounting))
        host = Host(made.name, self.directory / f"home{number}", lambda words: made.argv(*words))
        if len(self.hosts) < number:
            self.hosts.append(host)
            self._mounted.append((made, stack))
        else:
            self.hosts[number - 1], self._mounted[number - 1] = host, (made, stack)

    def _stderr(self) -> str:
        path = self.directory / "stderr"
        return path.read_text(errors="replace")[-6000:] if path.exists() else ""

    def start(self, words: list[str], *, host: Host | None = None, stdout: Any = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        host = host or self.random.choice(self.hosts)
        with open(self.directory / "stderr", "ab") as stderr:
            return subprocess.Popen(
                host.argv(words), env=self.environ(host), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
                start_new_session=True, cwd=self.directory,
            )  # fmt: skip

    def _balsam(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "balsam_lite.cli", "--db", str(self.db), *words]

    def _python(self, code: str, *words: str) -> list[str]:
        """Make a script; what the program refuses is no fault of the script."""
        body = "\n".join(f"    {line}" for line in code.strip().splitlines())
        head = (
            "import json, sys\nfrom balsam_lite.core.errors import BalsamError\nfrom balsam_lite.launcher.dag import BalsamJob"
        )
        return [sys.executable, "-c", f"{head}\ntry:\n{body}\nexcept BalsamError as exc:\n    sys.exit(str(exc))", *words]

    def _calm(self, *words: str) -> None:
        argv = self._balsam(*words) if words[0] != "init" else [sys.executable, "-m", "balsam_lite.cli", *words]
        if self.start(argv, host=self.hosts[0]).wait(120):
            raise AssertionError(f"{words} failed: {self._stderr()}")

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def _job(self, group: int, earlier: list[str]) -> dict[str, Any]:
        """Decide a job; returns its fields, and keeps in `jobs` what the reader has to know."""
        choose = self.random
        self._number += 1
        name = f"j{self._number:04d}"
        kind = choose.choices(list(KINDS), list(KINDS.values()))[0]
        ms = choose.choices([d for d, _ in DURATIONS_MS], [w for _, w in DURATIONS_MS])[0]
        if self.world == "shared" and choose.random() < 0.04:
            ms = LONG_MS
        flags = "".join(flag for flag, share in (("e", 0.2), ("s", 0.15), ("t", 0.15), ("i", 0.15)) if choose.random() < share)
        if "t" not in flags and choose.random() < 0.05:
            flags += "g"
        if self.background and choose.random() < 0.08:
            flags += choose.choice(("b", "B", "bE", "BE"))
        if kind == "mk" or not self.hidden:  # mkchild has to know its DB and its job
            flags = flags.replace("e", "")
        parents = choose.sample(earlier, min(len(earlier), choose.randint(1, 3))) if earlier and choose.random() < 0.35 else []
        run_when = choose.choice(("all_finished", "all_finished", "all_ended", "any_finished")) if parents else "all_finished"
        count = choose.randint(1, 3) if kind == "flaky" else int(kind == "handled")
        inputs = ",".join(parents) if parents and run_when == "all_finished" else "-"
        stage = choose.random() < 0.15
        self.jobs[name] = {
            "kind": kind, "flags": flags, "parents": parents, "run_when": run_when, "ms": ms, "group": group, "stage": stage,
            "accepted": None,
        }  # fmt: skip
        application = "handled" if kind == "handled" else choose.choice(("work", "work", "work", "prepared"))
        fields: dict[str, Any] = {
            "name": name, "workflow": f"w{choose.randint(1, 3)}", "application": application,
            "args": f"{name} {kind} {ms} {flags or '-'} {count} {inputs}", "node_packing_count": 4, "restart_limit": 1000,
            "run_when": run_when, "max_retries": count if kind == "flaky" else 0, "priority": choose.randint(0, 3),
        }  # fmt: skip
        if kind == "handled":
            fields["post_error_handler"] = True
        if "i" in flags:
            fields["stage_in_url"] = f"{self.directory}/given/given.txt"
        if stage:
            fields |= {"stage_out_url": f"{self.directory}/results", "stage_out_files": "out-*"}
        if parents:
            fields["parents"] = parents
        return fields

    def _known(self) -> list[str]:
        return [name for name, job in self.jobs.items() if job["accepted"] and name not in self.removed | self.perhaps_removed]

    def _settle(self, names: list[str]) -> Callable[[bool | None], None]:
        def then(done: bool | None) -> None:
            for name in names:
                self.jobs[name]["accepted"] = done

        return then

    def _add_many(self, number: int) -> None:
        """Add jobs by Python: `bulk_create`, with parents of the same call and older ones."""
        older, fields, names = self._known()[-40:], [], []
        group = self._number + 1
        for _ in range(number):
            field = self._job(group, [*older, *names[-30:]])
            field["job_id"] = self.ids[field["name"]] = str(uuid.UUID(int=self.random.getrandbits(128), version=4))
            # What `balsam job` added has an id of that command's choice.
            field["parents"] = [self.ids.get(parent, f"@{parent}") for parent in field.get("parents", ())]
            names.append(field["name"])
            fields.append(field)
        (self.directory / f"jobs{group}.json").write_text(json.dumps(fields))
        code = """
fields = json.load(open(sys.argv[1]))
older = {p[1:] for f in fields for p in f["parents"] if p.startswith("@")}
ids = dict(BalsamJob.objects.filter(name__in=sorted(older)).values_list("name", "job_id")) if older else {}
for f in fields:
    f["parents"] = [ids[p[1:]] if p.startswith("@") else p for p in f["parents"]]
BalsamJob.objects.bulk_create(fields)
"""
        self.command(self._python(code, f"{self.directory}/jobs{group}.json"), self._settle(names))

    def _add_one(self) -> None:
        field = self._job(self._number + 1, self._known()[-40:])
        words = ["job", "--name", field["name"], "--workflow", field["workflow"], "--application", field["application"]]
        words += [
            f"--args={field['args']}",
            "--node-packing-count=4",
            "--restart-limit=1000",
            f"--max-retries={field['max_retries']}",
        ]
        words += [f"--run-when={field['run_when']}", "--yes"]
        words += [word for parent in field.get("parents", ()) for word in ("--parent", parent)]
        if "post_error_handler" in field:
            words.append("--post-handle-error")
        if "stage_in_url" in field:
            words += ["--url-in", field["stage_in_url"]]
        if "stage_out_url" in field:
            words += ["--url-out", field["stage_out_url"], "--stage-out-files", field["stage_out_files"]]
        self.command(self._balsam(*words), self._settle([field["name"]]))

    # --- commands -----------------------------------------------------------------------------------------------------

    def command(self, words: list[str], then: Callable[[bool | None], None] = lambda done: None) -> None:
        """Start a command. One in four is killed in the middle, but not the first one, which adds the jobs."""
        kill_at = None
        if self.counts["commands"] and self.random.random() < 0.25:
            kill_at = time.monotonic() + self.random.choice((0.05, 0.15, 0.25, 0.4)) * self.random.uniform(0.5, 1.5)
        self.counts["commands"] += 1
        host = self.random.choice(self.hosts)
        self.log(
            "command",
            host.name,
            " ".join(words[3:] if words[1] == "-m" else words[2:])[-300:],
            "(to be killed)" if kill_at else "",
        )
        self.commands.append(Command(self.start(words, host=host), words, time.monotonic(), then, kill_at))

    def _look_after_commands(self) -> None:
        now = time.monotonic()
        for command in list(self.commands):
            code = command.process.poll()
            if code is None and command.kill_at and now > command.kill_at:
                for one in self._tree(command.process.pid):
                    self._signal(one, signal.SIGKILL, "command")
                command.process.wait(30)
            elif code is None:
                if now - command.started > 150:
                    self.problems.append(f"a command has not ended after 150 s: {command.words}")
                    self.commands.remove(command)
                continue
            code = command.process.wait(30)
            self.commands.remove(command)
            self.log("ended", code, command.words[-1] if command.words[1] == "-c" else " ".join(command.words[5:])[:80])
            self.counts[f"commands that ended with {code}"] += 1
            if code not in (0, 1, 2, 3, 75, -9, 137):
                self.problems.append(f"exit code {code} of {command.words}")
            command.then(True if code == 0 else None)

    def _wait_for_commands(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.commands and time.monotonic() < deadline:
            self._look_after_commands()
            time.sleep(0.05)

    def _any_job(self) -> str:
        return self.random.choice(self._known() or list(self.jobs))

    def act_rerun(self) -> None:
        name = self._any_job()
        more = self.random.choice(([], ["--downstream"], ["--to", "CREATED"]))
        self.restarted.add(name)
        if "--downstream" in more:
            self.bulk_restarts += 1
        self.command(self._balsam("rerun", "--id", name, *more, "--yes"))

    def act_rerun_failed(self) -> None:
        self.bulk_restarts += 1
        self.command(self._balsam("rerun", "--state", "FAILED", "--yes"))

    def act_kill(self) -> None:
        name, more = self._any_job(), self.random.choice(([], ["--recursive"]))
        self.loose.add(name)  # what depends on it is loose, too
        self.command(self._balsam("killjob", "--id", name, *more, "--yes"))

    def act_remove(self) -> None:
        name = self._any_job()
        self.perhaps_removed.add(name)
        self.command(self._balsam("rm", "jobs", "--id", name, "--force"), lambda done: self.removed.add(name) if done else None)

    def act_modify(self) -> None:
        name = self._any_job()
        field, value = self.random.choice(
            (("priority", "7"), ("data", '{"step": 2}'), ("state", "RESTART_READY"), ("state", "FAILED"))
        )
        if field == "state":
            self.loose.add(name)
        self.command(self._balsam("modify", name, field, value))

    def act_update_state(self) -> None:
        name = self._any_job()
        self.loose.add(name)
        state = self.random.choice(("RESTART_READY", "JOB_FINISHED", "CREATED"))
        self.command(
            self._python("BalsamJob.objects.filter(name=sys.argv[2]).update(state=sys.argv[3])", f"{self.db}/", name, state)
        )

    def act_depend(self) -> None:
        parent, child = sorted((self._any_job(), self._any_job()))
        if parent != child:
            self.loose.add(child)
            self.command(self._balsam("dep", parent, child))

    def act_add(self) -> None:
        self._add_one()

    def act_add_many(self) -> None:
        self._add_many(self.random.randint(2, 25))

    def act_look(self) -> None:
        words = (
            ["ls"],
            ["ls", "--history", "--limit", "20"],
            ["ls", "--json"],
            ["ls", "--by-states"],
            ["db", "info"],
            ["service", "status"],
        )
        self.command(self._balsam(*self.random.choice(words)))

    # --- launchers, the service and their ends ------------------------------------------------------------------------

    def act_launch(self) -> None:
        self.launchers = [launcher for launcher in self.launchers if launcher.poll() is None]
        running = [one for one in self._processes("launcher") if one.parent == os.getpid() or self.world == "shared"]
        if len(running) < 2:
            # Mostly on one host for some seconds, so that what the other one left is found from there.
            self._launch(self.hosts[int((time.monotonic() - self.began) / 8 + (self.random.random() < 0.25)) % len(self.hosts)])

    def _launch(self, host: Host) -> None:
        self.log("launcher on", host.name)
        self.counts["launchers"] += 1
        host.launched_at = time.monotonic()
        words = self._balsam("launcher", "--consume-all", "--job-mode", "serial", "--nodes", "2")
        self.launchers.append(self.start(words, host=host))

    def _look_after_orphans(self, pause_s: float = 2) -> None:
        """Start a launcher on a host where a launcher and all of its helpers were killed, but not their programs.

        It ends them. Without it, a launcher of another host would start their jobs again when the lease has run out: it cannot
        see them, and no process is left that could end them (see docs/limits.rst).
        """
        for host, (made, _) in zip(self.hosts, self._mounted):
            its = [one for one in self._processes() if _namespace(one.pid) == _namespace(made.init)]
            is_kept = any(_role(one) == "launcher" or "spawn_helper" in " ".join(one.words) for one in its)
            if not is_kept and any(_role(one) == "job" for one in its) and time.monotonic() > host.launched_at + pause_s:
                self._launch(host)

    def act_service(self) -> None:
        if not self._processes("service"):
            self.log("service")
            self.counts["services"] += 1
            self.launchers.append(self.start(self._balsam("service")))

    def _processes(self, role: str = "") -> list[Process]:
        """All processes of the campaign in a role: launcher, helper, service, job. What makes the hosts is none of them."""
        found = [one for one in processes_of(self.directory) if not _makes_hosts(one)]
        if not role:
            return found
        launchers = {one.pid for one in found if _role(one) == "launcher"}
        if role in ("launcher", "helper"):
            helpers = {
                one.pid for one in found
                if "spawn_helper" in " ".join(one.words) or (one.pid in launchers and one.parent in launchers)
            }  # fmt: skip
            return [one for one in found if one.pid in (helpers if role == "helper" else launchers - helpers)]
        return [one for one in found if _role(one) == role]

    def _tree(self, root: int) -> list[Process]:
        """The process that was started as `root`, without those that only lead to it."""
        one = process(root)
        if one is None:
            return []
        if one.words[0].endswith("nsenter"):
            return [child for child in (process(pid) for pid in _children(root)) if child]
        return [one]

    def _signal(self, one: Process, number: signal.Signals, what: str) -> bool:
        now = process(one.pid)
        if now is None or now.ticks != one.ticks:
            return False
        try:
            os.kill(one.pid, number)
        except ProcessLookupError:
            return False
        self.log(number.name, what, one.pid, "inner", one.inner, " ".join(one.words)[-160:])
        self.counts[f"{number.name} {what}"] += 1
        return True

    def _kill_some(self, role: str, number: signal.Signals = signal.SIGKILL) -> None:
        found = self._processes(role)
        # A process that has just been forked is not yet what it will be.
        found = [one for one in found if _age_s(one) > 0.5]
        if found:
            self._signal(self.random.choice(found), number, role)

    def act_kill_launcher(self) -> None:
        self._kill_some("launcher")

    def act_stop_launcher_kindly(self) -> None:
        self._kill_some("launcher", signal.SIGTERM)

    def act_kill_helper(self) -> None:
        self._kill_some("helper")

    def act_kill_launcher_and_helpers(self) -> None:
        found = [one for one in self._processes("launcher") if _age_s(one) > 0.5]
        if found:
            one = self.random.choice(found)
            helpers = [helper for helper in self._processes("helper") if helper.parent == one.pid]
            for each in self.random.sample([one, *helpers], len(helpers) + 1):
                self._signal(each, signal.SIGKILL, "launcher with its helpers")

    def act_kill_service(self) -> None:
        self._kill_some("service", self.random.choice((signal.SIGKILL, signal.SIGTERM)))

    def act_kill_job(self) -> None:
        """Kill a program whose job may end as it likes. A hook's or another job's end would be its own failure."""
        found = [one for one in self._processes("job") if "victim" in one.words]
        if found:
            self._signal(self.random.choice(found), self.random.choice((signal.SIGKILL, signal.SIGTERM)), "job")

    def act_stop(self) -> None:
        """Stop a process for a while, on a shared DB also for longer than a lease lasts."""
        role = self.random.choice(("launcher", "launcher", "helper", "service", "job"))
        found = [one for one in self._processes(role) if _age_s(one) > 0.5]
        if found and len(self.stopped) < 3:
            one = self.random.choice(found)
            longest = 3 * LEASE_EXPIRY_S if self.world == "shared" and role == "launcher" else 3.0
            if self._signal(one, signal.SIGSTOP, role):
                self.stopped.append((time.monotonic() + self.random.uniform(0.2, longest), one))

    def act_kill_host(self) -> None:
        """Kill the first process of a host, and so all others, its file system too; another one takes its name."""
        if self.world == "shared":
            number = self.random.choice((1, 2))
            made, stack = self._mounted[number - 1]
            self.log("kill host", number)
            self.counts["SIGKILL host"] += 1
            self.killed_hosts.add(f"host{number}")
            made.kill()
            stack.close()
            self._look_after_commands()
            self._mount(number)

    def _let_go_on(self, *, at_once: bool = False) -> None:
        for moment, one in list(self.stopped):
            if at_once or time.monotonic() > moment:
                self.stopped.remove((moment, one))
                self._signal(one, signal.SIGCONT, "a stopped one")
                parent = process(one.parent)
                if parent and parent.words[0].endswith("nsenter"):  # it stopped with its child
                    os.kill(parent.pid, signal.SIGCONT)

    # --- the campaign -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Do random things for `seconds`."""
        weights = {
            self.act_launch: 22, self.act_service: 3,
            self.act_rerun: 5, self.act_rerun_failed: 1, self.act_kill: 3, self.act_remove: 2, self.act_modify: 4,
            self.act_update_state: 2, self.act_depend: 2, self.act_add: 6, self.act_add_many: 4, self.act_look: 3,
            self.act_kill_launcher: 10, self.act_stop_launcher_kindly: 4, self.act_kill_helper: 5,
            self.act_kill_launcher_and_helpers: 4, self.act_kill_service: 2, self.act_kill_job: 6, self.act_stop: 7,
            self.act_kill_host: 2,
        }  # fmt: skip
        actions = list(weights)
        deadline = time.monotonic() + self.seconds
        self.act_launch()
        while time.monotonic() < deadline:
            self._let_go_on()
            self._look_after_commands()
            self._look_after_orphans()
            action = self.random.choices(actions, list(weights.values()))[0]
            is_command = not action.__name__.startswith(("act_kill_", "act_stop", "act_launch", "act_service"))
            if not (is_command and len(self.commands) >= 4):
                action()
            time.sleep(self.random.choice((0.02, 0.1, 0.2, 0.4)))

    def calm(self) -> None:
        """Let everything go on and end, then undisturbed launchers run all jobs to their ends."""
        self.log("calm")
        self._let_go_on(at_once=True)
        self._wait_for_commands(200)
        for role in ("service", "launcher"):
            for one in self._processes(role):
                self._signal(one, signal.SIGTERM, f"{role} at the end")
            self._until(lambda role=role: not self._processes(role), 60, f"a {role} does not end when it is told to")  # type: ignore[misc]
        # The last launcher of a host may have been killed before it ended what another one with a killed helper had left.
        self._until(lambda: not self._processes("helper"), 20, "a helper does not end without its launcher")
        self._look_after_orphans(pause_s=0)
        for number in range(6):
            launcher = self.start(
                self._balsam("launcher", "--consume-all", "--job-mode", "serial", "--nodes", "4"),
                host=self.hosts[number % len(self.hosts)],
            )
            self.log("calm launcher", launcher.pid)
            try:
                code = launcher.wait(240)
            except subprocess.TimeoutExpired:
                self.problems.append("the last launcher does not end")
                return
            self.log("calm launcher ended with", code)
            waiting = self._open()
            if not waiting:
                break
            self.log("not all has ended", waiting)
            time.sleep(2)
        if not self._until(lambda: not self._processes(), 15, ""):
            left = [f"{one.pid} (inner {one.inner}, parent {one.parent}): {' '.join(one.words)}" for one in self._processes()]
            self.problems.append("processes are left: " + "\n    ".join(left))

    def _open(self) -> str:
        """What is still to be done, by the program's own words: only to see whether to wait on; the reader judges."""
        done = subprocess.run(
            self.hosts[0].argv(self._balsam("db", "info", "--json")),
            env=self.environ(self.hosts[0]),
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode:
            return f"unknown: {done.stderr.strip()}"
        states = json.loads(done.stdout)[0]["states"]
        return ", ".join(f"{n} {state}" for state, n in states.items() if n and state not in campaign_reader.ENDS)

    def _until(self, predicate: Callable[[], bool], seconds: float, trouble: str) -> bool:
        deadline = time.monotonic() + seconds
        while not predicate():
            if time.monotonic() > deadline:
                if trouble:
                    self.problems.append(trouble)
                return False
            time.sleep(0.1)
        return True

    def unmount(self) -> None:
        """End the hosts; the file is read where it lies, without their mounts."""
        for _, stack in self._mounted:
            stack.close()

    def judge(self) -> list[str]:
        plan = {
            "jobs": self.jobs, "removed": sorted(self.removed), "perhaps_removed": sorted(self.perhaps_removed - self.removed),
            "restarted": sorted(self.restarted), "loose": sorted(self.loose), "bulk_restarts": self.bulk_restarts,
            "killed_hosts": sorted(self.killed_hosts),
        }  # fmt: skip
        (self.directory / "plan.json").write_text(json.dumps(plan))
        text = (self.directory / "stderr").read_text(errors="replace")
        if "Traceback" in text and not self.counts["SIGKILL host"]:  # which takes the file system from those on it
            self.problems.append(f"a traceback on stderr:\n{text[max(text.find('Traceback') - 200, 0) :][:4000]}")
        self.problems += campaign_reader.Reader(self.directory, self.back, plan).read()
        return self.problems

    def close(self) -> None:
        """End all that was started, whatever happened."""
        for _ in range(100):
            left = processes_of(self.directory)
            for one in left:
                now = process(one.pid)
                if now and now.ticks == one.ticks:
                    try:
                        os.kill(one.pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
            for started in (*self.launchers, *(command.process for command in self.commands)):
                started.poll()
            if not left:
                break
            time.sleep(0.05)
        self.unmount()


def _role(one: Process) -> str:
    words = one.words
    if any(word.endswith("/bin/job") for word in words):
        return "job"
    if "balsam_lite.cli" in words or any(word.endswith("/balsam") for word in words):
        return next((role for role in ("launcher", "service") if role in words and "status" not in words), "command")
    return ""


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def _makes_hosts(one: Process) -> bool:
    return one.words[0].endswith(("nsenter", "unshare", "bindfs")) or " ".join(one.words).startswith("bash -c hostname host")


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _age_s(one: Process) -> float:
    """Seconds since a process was started."""
    return float(Path("/proc/uptime").read_text().split()[0]) - int(one.ticks) / os.sysconf("SC_CLK_TCK")


class Result(NamedTuple):
    problems: list[str]
    counts: Counter[str]
    jobs: int
    attempts: int


@contextmanager
def _place(keep: bool) -> Iterator[Path]:
    # Not below pytest's directories: paths of sockets and pipes are short, and the place is what marks our processes.
    place = Path(tempfile.mkdtemp(prefix="campaign-"))
    try:
        yield place
    finally:
        if not keep:
            shutil.rmtree(place, ignore_errors=True)


def campaign(
    seed: int, seconds: float, world: str, *, keep: bool = False, hidden: bool = True, background: bool = True
) -> Result:
    """Run one campaign from start to end. On problems its schedule is printed.

    With `hidden` some programs have an empty environment, with `background` some leave processes.
    """
    with _place(keep) as directory:
        one = Campaign(directory, seed, seconds, world=world, hidden=hidden, background=background)
        try:
            one.prepare()
            one.run()
            one.calm()
            one.unmount()
            problems = one.judge()
        finally:
            one.close()
        starts = sum(line.what == "start" for line in campaign_reader.lines_of(directory / "records"))
        if problems:
            print(f"--- seed {seed}, world {world}, {directory}: schedule")
            print((directory / "schedule").read_text())
        return Result(problems, one.counts, len(one.jobs), starts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--world", choices=("local", "shared", "both"), default="local")
    parser.add_argument("--seconds", type=float, default=40, help="of random actions in each round")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=0, help="go on for this long, however many rounds that takes")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--keep", action="store_true", help="keep the directories of rounds with problems")
    parser.add_argument("--no-background", action="store_true", help="no jobs that leave processes behind")
    parser.add_argument("--no-hidden", action="store_true", help="no jobs with an empty environment")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    worlds = ("local", "shared") if given.world == "both" else (given.world,)
    total: Counter[str] = Counter()
    bad, rounds, end = 0, 0, time.monotonic() + 60 * given.minutes
    while rounds < given.rounds or time.monotonic() < end:
        world = worlds[rounds % len(worlds)]
        started = time.monotonic()
        result = campaign(
            seed, given.seconds, world, keep=given.keep, hidden=not given.no_hidden, background=not given.no_background
        )
        rounds += 1
        total += result.counts
        bad += bool(result.problems)
        took, found = time.monotonic() - started, len(result.problems)
        tally = f"{result.jobs} jobs, {result.attempts} attempts, {took:.0f} s, {found} problems"
        print(f"seed {seed} {world}: {tally}", flush=True)
        for problem in result.problems:
            print(" -", problem, flush=True)
        seed += 1
    print(json.dumps({"rounds": rounds, "rounds with problems": bad, **dict(sorted(total.items()))}, indent=1))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
