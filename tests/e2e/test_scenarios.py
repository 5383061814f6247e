"""Whole workflows by real launchers, interrupted and repaired: the scenarios that Balsam 0.3 was tested with."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers import wait_until
from launching import PYTHON, Bench, alive

from balsam_lite.core.process_table import Holder
from balsam_lite.db.query import queries
from balsam_lite.db.store import claims, leases, runs, user_actions


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path, BALSAM_KILL_GRACE_S="0.5")
    yield made
    made.close()


def write(bench, name, code):
    """An executable file; its path."""
    path = Path(bench.directory).parent / name
    path.write_text(code)
    path.chmod(0o755)
    return str(path)


def shell(bench, name, code):
    return write(bench, f"{name}.sh", f"#!/bin/sh\n{code}\n")


def program(bench, name, code):
    """A Python program that knows nothing of Balsam."""
    return write(bench, f"{name}.py", f"#!{PYTHON}\nimport glob, os, random, sys, time\n{code}\n")


def hook(bench, name, code):
    return write(bench, f"{name}.py", f"#!{PYTHON}\nfrom balsam_lite.launcher import dag\njob = dag.current_job\n{code}\n")


def outside(bench, code):
    """A Python script of the user, beside all jobs."""
    script = f"from balsam_lite.launcher import dag\nfrom balsam_lite.launcher.dag import BalsamJob\n{code}"
    return subprocess.Popen([PYTHON, "-c", script], env={**bench.environ, "BALSAM_DB_PATH": bench.directory})


def passed(bench, job):
    return [state for state, _ in bench.history(job)]


def number_of(bench, name):
    with bench.db.read() as cx:
        return cx.execute("SELECT id FROM job WHERE name = ?", (name,)).fetchone()[0]


def all_numbers(bench):
    with bench.db.read() as cx:
        return [row[0] for row in cx.execute("SELECT id FROM job ORDER BY id")]


def parent_names(bench, job):
    with bench.db.read() as cx:
        return sorted(queries.job(cx, queries.find_job(cx, one))["name"] for one in queries.relatives(cx, job)[0])


def states_by_name(bench):
    with bench.db.read() as cx:
        return dict(cx.execute("SELECT name, state FROM job"))


# --- 81 jobs and two deaths -------------------------------------------------------------------------------------------


WAYS = ("normal", "timeout", "fail")

#: Until the file `calm` is there, what times out hangs unless its handler has changed its arguments.
STUBBORN = """
echo $BALSAM_ATTEMPT >> attempts
echo $$ >> pids
case "$1" in
    normal) sleep 0.02 ;;
    fail) exit 3 ;;
    timeout) [ -e "$BALSAM_DB_PATH/calm" ] || exec sleep 300 ;;
esac
"""

#: Python is started only where something is to be repaired.
AFTERWARDS = """
echo $$ >> pids
[ "$BALSAM_JOB_ERROR$BALSAM_JOB_TIMEOUT" = FALSEFALSE ] || exec {repair}
"""

REPAIR = """
if dag.ERROR and job.name.startswith("parent"):
    job.update_state("JOB_FINISHED", "good enough")
else:
    job.args = "repaired"
    job.save()
    job.update_state("RESTART_READY", "once more")
