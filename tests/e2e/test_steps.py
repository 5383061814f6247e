"""Preprocess, postprocess, staging and retries, with real launchers."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace

import pytest
from helpers import wait_until
from hypothesis import given
from hypothesis import strategies as st
from launching import PYTHON, Bench, alive

from balsam_lite.core import states
from balsam_lite.db.store import exit_rules, user_actions
from balsam_lite.launcher import steps
from balsam_lite.launcher.exec.program import ABANDONED
from balsam_lite.launcher.exec.spawner import Ended


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.close()


def script(bench, name, code):
    """An executable script; its path."""
    path = os.path.join(os.path.dirname(bench.directory), name)
    with open(path, "w") as file:
        file.write(code)
    os.chmod(path, 0o755)
    return path


def shell(bench, name, code):
    return script(bench, f"{name}.sh", f"#!/bin/sh\n{code}\n")


def python(bench, name, code):
    return script(bench, f"{name}.py", f"#!{PYTHON}\nfrom balsam_lite.launcher import dag\njob = dag.current_job\n{code}\n")


def passed(bench, job):
    return [state for state, _ in bench.history(job)]


def reason(bench, job):
    state, message = bench.history(job)[-1]
    assert state == "FAILED"
    return message


# --- the normal way ---------------------------------------------------------------------------------------------------


def test_a_job_goes_through_all_its_steps_and_its_history_names_those_that_did_something(bench, tmp_path):
    (tmp_path / "in.txt").write_text("data")
    pre = python(bench, "pre", 'job.args = "-n in.txt"\njob.data["seen"] = True\njob.save()')
    post = shell(bench, "post", "echo $BALSAM_JOB_ERROR $BALSAM_JOB_TIMEOUT $BALSAM_HOOK > said; cat whole.out >> said")
    bench.app("whole", "cat", preprocess=pre, postprocess=post)
    fields = {"stage_in_url": str(tmp_path / "in.txt"), "stage_out_url": str(tmp_path / "out"), "stage_out_files": "said *.out"}
    (job,) = bench.add([{"name": "whole", "application": "whole", **fields}])
    bench.run()
    steps = ["STAGED_IN", "PREPROCESSED", "RUNNING", "RUN_DONE", "POSTPROCESSED", "JOB_FINISHED"]
    assert passed(bench, job) == ["CREATED", *steps]
    assert (tmp_path / "out" / "said").read_text() == "FALSE FALSE postprocess\n     1\tdata"
    assert (tmp_path / "out" / "whole.out").read_text() == "     1\tdata"
    assert bench.job(job)["data"] == '{"seen": true}'
    assert bench.path(job, "preprocess.log").read_text() == f"# Balsam Preprocessor: {pre}\n"
    assert not [name for name in os.listdir(bench.path(job)) if name.startswith(".")]


def test_scripts_run_beside_the_loop_and_several_at_once(bench):
    bench.app("slow", "true", preprocess=shell(bench, "slow", "touch started; while [ ! -e go ]; do sleep 0.02; done"))
    bench.app("plain", "true")
    slow = bench.add([{"application": "slow"}] * 3)
    plain = bench.add([{"application": "plain", "node_packing_count": 4}] * 40)
    launcher = bench.launch()
    wait_until(lambda: all(bench.path(job, "started").exists() for job in slow))
    for job in plain:
        bench.wait_for(job, "JOB_FINISHED")
    assert {bench.job(job)["state"] for job in slow} == {"CREATED"}
    for job in slow:
        bench.path(job, "go").touch()
    assert launcher.wait(30) == 0
    assert bench.states()["JOB_FINISHED"] == 43


def test_more_waiting_scripts_than_threads_do_not_keep_places_empty(bench):
    bench.app("stuck", "true", preprocess=shell(bench, "stuck", "sleep 60"))
    bench.app("plain", "true")
    stuck = bench.add([{"application": "stuck"}] * 60)
    (plain,) = bench.add([{"application": "plain"}])
    bench.launch(BALSAM_NUM_TRANSITION_THREADS="2")
    bench.wait_for(plain, "JOB_FINISHED")
    assert {bench.job(job)["state"] for job in stuck} == {"CREATED"}


def test_logs_of_earlier_calls_are_kept(bench):
    fail = shell(bench, "post", 'echo call "$BALSAM_ATTEMPT"; [ "$BALSAM_ATTEMPT" = 2 ]')
    bench.app("a", "true", postprocess=fail)
    (job,) = bench.add([{"application": "a"}])
    bench.run()
    assert "call 1" in reason(bench, job)
    user_actions.set_state(bench.db, [job], "RESTART_READY")
    bench.run()
    assert bench.job(job)["state"] == "JOB_FINISHED"
    assert "call 1" in bench.path(job, "postprocess.log.1").read_text()
    assert "call 2" in bench.path(job, "postprocess.log").read_text()


# --- errors and timeouts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "postprocess", "ends"),
    [
        (False, "", ["RUN_ERROR", "FAILED"]),
        (False, "fix", ["RUN_ERROR", "FAILED"]),
        (True, "", ["RUN_ERROR", "FAILED"]),
        (True, "fix", ["RUN_ERROR", "JOB_FINISHED"]),
        (True, "look away", ["RUN_ERROR", "FAILED"]),
        (True, "restart", ["RUN_ERROR", "RESTART_READY", "RUNNING", "RUN_DONE", "POSTPROCESSED", "JOB_FINISHED"]),
    ],
)
def test_errors_are_handled_as_the_table_says(bench, handler, postprocess, ends):
    scripts = {
        "": "",
        "fix": python(bench, "fix", "assert dag.ERROR and not dag.TIMEOUT\njob.update_state('JOB_FINISHED', 'handled')"),
        "look away": shell(bench, "away", "true"),
        "restart": python(bench, "restart", "if dag.ERROR:\n    job.update_state('RESTART_READY')"),
    }
    bench.app("a", shell(bench, "fails", '[ "$BALSAM_ATTEMPT" = 2 ]'), postprocess=scripts[postprocess])
    (job,) = bench.add([{"application": "a", "post_error_handler": handler}])
    bench.run()
    assert passed(bench, job)[3:] == ends
    if postprocess == "look away":
        assert reason(bench, job) == exit_rules.UNHANDLED
        assert "# Invoked to handle RUN_ERROR" in bench.path(job, "postprocess.log").read_text()


@pytest.mark.parametrize(
    ("handler", "postprocess", "retry", "ends"),
    [
        (False, "fix", True, ["RUN_TIMEOUT", "RESTART_READY"]),
        (False, "fix", False, ["RUN_TIMEOUT", "FAILED"]),
        (True, "fix", True, ["RUN_TIMEOUT", "JOB_FINISHED"]),
        (True, "fix", False, ["RUN_TIMEOUT", "JOB_FINISHED"]),
        (True, "", True, ["RUN_TIMEOUT", "RESTART_READY"]),
        (True, "", False, ["RUN_TIMEOUT", "FAILED"]),
    ],
)
def test_timeouts_are_handled_as_the_table_says(bench, handler, postprocess, retry, ends):
    fix = python(bench, "fix", "assert dag.TIMEOUT and not dag.ERROR\njob.update_state('JOB_FINISHED', 'good enough')")
    bench.app("a", "sleep 60", postprocess=fix if postprocess else "")
    (job,) = bench.add([{"application": "a", "post_timeout_handler": handler, "auto_timeout_retry": retry}])
    launcher = bench.launch(BALSAM_KILL_GRACE_S="0.2")
    bench.wait_for(job, "RUNNING")
    wait_until(lambda: bench.path(job).exists())
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(30) == 0
    left = passed(bench, job)[3:]
    if handler and postprocess:
        assert left == ["RUN_TIMEOUT"]  # for the next launcher: this one's time is over
        bench.run()
    assert passed(bench, job)[3:] == ends


CODES = st.lists(st.integers(-64, 255), max_size=3).map(lambda codes: " ".join(map(str, codes)))


@given(
    result=st.sampled_from([states.RUN_DONE, states.RUN_ERROR, states.RUN_TIMEOUT, states.POSTPROCESSED]),
    flags=st.tuples(*[st.integers(0, 1)] * 5),
    counts=st.tuples(*[st.integers(0, 3)] * 4),
    codes=CODES,
    code=st.one_of(st.none(), st.integers(-64, 255)),
)
def test_every_outcome_is_a_way_through_the_table_and_ends_or_needs_a_step(result, flags, counts, codes, code):
    retry, on_error, on_timeout, out, post = flags
    restarts, limit, most, retries = counts
    facts = exit_rules.JobFacts(
        1, result, None, 1, restarts, limit, retry, code, most, codes, retries, on_error, on_timeout, out, post
    )
    outcome = exit_rules.settle(facts, result)
    for source, target in zip(outcome.path, outcome.path[1:]):
        assert target in states.targets(source, states.STEP)
    assert len(outcome.messages) >= len(outcome.path) - 1
    if outcome.needs_step:
        assert outcome.path == (result,) and (post or out)
        assert result != states.RUN_ERROR or (on_error and post)
        assert result != states.RUN_TIMEOUT or (on_timeout and post)
    else:
        assert outcome.path[-1] in (*states.END_STATES, states.RESTART_READY)
    assert outcome.restarts <= max(limit, restarts) and outcome.retries <= max(most, retries)


@pytest.mark.parametrize("state", ["RESTART_READY", "PREPROCESSED", "CREATED"])
def test_a_handler_that_restarts_for_ever_meets_the_restart_limit(bench, state):
    bench.app("a", "false", postprocess=python(bench, "again", f"job.update_state({state!r})"))
    (job,) = bench.add([{"application": "a", "post_error_handler": True, "restart_limit": 2}])
    bench.run()
    assert passed(bench, job).count("RUNNING") == 3
    assert "restart_limit is 2" in reason(bench, job)


@pytest.mark.parametrize("state", ["PREPROCESSED", "CREATED"])
def test_a_postprocess_that_repeats_a_good_run_for_ever_meets_the_restart_limit(bench, state):
    bench.app("a", "true", postprocess=python(bench, "again", f"job.update_state({state!r})"))
    (job,) = bench.add([{"application": "a", "restart_limit": 1}])
    bench.run()
    assert passed(bench, job).count("RUNNING") == 2
    assert "restart_limit is 1" in reason(bench, job)


def test_a_preprocess_that_begins_anew_for_ever_meets_the_restart_limit(bench):
    code = "job.update_state('CREATED' if job.state == 'READY' else 'READY')"
    bench.app("a", "true", preprocess=python(bench, "again", code))
    (job,) = bench.add([{"application": "a", "restart_limit": 1}])
    bench.run()
    assert passed(bench, job) == ["CREATED", "READY", "CREATED", "READY", "FAILED"]
    assert "restart_limit is 1" in reason(bench, job)


def test_handlers_that_send_a_job_to_each_other_do_so_once_in_a_run(bench):
    code = "job.update_state('RUN_ERROR' if job.state == 'RUN_DONE' else 'RUN_DONE')"
    bench.app("a", "false", postprocess=python(bench, "swing", code))
    (job,) = bench.add([{"application": "a", "post_error_handler": True}])
    bench.run()
    assert passed(bench, job)[2:] == ["RUNNING", "RUN_ERROR", "RUN_DONE", "FAILED"]
    assert "was RUN_ERROR already" in reason(bench, job)


def test_failed_runs_are_retried_as_often_as_asked_and_counted_apart_from_restarts(bench):
    bench.app("a", shell(bench, "a", "exit 75"))
    (always, never, other) = bench.add(
        [
            {"application": "a", "max_retries": 2},
            {"application": "a"},
            {"application": "a", "max_retries": 2, "retry_codes": "1"},
        ]
    )
    bench.run()
    assert [passed(bench, job).count("RUNNING") for job in (always, never, other)] == [3, 1, 1]
    assert {bench.job(job)["state"] for job in (always, never, other)} == {"FAILED"}
    assert ("RESTART_READY", "Retry 2 of 2") in bench.history(always)
    assert (bench.job(always)["restarts"], bench.job(always)["retries"]) == (0, 2)


# --- bad scripts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("echo bad luck; exit 3", "nonzero return 3: # Balsam"),
        ("kill -9 $$", "killed by signal 9 (SIGKILL)"),
        ("sleep 600 & sleep 600", "did not end within 1 s"),
        ("head -c 100000000 /dev/zero; exit 1", "nonzero return 1"),
    ],
)
@pytest.mark.parametrize("kind", ["preprocess", "postprocess"])
def test_a_bad_script_fails_its_job_alone(bench, kind, code, words):
    bench.app("bad", "true", **{kind: shell(bench, "bad", f"echo $$ > pid; {code}")})
    bench.app("good", "true")
    bad, good = bench.add([{"application": "bad"}, {"application": "good"}])
    assert bench.run(BALSAM_HOOK_TIME_LIMIT_S="1" if "sleep" in code else "60") == 0
    assert words in reason(bench, bad)
    assert len(reason(bench, bad)) < 40_000
    assert bench.job(good)["state"] == "JOB_FINISHED"
    assert not alive(int(bench.path(bad, "pid").read_text()))


@pytest.mark.parametrize(("command", "words"), [("/no/such/script", "No such file"), ("no-such-script", "command not found")])
def test_a_script_that_is_not_there_fails_its_job(bench, command, words):
    bench.app("a", "true", preprocess=command)
    (job,) = bench.add([{"application": "a"}])
    bench.run()
    assert words in reason(bench, job) and command in reason(bench, job)


def test_a_script_that_cannot_be_executed_fails_its_job(bench):
    path = shell(bench, "plain", "true")
    os.chmod(path, 0o644)
    bench.app("a", "true", postprocess=path)
    (job,) = bench.add([{"application": "a"}])
    bench.run()
    assert "Permission denied" in reason(bench, job)


def test_a_script_may_delete_its_own_job(bench):
    bench.app("a", "true", postprocess=python(bench, "rm", "job.delete()"))
    bench.app("good", "true")
    bench.add([{"application": "a"}])
    assert bench.run() == 0
    assert sum(bench.states().values()) == 0


def test_a_script_that_writes_nonsense_fails_with_the_reason(bench):
    bench.app("a", "true", preprocess=python(bench, "bad", "job.num_nodes = -5\njob.save()"))
    (job,) = bench.add([{"application": "a"}])
    bench.run()
    assert "num_nodes must be 1 or more" in reason(bench, job)


def test_a_stage_out_word_that_matches_nothing_is_told_in_the_history_of_a_finished_job(bench, tmp_path):
    bench.shell("a", "touch 'res[T=300].dat'")
    out = {"application": "a", "stage_out_url": str(tmp_path / "out")}
    jobs = bench.add([{**out, "stage_out_files": "res[T=300].dat *.log"}, {**out, "stage_out_files": "res*"}])
    bench.run()
    assert os.listdir(tmp_path / "out") == ["res[T=300].dat"]
    assert [bench.history(job)[-1] for job in jobs] == [
        ("JOB_FINISHED", "Nothing to stage out matches *.log"), ("JOB_FINISHED", ""),
    ]  # fmt: skip


def test_stage_in_of_nothing_and_stage_out_to_nowhere_are_told(bench, tmp_path):
    bench.app("a", "echo x")
    (tmp_path / "file").touch()
    lost, full = bench.add(
        [
            {"application": "a", "stage_in_url": str(tmp_path / "none*")},
            {"name": "full", "application": "a", "stage_out_url": str(tmp_path / "file" / "x"), "stage_out_files": "*.out"},
        ]
    )
    bench.run()
    assert "none*" in reason(bench, lost)
    assert str(tmp_path / "file") in reason(bench, full)


# --- dataflow ---------------------------------------------------------------------------------------------------------


def test_children_find_their_parents_files(bench):
    bench.shell("generate", "for n in B C; do echo 1 > $n.inp; done")
    bench.shell("simulate", "cat *.inp")
    bench.shell("reduce", "cat *.out > sum")
    (first,) = bench.add([{"name": "A", "application": "generate"}])
    middle = bench.add([{"name": n, "application": "simulate", "input_files": f"{n}.inp", "parents": [first]} for n in "BC"])
    (last,) = bench.add([{"name": "E", "application": "reduce", "input_files": "*.out", "parents": middle}])
    bench.run()
    assert bench.states()["JOB_FINISHED"] == 4
    assert bench.path(last, "sum").read_text() == "1\n1\n"
    assert bench.path(middle[0], "B.inp").is_symlink()
    assert not bench.path(middle[0], "C.inp").exists()


def test_a_missing_file_of_a_parent_fails_the_child_with_a_sentence(bench):
    bench.app("a", "true")
    (parent,) = bench.add([{"name": "A", "application": "a"}])
    (child,) = bench.add([{"application": "a", "input_files": "result.dat", "parents": [parent]}])
    bench.run()
    assert bench.job(child)["state"] == "FAILED"
    assert "result.dat" in dict(bench.history(child))["RUN_ERROR"]


# --- kills and deaths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["preprocess", "postprocess"])
def test_a_kill_reaches_a_script_and_is_sticky(bench, kind):
    bench.app("a", "true", **{kind: shell(bench, "slow", "echo $$ > pid; sleep 600 & sleep 600; exit 0")})
    (job,) = bench.add([{"application": "a"}])
    launcher = bench.launch()
    wait_until(lambda: bench.path(job, "pid").exists() and bench.path(job, "pid").read_text())
    user_actions.kill(bench.db, [job])
    wait_until(lambda: not alive(int(bench.path(job, "pid").read_text())), 10)
    assert launcher.wait(30) == 0
    assert passed(bench, job)[-1] == "USER_KILLED"
    assert bench.job(job)["lease"] is None


def test_a_script_may_kill_its_own_job(bench):
    bench.app("a", "true", postprocess=python(bench, "kill", "dag.kill(job)\nimport time\ntime.sleep(60)"))
    (job,) = bench.add([{"application": "a"}])
    assert bench.run() == 0
    assert bench.job(job)["state"] == "USER_KILLED"


@pytest.mark.parametrize("place", ["in-step", "after-step"])
def test_a_script_cut_short_by_the_launchers_death_is_run_again(bench, place):
    code = "echo $$ >> pids; [ $(wc -l < pids) -gt 1 ] || [ $PLACE = after-step ] || sleep 600"
    bench.app("a", "true", preprocess=shell(bench, "pre", code))
    (job,) = bench.add([{"application": "a"}])
    assert bench.run(BALSAM_FAILPOINT=place, PLACE=place) == -signal.SIGKILL
    assert passed(bench, job) == ["CREATED"]
    assert bench.run(PLACE=place) == 0
    assert bench.job(job)["state"] == "JOB_FINISHED"
    pids = [int(pid) for pid in bench.path(job, "pids").read_text().split()]
    assert len(pids) in (1, 2) and not any(map(alive, pids))


def test_a_launcher_that_is_told_to_stop_leaves_its_steps_to_the_next_one(bench):
    bench.app("a", "true", postprocess=shell(bench, "slow", "echo $$ > pid; [ -e ../go ] || sleep 600"))
    (job,) = bench.add([{"application": "a"}])
    launcher = bench.launch()
    wait_until(lambda: bench.path(job, "pid").exists() and bench.path(job, "pid").read_text())
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(10) == 0
    assert (bench.job(job)["state"], bench.job(job)["lease"]) == ("RUN_DONE", None)
    assert not alive(int(bench.path(job, "pid").read_text()))
    assert "Left: 1 job(s) have run and wait for their postprocess script" in Path(bench.directory, "log", "stderr").read_text()
    (bench.path(job).parent / "go").touch()
    bench.run()
    assert passed(bench, job)[-3:] == ["RUN_DONE", "POSTPROCESSED", "JOB_FINISHED"]


@pytest.mark.parametrize(
    ("in_batch_job", "code", "ends"), [(False, 0, "PREPROCESSED"), (True, 0, "CREATED"), (True, 3, "CREATED")]
)
def test_a_script_that_ended_just_before_its_launcher_is_believed_only_outside_of_a_batch_job(bench, in_batch_job, code, ends):
    # Schedulers signal scripts before the launcher. A good end is in doubt for 4 % of the time that the script took.
    host = os.uname().nodename
    batch = {
        "SLURMD_NODENAME": host,
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": host,
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_END_TIME": "9999999999",
    }
    code = f"sleep 1; echo $$ > pid.new; mv pid.new pid; until [ -e go ]; do sleep 0.02; done; exit {code}"
    bench.app("a", "true", preprocess=shell(bench, "pre", code))
    (job,) = bench.add([{"application": "a"}])
    launcher = bench.launch(**(batch if in_batch_job else {}))
    wait_until(bench.path(job, "pid").exists)
    launcher.send_signal(signal.SIGSTOP)
    bench.path(job, "go").touch()
    pid = int(bench.path(job, "pid").read_text())
    wait_until(lambda: not alive(pid))
    launcher.send_signal(signal.SIGTERM)
    launcher.send_signal(signal.SIGCONT)
    assert launcher.wait(20) == 0
    assert bench.states() == {ends: 1}


def test_a_postprocess_script_adds_children_that_run_in_the_same_launcher(bench):
    bench.app("say", "echo hello")
    spawn = python(bench, "spawn", "for n in range(3):\n    dag.add_job(name=f's{n}', application='say', parents=[job])")
    bench.app("a", "true", postprocess=spawn)
    bench.add([{"application": "a"}])
    bench.run()
    assert bench.states()["JOB_FINISHED"] == 4


# --- which jobs -------------------------------------------------------------------------------------------------------


def test_a_launcher_with_tags_takes_only_jobs_that_have_all_of_them(bench):
    bench.app("a", "true")
    wanted, half, none = bench.add(
        [
            {"application": "a", "tags": {"run": "7", "kind": "x'y"}},
            {"application": "a", "tags": {"run": "7"}},
            {"application": "a"},
        ]
    )
    assert bench.run("--tag", "run=7", "--tag", "kind=x'y") == 0
    assert [bench.job(job)["state"] for job in (wanted, half, none)] == ["JOB_FINISHED", "CREATED", "CREATED"]


def test_a_glob_of_workflows_sees_one_whose_jobs_become_ready_later(bench):
    bench.app("a", "true")
    (parent,) = bench.add([{"application": "a", "workflow": "x1"}])
    (child,) = bench.add([{"application": "a", "workflow": "x2", "parents": [parent]}])
    (other,) = bench.add([{"application": "a", "workflow": "y"}])
    bench.run("--wf-filter", "x*")
    assert [bench.job(job)["state"] for job in (parent, child, other)] == ["JOB_FINISHED", "JOB_FINISHED", "CREATED"]


def test_a_launcher_that_waits_for_a_script_does_not_work_meanwhile(bench):
    bench.app("a", "true", preprocess=shell(bench, "slow", "touch started; sleep 1.5"))
    (job,) = bench.add([{"application": "a"}])
    launcher = bench.launch()
    wait_until(lambda: bench.path(job, "started").exists())
    before = cpu_s(launcher.pid)
    bench.wait_for(job, "RUN_DONE", "JOB_FINISHED")
    assert cpu_s(launcher.pid) - before < 0.4
    launcher.wait(30)


def cpu_s(pid):
    """CPU seconds that a process itself has used."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    "state", ["CREATED", "READY", "STAGED_IN", "PREPROCESSED", "RUN_DONE", "RUN_ERROR", "RUN_TIMEOUT", "POSTPROCESSED"]
)
def test_a_job_goes_on_from_any_state_into_which_the_user_puts_it(bench, tmp_path, state):
    (tmp_path / "in.txt").write_text("data")
    hook = shell(bench, "hook", "true")
    bench.app("a", "true", preprocess=hook, postprocess=hook)
    fields = {"stage_in_url": str(tmp_path / "in.txt"), "stage_out_url": str(tmp_path / "out"), "stage_out_files": "*.log"}
    handlers = {"post_error_handler": True, "post_timeout_handler": True}
    (job,) = bench.add([{"application": "a", **fields, **handlers}])
    user_actions.set_state(bench.db, [job], state)
    assert bench.run() == 0
    unhandled = state in ("RUN_ERROR", "RUN_TIMEOUT")
    assert bench.job(job)["state"] == ("FAILED" if unhandled else "JOB_FINISHED")
    assert bench.path(job, "in.txt").exists() == (state in ("CREATED", "READY"))


