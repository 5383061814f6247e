"""No job runs before its parents let it, whatever is put back by whom and in what order: real launchers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from launching import PYTHON, Bench

from balsam_lite.db.store import apps, graph, user_actions

#: The second attempt goes on when the file `go` is there, so that whatever does not wait for it would be seen to run.
GENERATE = """
[ "$BALSAM_ATTEMPT" = 1 ] || while [ ! -e "$BALSAM_DB_PATH/go" ]; do sleep 0.05; done
echo "gen$BALSAM_ATTEMPT" > a.dat
"""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, BALSAM_KILL_GRACE_S="0.5")
    yield made
    made.close()


def add_chain(bench: Bench) -> list[int]:
    """Add a, which makes a.dat, b, which makes b.dat of that, and c, which makes c.dat of that."""
    bench.shell("generate", GENERATE)
    bench.app("sh", "bash -c")
    a, b, c = bench.add(
        [
            {"name": "a", "workflow": "w", "application": "generate"},
            {"name": "b", "workflow": "w", "application": "sh", "args": "'cat a.dat > b.dat'"},
            {"name": "c", "workflow": "w", "application": "sh", "args": "'cat b.dat > c.dat'"},
        ]
    )
    bench.depend(a, b)
    bench.depend(b, c)
    return [a, b, c]


def balsam(bench: Bench, *words: str) -> str:
    argv = [PYTHON, "-m", "balsam_lite.cli", "--db", bench.directory, *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True, env=bench.environ).stdout


def python(bench: Bench, code: str) -> str:
    environ = {**bench.environ, "BALSAM_DB_PATH": bench.directory}
    head = "from balsam_lite.launcher.dag import BalsamJob\nO = BalsamJob.objects\n"
    return subprocess.run([PYTHON, "-c", head + code], check=True, capture_output=True, text=True, env=environ).stdout


def _rerun(bench: Bench) -> None:
    balsam(bench, "rerun", "--wf", "w", "--yes")


def _modify_from_the_last_to_the_first(bench: Bench) -> None:
    for number in (3, 2, 1):
        balsam(bench, "modify", bench.job(number)["job_id"], "state", "RESTART_READY")


def _modify_from_the_first_to_the_last(bench: Bench) -> None:
    for number in (1, 2, 3):
        balsam(bench, "modify", bench.job(number)["job_id"], "state", "RESTART_READY")


def _update_state(bench: Bench) -> None:
    python(bench, "for job in O.order_by('-name'): job.update_state('RESTART_READY')")


def _update(bench: Bench) -> None:
    assert python(bench, "print(O.filter(workflow='w').update(state='RESTART_READY'))") == "3\n"


def _batch_update_state(bench: Bench) -> None:
    python(bench, "BalsamJob.batch_update_state([j.pk for j in O.all()], 'RESTART_READY')")


def _to_created(bench: Bench) -> None:
    python(bench, "O.update(state='CREATED')")


WAYS = (
    _rerun,
    _modify_from_the_last_to_the_first,
    _modify_from_the_first_to_the_last,
    _update_state,
    _update,
    _batch_update_state,
    _to_created,
)


@pytest.mark.parametrize("put_back", WAYS, ids=lambda way: way.__name__.strip("_"))
def test_what_is_put_back_runs_in_the_order_of_the_graph(bench: Bench, put_back: Callable[[Bench], Any]) -> None:
    a, b, c = add_chain(bench)
    assert bench.run("--nodes", "3") == 0
    assert bench.path(c, "c.dat").read_text() == "gen1\n"
    put_back(bench)
    assert [bench.job(job)["state"] for job in (b, c)] == ["AWAITING_PARENTS"] * 2
    launcher = bench.launch("--nodes", "3")
    bench.wait_for(a, "RUNNING")
    assert [bench.job(job)["state"] for job in (b, c)] == ["AWAITING_PARENTS"] * 2
    Path(bench.directory, "go").touch()
    assert launcher.wait(60) == 0
    assert bench.path(c, "c.dat").read_text() == "gen2\n"
    assert bench.states() == {"JOB_FINISHED": 3}
    assert [state for state, _ in bench.history(b)][7:10] == [
        "CREATED" if put_back is _to_created else "RESTART_READY",
        "AWAITING_PARENTS",
        "READY",
    ]


def test_links_to_a_parents_files_are_made_anew_when_it_ran_again(bench: Bench) -> None:
    bench.app("sh", "bash -c")
    (parent,) = bench.add([{"name": "p", "application": "sh", "args": "'echo $BALSAM_ATTEMPT > out-$BALSAM_ATTEMPT'"}])
    (child,) = bench.add([{"name": "c", "application": "sh", "args": "'ls > seen'", "input_files": "out-*"}])
    bench.depend(parent, child)
    assert bench.run() == 0
    user_actions.rerun(bench.db, [parent, child])
    assert bench.run() == 0
    assert {"out-1", "out-2"} <= set(bench.path(child, "seen").read_text().split())


def test_a_child_failed_by_its_parents_data_reads_the_new_data_when_both_are_put_back(bench: Bench) -> None:
    bench.shell("generate", GENERATE.replace("gen", "good"))
    bench.shell("check", "grep good2 a.dat")
    a, b = bench.add([{"name": "a", "application": "generate"}, {"name": "b", "application": "check"}])
    bench.depend(a, b)
    assert bench.run() == 0
    assert bench.job(b)["state"] == "FAILED"
    Path(bench.directory, "go").touch()
    user_actions.rerun(bench.db, [b, a])
    assert bench.run("--nodes", "2") == 0
    assert bench.states() == {"JOB_FINISHED": 2}


# --- a job whose script still runs is not over ------------------------------------------------------------------------

RESCUE = """
import sys, time, os
from balsam_lite.launcher import dag
job = dag.current_job
rescue = dag.add_job(name="rescue", application="true")
job.update_state("JOB_FINISHED")
open(os.path.join(os.environ["BALSAM_DB_PATH"], "finished"), "w").close()
while not os.path.exists(os.path.join(os.environ["BALSAM_DB_PATH"], "go")):
    time.sleep(0.02)