"""


def add_triples(bench):
    """A parent with two children for each of the 27 combinations of what may happen to the three."""
    bench.app(
        "task",
        shell(bench, "task", STUBBORN),
        postprocess=shell(bench, "afterwards", AFTERWARDS.format(repair=hook(bench, "repair", REPAIR))),
    )
    common = {"application": "task", "node_packing_count": 16, "post_error_handler": True, "post_timeout_handler": True}
    triples = list(itertools.product(WAYS, repeat=3))
    parents = bench.add([{**common, "name": f"parent {n}", "args": way} for n, (way, _, _) in enumerate(triples)])
    children = [
        # Without `input_files` they would append to their parents' files, through links.
        {**common, "name": f"child {n}.{m}", "args": way, "parents": [parents[n]], "input_files": ""}
        for n, (_, *ways) in enumerate(triples)
        for m, way in enumerate(ways)
    ]
    return [*parents, *bench.add(children)]


def test_81_jobs_that_fail_and_hang_all_finish_although_two_launchers_die(bench):
    jobs = add_triples(bench)
    first = bench.launch("--nodes", "2")
    hanging = [job for job in jobs[:27] if bench.job(job)["args"] == "timeout"]
    for job in hanging:
        wait_until(lambda job=job: bench.path(job, "pids").exists(), 30)
    wait_until(lambda: bench.states().get("JOB_FINISHED", 0) >= 10, 30)
    first.kill()
    first.wait()
    assert {bench.job(job)["state"] for job in hanging} == {"RUNNING"}
    second = bench.launch("--nodes", "2")
    # 18 parents and 24 of their children end by themselves or are repaired at once. 9 parents and 12 children hang.
    wait_until(lambda: bench.states() == {"JOB_FINISHED": 42, "RUNNING": 21, "AWAITING_PARENTS": 18}, 30)
    second.send_signal(signal.SIGTERM)
    assert second.wait(20) == 0
    assert bench.states() == {"JOB_FINISHED": 42, "RUN_TIMEOUT": 21, "AWAITING_PARENTS": 18}
    Path(bench.directory, "calm").touch()
    assert bench.run("--nodes", "2") == 0
    assert bench.states() == {"JOB_FINISHED": 81}
    workdirs = {bench.path(job) for job in jobs}
    assert len(workdirs) == 81 and all(path.is_dir() for path in workdirs)
    for job in jobs:
        attempts = [int(word) for word in bench.path(job, "attempts").read_text().split()]
        assert attempts == sorted(set(attempts))
        assert attempts[-1] == bench.job(job)["attempt"] == passed(bench, job).count("RUNNING")
        assert not any(alive(int(pid)) for pid in bench.path(job, "pids").read_text().split())
        assert bench.job(job)["lease"] is None


# --- sides, squares, their sum ----------------------------------------------------------------------------------------

MAKE = """
if sys.argv[1] == "hang":
    open("up", "w").close()
    time.sleep(300)
if sys.argv[1] == "fail":
    sys.exit(1)
for number, side in enumerate(sys.argv[1:]):
    with open(f"side{number}.txt", "w") as file:
        file.write(side)
"""

MAKE_BEFORE = """
if not job.args:
    job.args = " ".join(map(str, job.data["sides"]))
    job.save()
"""

SQUARE = """
if sys.argv[1:] == ["hang"]:
    open("up", "w").close()
    time.sleep(300)
if sys.argv[1:] == ["fail"]:
    sys.exit(1)
(name,) = glob.glob("side*.txt")
assert os.path.islink(name) and os.path.exists("prepared")
with open("square.txt", "w") as file:
    file.write(str(int(open(name).read()) ** 2))
"""

SQUARE_AFTER = """
if dag.TIMEOUT or dag.ERROR:
    job.args = ""
    job.save()
    job.update_state("RESTART_READY", "once more")
else:
    job.data["area"] = int(job.read_file_in_workdir("square.txt"))
    job.save()
"""

#: The squares all have one name, so the second and those after it are linked as `square.txt_<id8>`.
REDUCE = """
areas = [int(open(name).read()) for name in glob.glob("square.txt*")]
with open("sum.txt", "w") as file:
    file.write(str(sum(areas)))