def test_the_launchers_last_line_counts_a_job_that_fails_in_a_step_once_and_not_as_done(bench):
    bench.app("good", "true")
    bench.app("bad", "false")
    bench.app("no-start", "true", preprocess=shell(bench, "one", "exit 1"))
    bench.app("no-end", "true", postprocess=shell(bench, "two", "exit 1"))
    bench.app("no-help", "false", postprocess=shell(bench, "three", "exit 1"))
    names = ("good", "bad", "no-start", "no-end")
    bench.add([*({"application": name} for name in names), {"application": "no-help", "post_error_handler": True}])
    assert bench.run() == 0
    assert bench.states() == {"JOB_FINISHED": 1, "FAILED": 4}
    said = Path(bench.directory, "log", "stderr").read_text()
    assert "Launcher ends (every job has ended): 1 JOB_FINISHED, 4 FAILED; 4 attempts: 2 done, 2 failed\n" in said


def test_a_script_that_its_helper_ended_for_a_silent_launcher_is_interrupted_and_has_not_failed() -> None:
    task = SimpleNamespace(inbox=SimpleQueue())
    task.inbox.put(Ended(1, -signal.SIGTERM, 0, ABANDONED))
    with pytest.raises(steps._Interrupted):
        steps.Steps._end_of_program(None, task, None)