for child in job.get_children():
    child.set_parents([rescue])
"""


@pytest.fixture
def rescued(bench: Bench) -> tuple[int, int]:
    """Run a job whose postprocess finishes it and then gives its child another parent."""
    script = Path(bench.directory).parent / "post.py"
    script.write_text(RESCUE)
    bench.app("true", "true")
    bench.app("post", "true", postprocess=f"{PYTHON} {script}")
    parent, child = bench.add([{"name": "p", "application": "post"}, {"name": "c", "application": "true"}])
    bench.depend(parent, child)
    return parent, child


def test_children_wait_for_the_end_of_their_parents_script(bench: Bench, rescued: tuple[int, int]) -> None:
    parent, child = rescued
    launcher = bench.launch("--nodes", "2")
    bench.wait_for(parent, "JOB_FINISHED")
    assert bench.job(child)["state"] == "AWAITING_PARENTS"
    Path(bench.directory, "go").touch()
    assert launcher.wait(60) == 0
    assert bench.states() == {"JOB_FINISHED": 3}
    with bench.db.read() as cx:
        order = cx.execute(
            "SELECT name FROM event JOIN job ON job.id = event.job WHERE to_state = 'RUNNING' ORDER BY event.id"
        ).fetchall()
    assert [name for (name,) in order] == ["p", "rescue", "c"]


def test_the_next_launcher_tells_the_children_of_a_job_that_its_script_finished(bench: Bench, rescued: tuple[int, int]) -> None:
    parent, child = rescued
    launcher = bench.launch("--nodes", "2")
    bench.wait_for(parent, "JOB_FINISHED")
    launcher.kill()
    launcher.wait()
    Path(bench.directory, "go").touch()
    assert bench.job(child)["state"] == "AWAITING_PARENTS"
    assert bench.run("--nodes", "2") == 0
    assert bench.job(child)["state"] == "JOB_FINISHED"


# --- run_when ---------------------------------------------------------------------------------------------------------


def test_an_aggregator_runs_when_all_parents_have_ended_or_one_has_finished(bench: Bench) -> None:
    bench.app("true", "true")
    bench.app("false", "false")
    good, bad, killed = bench.add(
        [{"name": name, "application": app} for name, app in (("g", "true"), ("b", "false"), ("k", "true"))]
    )
    user_actions.kill(bench.db, [killed])
    add = {"application": "true", "parents": [good, bad, killed]}
    every, ended, one, none, both = bench.add(
        [
            {**add, "name": "all_finished"},
            {**add, "name": "all_ended", "run_when": "all_ended"},
            {**add, "name": "any_finished", "run_when": "any_finished"},
            {**add, "name": "none", "run_when": "any_finished", "parents": [bad, killed]},
            {**add, "name": "lost", "run_when": "all_ended", "parents": [bad, killed]},
        ]
    )
    assert bench.run("--nodes", "2") == 0
    found = [bench.job(job)["state"] for job in (every, ended, one, none, both)]
    assert found == ["FAILED", "JOB_FINISHED", "JOB_FINISHED", "FAILED", "JOB_FINISHED"]
    assert bench.history(none)[-1] == ("FAILED", graph.PARENT_FAILED)


def test_any_finished_does_not_wait_for_the_other_parents(bench: Bench) -> None:
    bench.app("true", "true")
    bench.shell("wait", 'while [ ! -e "$BALSAM_DB_PATH/go" ]; do sleep 0.05; done')
    quick, slow = bench.add([{"name": "q", "application": "true"}, {"name": "s", "application": "wait"}])
    (child,) = bench.add([{"name": "c", "application": "true", "parents": [quick, slow], "run_when": "any_finished"}])
    launcher = bench.launch("--nodes", "2")
    bench.wait_for(child, "JOB_FINISHED")
    assert bench.job(slow)["state"] == "RUNNING"
    Path(bench.directory, "go").touch()
    assert launcher.wait(60) == 0


def test_removed_parents_have_ended_badly(bench: Bench) -> None:
    with bench.db.write() as cx:
        apps.add_app(cx, {"name": "a", "executable": "true"})
    one, two, three = bench.add([{"name": name, "application": "a"} for name in "123"])
    children = {
        run_when: bench.add([{"name": run_when, "application": "a", "parents": [one, two], "run_when": run_when}])[0]
        for run_when in ("all_finished", "all_ended", "any_finished")
    }
    alone = bench.add([{"name": "alone", "application": "a", "parents": [one], "run_when": "any_finished"}])[0]
    user_actions.delete(bench.db, [one], force=True)
    found = {name: bench.job(job)["state"] for name, job in children.items()}
    assert found == {"all_finished": "FAILED", "all_ended": "AWAITING_PARENTS", "any_finished": "AWAITING_PARENTS"}
    assert bench.job(alone)["state"] == "FAILED"
    user_actions.delete(bench.db, [two], force=True)
    found = {name: bench.job(job)["state"] for name, job in children.items()}
    assert found == {"all_finished": "FAILED", "all_ended": "READY", "any_finished": "FAILED"}
    assert bench.job(three)["state"] == "CREATED"


def test_a_parent_put_back_and_finished_in_one_transaction_leaves_its_children_ready(bench: Bench) -> None:
    bench.app("true", "true")
    parent, child = bench.add([{"name": name, "application": "true"} for name in "pc"])
    bench.depend(parent, child)
    with bench.db.write():
        for state in ("JOB_FINISHED", "RESTART_READY", "FAILED", "CREATED", "JOB_FINISHED"):
            user_actions.set_state(bench.db, [parent], state)
    assert (bench.job(child)["state"], bench.job(child)["unfinished_parents"]) == ("READY", 0)
    assert bench.run() == 0
    assert bench.job(child)["state"] == "JOB_FINISHED"


def test_a_long_chain_fails_with_its_first_job_in_one_go(bench: Bench) -> None:
    bench.app("true", "true")
    jobs = bench.add([{"name": f"j{n}", "application": "true"} for n in range(3000)])
    with bench.db.write() as cx:
        graph.add_edges(cx, list(zip(jobs, jobs[1:])), 1)
    user_actions.kill(bench.db, jobs[:1])
    assert bench.states() == {"USER_KILLED": 1, "FAILED": 2999}
    user_actions.rerun(bench.db, jobs[:1])
    assert bench.states() == {"CREATED": 1, "AWAITING_PARENTS": 2999}