print(len(areas))
"""

SIDES = (2, 3, 5, 7)


class MapReduce:
    """One job that makes sides, one for each side that squares it, one that adds the areas and stages the sum out."""

    def __init__(self, bench, make_after="", **make):
        self.bench, self.results = bench, Path(bench.directory).parent / "results"
        before = shell(bench, "before", "touch prepared")
        report = shell(bench, "report", 'echo "The sum is $(cat sum.txt)." > report.txt')
        hooks = {"postprocess": hook(bench, "make_after", make_after)} if make_after else {}
        bench.app("make", program(bench, "make", MAKE), preprocess=hook(bench, "make_before", MAKE_BEFORE), **hooks)
        after = hook(bench, "square_after", SQUARE_AFTER)
        bench.app("square", program(bench, "square", SQUARE), preprocess=before, postprocess=after)
        bench.app("reduce", program(bench, "reduce", REDUCE), postprocess=report)
        fields = {"name": "make", "workflow": "areas", "application": "make", "data": {"sides": SIDES}}
        (self.make,) = bench.add([{**fields, **make}])
        self.squares, self.reduce = [], 0

    def add_squares(self, **first):
        """`first`: fields of the first of them."""
        common = {"workflow": "areas", "application": "square", "parents": [self.make]}
        dicts = [{**common, "name": f"square{n}", "input_files": f"side{n}.txt"} for n in range(len(SIDES))]
        self.squares = self.bench.add([{**dicts[0], **first}, *dicts[1:]])
        return self

    def add_reduce(self, parents=()):
        out = {"stage_out_url": f"local:{self.results}", "stage_out_files": "sum.txt report.txt"}
        fields = {"name": "reduce", "workflow": "areas", "application": "reduce", "input_files": "square.txt*"}
        (self.reduce,) = self.bench.add([{**fields, **out, "parents": list(parents or self.squares)}])
        return self

    def check(self, sides=SIDES):
        """Everything that is left to finish has finished, and the numbers are right."""
        expected = sum(side**2 for side in sides)
        assert self.bench.job(self.reduce)["state"] == "JOB_FINISHED"
        assert self.bench.path(self.reduce, "reduce.out").read_text() == f"{len(sides)}\n"
        assert (self.results / "sum.txt").read_text() == str(expected)
        assert (self.results / "report.txt").read_text() == f"The sum is {expected}.\n"
        areas = [json.loads(self.bench.job(job)["data"])["area"] for job in self.squares]
        assert areas == [side**2 for side in sides]

    def interrupt(self, job):
        """Stop a launcher as soon as that job hangs and everything else that can be done is done."""
        launcher = self.bench.launch()
        wait_until(lambda: self.bench.path(job, "up").exists(), 20)
        busy = ("CREATED", "READY", "STAGED_IN", "PREPROCESSED", "RUN_DONE", "POSTPROCESSED")
        wait_until(lambda: self.bench.states()["RUNNING"] == 1 and not any(self.bench.states().get(s) for s in busy), 20)
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(20) == 0
        assert self.bench.job(job)["state"] == "RUN_TIMEOUT"


def test_a_map_reduce_of_files_gives_the_right_numbers(bench):
    areas = MapReduce(bench).add_squares().add_reduce()
    assert bench.run() == 0
    assert bench.states() == {"JOB_FINISHED": 6}
    areas.check()
    assert passed(bench, areas.reduce)[-3:] == ["RUN_DONE", "POSTPROCESSED", "JOB_FINISHED"]


def test_a_child_that_timed_out_is_repaired_and_its_own_child_waits_for_that(bench):
    areas = MapReduce(bench).add_squares(args="hang", post_timeout_handler=True).add_reduce()
    areas.interrupt(areas.squares[0])
    assert bench.states() == {"JOB_FINISHED": 4, "RUN_TIMEOUT": 1, "AWAITING_PARENTS": 1}
    assert bench.run() == 0
    areas.check()
    assert passed(bench, areas.squares[0]).count("RUNNING") == 2


def test_a_child_that_failed_is_repaired_and_its_own_child_waits_for_that(bench):
    areas = MapReduce(bench).add_squares(args="fail", post_error_handler=True).add_reduce()
    assert bench.run() == 0
    assert bench.states() == {"JOB_FINISHED": 6}
    areas.check()
    assert ("RESTART_READY", "once more") in bench.history(areas.squares[0])


RESCUE = """
if dag.TIMEOUT:
    children = list(dag.children)
    rescue = dag.spawn_child(name="rescue", args="")
    {loose}
    for child in children:
        child.set_parents([rescue])
    job.update_state("{state}", "rescued")
"""


@pytest.mark.parametrize(("state", "loose"), [("JOB_FINISHED", "pass"), ("FAILED", "rescue.set_parents([])")])
def test_a_parent_that_timed_out_has_a_rescue_job_put_between_it_and_its_children(bench, state, loose):
    rescue = RESCUE.format(state=state, loose=loose)
    areas = MapReduce(bench, rescue, args="hang", post_timeout_handler=True).add_squares().add_reduce()
    areas.interrupt(areas.make)
    assert bench.run() == 0
    areas.check()
    assert bench.history(areas.make)[-1] == (state, "rescued")
    assert passed(bench, areas.make).count("RUNNING") == 1
    rescuer = number_of(bench, "rescue")
    assert passed(bench, rescuer)[-1] == "JOB_FINISHED"
    assert parent_names(bench, rescuer) == (["make"] if state == "JOB_FINISHED" else [])
    assert all(parent_names(bench, job) == ["rescue"] for job in areas.squares)
    assert all(str(bench.path(rescuer)) in os.readlink(bench.path(job, f"side{n}.txt")) for n, job in enumerate(areas.squares))


def test_a_parent_that_failed_is_repaired_by_its_handler_without_another_job(bench):
    code = """
if dag.ERROR:
    for number, side in enumerate(job.data["sides"]):
        open(f"side{number}.txt", "w").write(str(side))
    job.update_state("JOB_FINISHED", "written by hand")"""
    areas = MapReduce(bench, code, args="fail", post_error_handler=True).add_squares().add_reduce()
    assert bench.run() == 0
    assert bench.states() == {"JOB_FINISHED": 6}
    areas.check()
    assert bench.history(areas.make)[-2:] == [
        ("RUN_ERROR", "nonzero return 1"),
        ("JOB_FINISHED", "written by hand"),
    ]


def test_a_script_adds_as_many_children_as_it_finds_files_and_lets_a_waiting_job_wait_for_them(bench):
    spawn = """
import glob
reduce = job.get_child_by_name("reduce")
for number in range(len(glob.glob("side*.txt"))):
    square = dag.spawn_child(name=f"square{number}", application="square", args="", input_files=f"side{number}.txt")
    dag.add_dependency(square, reduce)"""
    areas = MapReduce(bench, spawn)
    make = "\nfor number in range(random.randint(4, 8)):\n    open(f'side{number}.txt', 'w').write(str(random.randint(1, 99)))"
    program(bench, "make", make)
    areas.add_reduce([areas.make])
    assert bench.run() == 0
    sides = [int(bench.path(areas.make, f"side{n}.txt").read_text()) for n in range(len(all_numbers(bench)) - 2)]
    assert 4 <= len(sides) <= 8
    areas.squares = [number_of(bench, f"square{n}") for n in range(len(sides))]
    areas.check(sides)
    assert parent_names(bench, areas.reduce) == ["make", *(f"square{n}" for n in range(len(sides)))]
    assert bench.states() == {"JOB_FINISHED": 2 + len(sides)}


# --- from scripts -----------------------------------------------------------------------------------------------------


def test_a_postprocess_script_spawns_a_child_that_is_a_copy_and_waits_for_it(bench):
    bench.app("a", "echo", postprocess=hook(bench, "spawn", "if job.name == 'A':\n    dag.spawn_child(name='B', args='b')"))
    (first,) = bench.add([{"name": "A", "application": "a", "args": "a", "workflow": "w"}])
    assert bench.run() == 0
    child = number_of(bench, "B")
    assert bench.states() == {"JOB_FINISHED": 2}
    assert parent_names(bench, child) == ["A"]
    assert bench.job(child)["workflow"] == "w"
    assert bench.path(child, "B.out").read_text() == "b\n"
    assert bench.path(first) != bench.path(child)
    assert passed(bench, child)[:3] == ["CREATED", "AWAITING_PARENTS", "READY"]


def test_a_script_beside_all_jobs_adds_three_and_one_edge(bench):
    bench.app("a", "true")
    code = "a, b, c = [dag.add_job(name=n, application='a') for n in 'ABC']\ndag.add_dependency(a, c)"
    assert outside(bench, code).wait(30) == 0
    assert states_by_name(bench) == {"A": "CREATED", "B": "CREATED", "C": "AWAITING_PARENTS"}
    assert [parent_names(bench, job) for job in all_numbers(bench)] == [[], [], ["A"]]
    assert bench.run() == 0
    assert bench.states() == {"JOB_FINISHED": 3}


def test_a_recursive_kill_takes_what_is_below_and_leaves_the_rest(bench):
    bench.app("a", "true")
    code = """
jobs = {name: dag.add_job(name=name, application="a") for name in "ABCDE"}
for parent, child in ("AB", "AC", "DE"):
    dag.add_dependency(jobs[parent], jobs[child])
assert dag.kill(jobs["A"], recursive=True) == 3"""
    assert outside(bench, code).wait(30) == 0
    assert bench.run() == 0
    killed = dict.fromkeys("ABC", "USER_KILLED")
    assert states_by_name(bench) == {**killed, "D": "JOB_FINISHED", "E": "JOB_FINISHED"}


def test_jobs_added_by_eight_processes_at_once_are_all_there_and_finish(bench):
    bench.app("a", "echo")
    adders = [outside(bench, f"dag.add_job(name='job{n}', application='a', args='{n}')") for n in range(8)]
    assert [adder.wait(60) for adder in adders] == [0] * 8
    assert sorted(states_by_name(bench)) == [f"job{n}" for n in range(8)]
    assert bench.run() == 0
    assert bench.states() == {"JOB_FINISHED": 8}
    assert all(bench.path(number_of(bench, f"job{n}"), f"job{n}.out").read_text() == f"{n}\n" for n in range(8))


# --- kills ------------------------------------------------------------------------------------------------------------


def test_a_job_killed_in_its_preprocess_never_runs(bench):
    before = shell(bench, "slow", "echo preparing; echo $$ > pid; exec sleep 300")
    bench.app("a", "echo ran", preprocess=before)
    (job,) = bench.add([{"name": "victim", "application": "a"}])
    launcher = bench.launch()
    wait_until(lambda: bench.path(job, "pid").exists() and bench.path(job, "pid").read_text())
    argv = [PYTHON, "-m", "balsam_lite.cli", "--db", bench.directory, "killjob", "--yes", "--id", bench.job(job)["job_id"]]
    assert subprocess.run(argv, env=bench.environ, capture_output=True, timeout=30).returncode == 0
    wait_until(lambda: not alive(int(bench.path(job, "pid").read_text())), 3)
    assert launcher.wait(20) == 0
    assert bench.run() == 0
    assert passed(bench, job) == ["CREATED", "USER_KILLED"]
    assert (bench.job(job)["attempt"], bench.job(job)["lease"]) == (0, None)
    assert bench.path(job, "preprocess.log").read_text() == f"# Balsam Preprocessor: {before}\npreparing\n"
    assert not bench.path(job, "victim.out").exists()


def test_a_job_killed_by_another_while_it_runs_keeps_its_output_and_its_state(bench):
    bench.app("slow", shell(bench, "slow", "trap 'echo told to stop; exit 0' TERM; echo begun; touch up; sleep 300 & wait"))
    code = """
import os, time
slow = dag.BalsamJob.objects.get(name="slow")
while not os.path.exists(f"{slow.working_directory}/up"):
    time.sleep(0.05)
assert dag.kill(slow, recursive=False) == 1"""
    bench.app("killer", hook(bench, "killer", code))
    slow, killer, after = bench.add(
        [
            {"name": "slow", "application": "slow"},
            {"name": "killer", "application": "killer"},
            {"name": "after", "application": "slow"},
        ]
    )
    bench.depend(slow, after)
    assert bench.run("--nodes", "2") == 0
    assert passed(bench, slow) == ["CREATED", "PREPROCESSED", "RUNNING", "USER_KILLED"]
    assert bench.job(slow)["lease"] is None
    assert bench.path(slow, "slow.out").read_text() == "begun\ntold to stop\n"
    assert bench.job(killer)["state"] == "JOB_FINISHED"
    state, message = bench.history(after)[-1]
    assert state == "FAILED" and "parent" in message


# --- when a launcher leaves -------------------------------------------------------------------------------------------


def test_a_launcher_stays_while_a_script_of_its_own_can_still_release_jobs(bench):
    bench.app("parent", "true", postprocess=shell(bench, "slow", "sleep 1.5"))
    bench.app("child", "true")
    parent, child = bench.add([{"application": "parent"}, {"application": "child"}])
    bench.depend(parent, child)
    assert bench.run(BALSAM_IDLE_TTL_S="0.3") == 0
    assert bench.states() == {"JOB_FINISHED": 2}
    with bench.db.read() as cx:
        assert cx.execute("SELECT count(*) FROM lease").fetchone()[0] == 1


def test_a_launcher_does_not_stay_for_children_of_jobs_that_it_may_not_take(bench):
    bench.app("a", "true")
    parent, child, other, third = bench.add(
        [{"application": "a", "workflow": name} for name in ("elsewhere", "here", "here", "elsewhere")],
    )
    bench.depend(parent, child)
    bench.depend(parent, third)
    started = time.monotonic()
    assert bench.run("--wf-filter", "here", timeout=20) == 0
    assert time.monotonic() - started < 10
    assert [bench.job(job)["state"] for job in (parent, child, other)] == ["CREATED", "AWAITING_PARENTS", "JOB_FINISHED"]
    assert "Left: 1 job(s) wait for their parents" in Path(bench.directory, "log", "stderr").read_text()  # of its filter


def test_a_launcher_does_not_stay_for_jobs_that_are_too_large_and_for_their_children(bench):
    bench.app("a", "true")
    large, child, other = bench.add([{"application": "a", "num_nodes": 3}, {"application": "a"}, {"application": "a"}])
    bench.depend(large, child)
    assert bench.run("--nodes", "2", timeout=20) == 0
    assert [bench.job(job)["state"] for job in (large, child, other)] == ["CREATED", "AWAITING_PARENTS", "JOB_FINISHED"]
    log = Path(bench.directory, "log", "stderr").read_text()
    assert "1 waiting job(s) like num_nodes=3" in log and "1 job(s) wait for their parents" in log


# --- many children ----------------------------------------------------------------------------------------------------


class Places:
    """A Capacity with a number of places."""

    preparations = 0

    def __init__(self, free):
        self._free = free

    def fits(self, shape):
        return shape.num_nodes == 1

    def count(self, shape):
        return self._free

    def reserve(self, shape):
        self._free -= 1
        return object() if self._free >= 0 else None

    def describe(self, place):
        return "", ""


def take(bench, count):
    """A lease and jobs claimed for it."""
    with bench.db.write() as cx:
        lease = leases.open_lease(cx, "launcher", Holder.current(), "", 1)
        return lease, claims.take(cx, lease, Places(count), claims.Filter(), 2).to_run


def test_thousands_of_children_are_released_in_one_quick_transaction(bench):
    bench.app("a", "true")
    (parent,) = bench.add([{"application": "a"}])
    bench.add({"application": "a", "parents": [parent]} for _ in range(5000))
    lease, (claim,) = take(bench, 1)
    assert claim.job == parent
    started = time.process_time()
    with bench.db.write() as cx:
        claims.finish(cx, lease, [runs.RunResult(parent, claim.attempt, "RUN_DONE", 0, "", 3, 4)], 5)
    assert time.process_time() - started < 5  # the goal is 1; see benchmarks/dataflow.py
    assert bench.states() == {"JOB_FINISHED": 1, "READY": 5000}


def work_of(bench, work):
    """How many instructions of SQLite's machine a transaction takes, in hundreds."""
    done = 0

    def count():
        nonlocal done
        done += 1
        return 0

    with bench.db.write() as cx:
        cx.set_progress_handler(count, 100)
        try:
            work(cx)
        finally:
            cx.set_progress_handler(None, 0)
    return done


def end_of_one(bench, others, state, result):
    """What the end of a job costs which has one child, beside this number of other jobs in `state`."""
    bench.app("a", "true")
    job, large = bench.add([{"application": "a"}, {"application": "a", "num_nodes": 9}])
    bench.add([{"application": "a", "parents": [job]}])
    crowd = bench.add([{"application": "a", "parents": [large]}] * others)
    if state == "FAILED":
        user_actions.set_state(bench.db, crowd, "FAILED")
    lease, (claim,) = take(bench, 1)
    if result == "rerun":
        with bench.db.write() as cx:
            claims.finish(cx, lease, [runs.RunResult(job, claim.attempt, "RUN_ERROR", 1, "", 3, 4)], 5)
        return work_of(bench, lambda cx: user_actions.set_state(bench.db, [job], "RESTART_READY"))
    return work_of(bench, lambda cx: claims.finish(cx, lease, [runs.RunResult(job, claim.attempt, result, 0, "", 3, 4)], 5))


@pytest.mark.parametrize(
    ("state", "result"), [("AWAITING_PARENTS", "RUN_DONE"), ("AWAITING_PARENTS", "RUN_ERROR"), ("FAILED", "rerun")]
)
def test_the_end_of_a_job_costs_the_same_however_many_others_wait_or_failed(tmp_path, state, result):
    few, many = Bench(tmp_path / "few"), Bench(tmp_path / "many")
    try:
        assert end_of_one(many, 3000, state, result) <= 2 * end_of_one(few, 10, state, result) + 20
    finally:
        few.close()
        many.close()
