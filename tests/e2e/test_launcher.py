"""The launcher with real processes: what it runs, how it stops, what it survives."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import wait_until
from launching import PYTHON, Bench, alive

from balsam_lite.core import clock
from balsam_lite.db.store import apps, batch_jobs, user_actions


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.close()


PLAIN_HISTORY = ["CREATED", "PREPROCESSED", "RUNNING", "RUN_DONE", "JOB_FINISHED"]


def states_of(bench, number):
    return [state for state, _ in bench.history(number)]


# --- running ----------------------------------------------------------------------------------------------------------


def test_a_plain_job_has_exactly_the_history_of_the_slides_and_its_output_in_its_workdir(bench):
    bench.app("hello", "echo Hello,")
    (job,) = bench.add([{"name": "t 1", "workflow": "test", "application": "hello", "args": "'a  b' world!"}])
    assert bench.run() == 0
    assert states_of(bench, job) == PLAIN_HISTORY
    assert bench.path(job, "t 1.out").read_text() == "Hello, a  b world!\n"
    assert bench.path(job).name == f"t_1_{bench.job(job)['job_id'][:8]}"
    assert bench.job(job)["return_code"] == 0


def test_the_program_sees_its_job_its_attempt_and_its_own_environment_unmangled(bench):
    bench.script("env", "import json, os; json.dump(dict(os.environ), open('env.json', 'w'))")
    values = {"PATHS": "/a:/b:c=d", "EMPTY": "", "QUOTED": 'it\'s "x" $HOME', "UNI": "ü€"}
    parent, child = bench.add([{"application": "env"}, {"application": "env", "environ_vars": values}])
    bench.depend(parent, child)
    assert bench.run("--nodes", "3", BALSAM_JOB_ID="stale", BALSAM_JOB_ERROR="TRUE") == 0
    seen = json.loads(bench.path(child, "env.json").read_text())
    assert {name: seen[name] for name in values} == values
    assert seen["BALSAM_JOB_ID"] == bench.job(child)["job_id"]
    assert json.loads(seen["BALSAM_PARENT_IDS"]) == [bench.job(parent)["job_id"]]
    assert seen["BALSAM_PARENT_STATES"] == '["JOB_FINISHED"]'
    assert seen["BALSAM_ATTEMPT"] == "1"
    assert seen["BALSAM_DB_PATH"] == bench.directory
    assert seen["BALSAM_LAUNCHER_NODES"] == "3"
    assert seen["BALSAM_JOB_MODE"] == "serial"
    assert "BALSAM_JOB_ERROR" not in seen


def test_a_failing_job_keeps_its_return_code_and_the_tail_of_its_output_in_its_history(bench):
    bench.script("fail", "import sys\nfor i in range(40): print('line', i)\nsys.exit(7)")
    (job,) = bench.add([{"name": "f", "application": "fail"}])
    assert bench.run() == 0
    assert states_of(bench, job) == [*PLAIN_HISTORY[:3], "RUN_ERROR", "FAILED"]
    message = dict(bench.history(job))["RUN_ERROR"]
    assert message.startswith("nonzero return 7: line 24\n")
    assert message.endswith("line 39")
    assert bench.job(job)["return_code"] == 7


def test_the_log_names_the_module_and_jobs_by_their_name_and_short_id(bench):
    bench.script("fail", "import sys; sys.exit(7)")
    bench.app("unprepared", "true", preprocess="false")
    bench.script("long", "import time; time.sleep(60)")
    jobs = bench.add([{"name": name, "application": name} for name in ("fail", "unprepared", "long")])
    launcher = bench.launch("--nodes", "2")
    log = Path(bench.directory, "log", "stderr")
    bench.wait_for(jobs[2], "RUNNING")
    wait_until(lambda: "step failed" in log.read_text())
    labels = [rf"{bench.job(job)['name']} \[{bench.job(job)['job_id'][:8]}\]" for job in jobs]
    user_actions.delete(bench.db, [jobs[2]])  # its end can be recorded nowhere
    assert launcher.wait(60) == 0
    text = log.read_text()
    for label, words in zip(
        labels, (": RUN_ERROR nonzero return 7", ": CREATED step failed", " is not this launcher's any more")
    ):
        assert re.search(rf"\|balsam_lite\.launcher\.loop:\d+\] Job {label}{words}", text), text
    assert "balsam_lite.launcher.main:" in text
    assert "balsam_lite.launcher:" not in text
    assert "number" not in text


@pytest.mark.parametrize(
    ("executable", "reason"),
    [
        ("/no/such/program", "No such file"),
        ("no-such-command-anywhere", "command not found"),
        ("/etc/passwd", "Permission denied"),
        ("/", "Permission denied"),
    ],
)
def test_a_program_that_cannot_be_started_fails_its_job_with_the_reason_and_no_other(bench, executable, reason):
    bench.app("bad", executable)
    bench.app("good", "true")
    bad, good = bench.add([{"application": "bad"}, {"application": "good"}])
    assert bench.run() == 0
    assert reason in dict(bench.history(bad))["RUN_ERROR"]
    assert bench.states() == {"FAILED": 1, "JOB_FINISHED": 1}


def test_a_text_file_without_an_interpreter_line_is_told_so(bench, tmp_path):
    (tmp_path / "x").write_text("true")
    (tmp_path / "x").chmod(0o755)
    bench.app("x", str(tmp_path / "x"))
    (job,) = bench.add([{"application": "x"}])
    bench.run()
    assert "#! line" in dict(bench.history(job))["RUN_ERROR"]


def test_an_app_removed_after_the_job_was_added_fails_the_job_with_its_name(bench):
    bench.app("gone", "true")
    (job,) = bench.add([{"application": "gone"}])
    with bench.db.write() as cx:
        cx.execute("DELETE FROM app")
    bench.run()
    assert "No application named 'gone'" in dict(bench.history(job))["RUN_ERROR"]


@pytest.mark.parametrize("name", ["a/b", "..", "../../x", "x" * 300, "🚀 emoji", "-rf", ".", "a'b\"c"])
def test_an_odd_job_name_runs_inside_the_data_directory(bench, name):
    bench.app("pwd", "pwd")
    (job,) = bench.add([{"name": name, "workflow": name, "application": "pwd"}])
    bench.run()
    assert bench.states() == {"JOB_FINISHED": 1}
    (output,) = bench.path(job).glob("*.out")
    assert output.read_text().startswith(f"{os.path.realpath(bench.directory)}/data/")


def test_binary_output_with_nul_bytes_fails_only_its_job_and_is_kept_whole(bench):
    data = bytes(range(256)) * 50
    bench.script("binary", f"import sys; sys.stdout.buffer.write({data!r}); sys.exit(3)")
    (job,) = bench.add([{"name": "b", "application": "binary"}])
    bench.run()
    assert bench.states() == {"FAILED": 1}
    assert bench.path(job, "b.out").read_bytes() == data


def test_the_output_is_never_written_through_a_link(bench, tmp_path):
    bench.app("hello", "echo hello")
    (job,) = bench.add([{"name": "j", "application": "hello"}])
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    bench.path(job).mkdir(parents=True)
    bench.path(job, "j.out").symlink_to(precious)
    bench.run()
    assert precious.read_text() == "keep me"
    assert "output file" in dict(bench.history(job))["RUN_ERROR"]


def test_an_envscript_is_sourced_before_the_program_runs(bench, tmp_path):
    (tmp_path / "my env.sh").write_text("export GREETING='from the script'\n")
    bench.app("env", "printenv GREETING", envscript=str(tmp_path / "my env.sh"))
    bench.app("missing", "true", envscript=str(tmp_path / "none.sh"))
    good, bad = bench.add([{"name": "g", "application": "env"}, {"application": "missing"}])
    bench.run()
    assert bench.path(good, "g.out").read_text() == "from the script\n"
    assert bench.job(bad)["state"] == "FAILED"


def test_children_run_after_their_parents_and_fail_with_them(bench):
    bench.app("ok", "true")
    bench.app("bad", "false")
    a, b, c, d, e = bench.add([{"application": app} for app in ("ok", "ok", "bad", "ok", "ok")])
    for parent, child in ((a, b), (b, d), (c, d), (d, e)):
        bench.depend(parent, child)
    assert bench.job(b)["state"] == "AWAITING_PARENTS"
    bench.run()
    assert [bench.job(j)["state"] for j in (a, b, c, d, e)] == ["JOB_FINISHED", "JOB_FINISHED", "FAILED", "FAILED", "FAILED"]
    assert bench.history(e)[-1] == ("FAILED", "One or more parent jobs failed")


def test_packed_jobs_share_a_node_up_to_their_packing_count(bench):
    bench.script("count", "import time\nstart = time.time()\ntime.sleep(0.4)\nprint(start, time.time())")
    jobs = bench.add([{"application": "count", "node_packing_count": 4} for _ in range(8)])
    bench.run("--nodes", "1")
    edges = []
    for job in jobs:
        start, end = map(float, bench.path(job, "job.out").read_text().split())
        edges += [(start, 1), (end, -1)]
    running = most = 0
    for _, change in sorted(edges):
        running += change
        most = max(most, running)
    assert most == 4


def test_gpus_are_given_to_one_job_at_a_time_and_an_impossible_wish_is_explained(bench):
    bench.shell("gpu", 'echo "$CUDA_VISIBLE_DEVICES $CUDA_DEVICE_ORDER"; sleep 0.3')
    jobs = bench.add(
        [{"name": f"g{i}", "application": "gpu", "gpus_per_rank": 1, "node_packing_count": 8} for i in range(5)]
        + [{"application": "gpu", "gpus_per_rank": 9}]
    )
    bench.run("--nodes", "1", "--gpus-per-node", "4")
    ids = [bench.path(job, f"g{i}.out").read_text() for i, job in enumerate(jobs[:5])]
    assert sorted(ids[:4]) == [f"{n} PCI_BUS_ID\n" for n in range(4)]
    assert bench.job(jobs[5])["state"] == "CREATED"
    log = Path(bench.directory, "log", "stderr").read_text()
    assert "needs 9 GPUs per node, the nodes of this launcher have 4" in log


# --- the end ----------------------------------------------------------------------------------------------------------


def test_sigterm_leaves_no_running_row_and_no_process_and_a_new_launcher_finishes(bench):
    bench.shell("long", "echo $$ > pid.new; mv pid.new pid; [ -e $BALSAM_DB_PATH/go ] || exec sleep 60")
    jobs = bench.add([{"application": "long"} for _ in range(3)])
    launcher = bench.launch("--nodes", "2")
    wait_until(lambda: sum(bench.path(job, "pid").exists() for job in jobs) == 2, 20)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(20) == 0
    assert bench.states() == {"RESTART_READY": 2, "CREATED": 1}
    started = [int(bench.path(job, "pid").read_text()) for job in jobs[:2]]
    assert not any(alive(pid) for pid in started)
    assert states_of(bench, jobs[0])[-2:] == ["RUN_TIMEOUT", "RESTART_READY"]
    Path(bench.directory, "go").touch()
    assert bench.run() == 0
    assert bench.states() == {"JOB_FINISHED": 3}
    assert bench.job(jobs[0])["attempt"] == 2


GRACEFUL = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit({}))\nopen('up', 'w')\ntime.sleep(60)"


@pytest.mark.parametrize("code", [0, 7])
def test_a_run_that_ends_after_it_was_told_to_stop_is_a_timeout_whatever_its_exit_code(bench, code):
    bench.script("graceful", GRACEFUL.format(code))
    (job,) = bench.add([{"application": "graceful"}])
    (child,) = bench.add([{"application": "graceful", "parents": [job]}])
    before = clock.format_us(clock.SystemClock.now_us())
    launcher = bench.launch()
    wait_until(bench.path(job, "up").exists, 20)
    launcher.send_signal(signal.SIGTERM)
    launcher.wait(20)
    (*_, (state, message), (then, _)) = bench.history(job)
    assert (state, then) == ("RUN_TIMEOUT", "RESTART_READY")
    said = re.fullmatch(rf"Told to stop at (\d\d-\d\d-\d{{4}} [\d:.]+), ended with {code}", message)
    assert said and before < said[1] < clock.format_us(clock.SystemClock.now_us())
    assert bench.job(child)["state"] == "AWAITING_PARENTS"


@pytest.mark.parametrize(
    ("of_job", "of_app", "code", "ends"),
    [
        (True, False, 0, ["RUN_DONE", "JOB_FINISHED"]),
        (False, True, 0, ["RUN_DONE", "JOB_FINISHED"]),
        (True, True, 7, ["RUN_TIMEOUT", "RESTART_READY"]),
    ],
)
def test_exit_0_after_a_stop_is_done_where_the_job_or_its_application_says_so(bench, of_job, of_app, code, ends):
    bench.script("graceful", GRACEFUL.format(code))
    with bench.db.write() as cx:
        apps.update_app(cx, "graceful", {"exit_0_is_done_after_stop": of_app})
    (job,) = bench.add([{"application": "graceful", "exit_0_is_done_after_stop": of_job}])
    launcher = bench.launch()
    wait_until(bench.path(job, "up").exists, 20)
    launcher.send_signal(signal.SIGTERM)
    launcher.wait(20)
    assert states_of(bench, job)[-2:] == ends
    assert bench.history(job)[-2][1].startswith("Told to stop at ")


def test_a_run_whose_exit_could_be_collected_before_it_was_told_ended_by_itself(bench):
    bench.shell("short", "echo $$ > pid.new; mv pid.new pid; until [ -e go ]; do sleep 0.02; done; exit $1")
    jobs = bench.add([{"application": "short", "args": str(code)} for code in (0, 3)])
    launcher = bench.launch("--nodes", "2")
    wait_until(lambda: all(bench.path(job, "pid").exists() for job in jobs), 20)
    launcher.send_signal(signal.SIGSTOP)
    for job in jobs:
        bench.path(job, "go").touch()
        pid = int(bench.path(job, "pid").read_text())
        wait_until(lambda pid=pid: not alive(pid), 20)
    launcher.send_signal(signal.SIGTERM)
    launcher.send_signal(signal.SIGCONT)
    launcher.wait(20)
    assert [states_of(bench, job)[-2:] for job in jobs] == [["RUN_DONE", "JOB_FINISHED"], ["RUN_ERROR", "FAILED"]]
    assert [bench.job(job)["told_to_stop"] for job in jobs] == [None, None]


def test_a_launcher_killed_while_it_waits_for_what_it_told_to_stop_leaves_the_truth(bench):
    bench.shell("stubborn", "trap '' TERM; touch up; until [ -e $BALSAM_DB_PATH/go ]; do sleep 0.05; done")
    (job,) = bench.add([{"application": "stubborn"}])
    launcher = bench.launch(BALSAM_KILL_GRACE_S="60")
    wait_until(bench.path(job, "up").exists, 20)
    launcher.send_signal(signal.SIGTERM)
    told_us = wait_until(lambda: bench.job(job)["told_to_stop"], 20)
    assert bench.job(job)["state"] == "RUNNING"
    launcher.kill()
    launcher.wait()
    Path(bench.directory, "go").touch()
    assert bench.run() == 0
    assert bench.job(job)["state"] == "JOB_FINISHED"
    assert bench.job(job)["told_to_stop"] is None
    (message,) = [message for state, message in bench.history(job) if state == "RESTART_READY"]
    assert message.endswith(f" is gone; the run had been told to stop at {clock.format_us(told_us)}")


def test_a_job_killed_by_the_user_is_killed_and_no_timeout(bench):
    bench.script("graceful", GRACEFUL.format(0))
    (job,) = bench.add([{"application": "graceful"}])
    launcher = bench.launch()
    wait_until(bench.path(job, "up").exists, 20)
    user_actions.kill(bench.db, [job])
    assert launcher.wait(20) == 0
    assert states_of(bench, job)[-2:] == ["RUNNING", "USER_KILLED"]
    assert bench.job(job)["told_to_stop"] is None


def test_a_program_that_ignores_sigterm_is_killed_after_the_grace(bench):
    bench.script("stubborn", "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nopen('up', 'w')\ntime.sleep(60)")
    (job,) = bench.add([{"application": "stubborn", "auto_timeout_retry": False}])
    launcher = bench.launch(BALSAM_KILL_GRACE_S="0.5")
    wait_until(bench.path(job, "up").exists, 20)
    launcher.send_signal(signal.SIGTERM)
    launcher.wait(20)
    assert states_of(bench, job)[-2:] == ["RUN_TIMEOUT", "FAILED"]


def test_the_time_limit_ends_the_launcher_and_what_is_too_long_is_not_started(bench):
    bench.app("sleep", "sleep 200")
    long, endless = bench.add(
        [{"application": "sleep", "wall_time_minutes": 30, "node_packing_count": 2}, {"application": "sleep"}]
    )
    started = time.monotonic()
    assert bench.run("--time-limit-minutes", "0.05", BALSAM_KILL_GRACE_S="1") == 0
    assert 2.5 < time.monotonic() - started < 15
    assert bench.job(long)["attempt"] == 0
    assert states_of(bench, endless)[-2:] == ["RUN_TIMEOUT", "RESTART_READY"]
    assert "wall_time_minutes is 30" in Path(bench.directory, "log", "stderr").read_text()


def test_a_killed_job_is_dead_within_a_second_with_its_whole_tree_and_its_slot_is_used_again(bench):
    tree = "setsid sleep 61 & echo $! > stray; sleep 62 & echo $! > child; echo $$ > leader; wait"
    bench.shell("tree", tree)
    bench.app("quick", "true")
    (job,) = bench.add([{"application": "tree", "priority": 1}])
    (waiting,) = bench.add([{"application": "quick"}])
    bench.launch("--nodes", "1")
    wait_until(lambda: bench.path(job, "leader").exists() and bench.path(job, "leader").read_text().strip(), 20)
    pids = [int(bench.path(job, name).read_text()) for name in ("leader", "child", "stray")]
    assert all(alive(pid) for pid in pids)
    killed_at = time.monotonic()
    user_actions.kill(bench.db, [job])
    wait_until(lambda: not any(alive(pid) for pid in pids), 10)
    assert time.monotonic() - killed_at < 5  # a second where the machine is idle; after the grace it would be 10
    bench.wait_for(waiting, "JOB_FINISHED")
    assert bench.job(job)["state"] == "USER_KILLED"
    assert bench.job(job)["lease"] is None


def test_a_job_deleted_while_it_runs_is_stopped_and_the_launcher_goes_on(bench):
    bench.shell("long", "echo $$ > pid; exec sleep 60")
    bench.app("quick", "true")
    (job,) = bench.add([{"application": "long", "priority": 1}])
    bench.launch("--nodes", "1")
    wait_until(lambda: bench.path(job, "pid").exists() and bench.path(job, "pid").read_text().strip(), 20)
    pid = int(bench.path(job, "pid").read_text())
    user_actions.delete(bench.db, [job])
    (other,) = bench.add([{"application": "quick"}])
    bench.wait_for(other, "JOB_FINISHED")
    assert not alive(pid)


def test_a_workdir_removed_under_a_running_job_harms_nobody(bench):
    bench.shell("remove", 'rm -rf "$PWD"; false')
    bench.app("quick", "true")
    removed, other = bench.add([{"application": "remove"}, {"application": "quick"}])
    assert bench.run() == 0
    assert bench.job(removed)["state"] == "FAILED"
    assert bench.job(other)["state"] == "JOB_FINISHED"


def test_an_idle_launcher_leaves_and_a_persistent_one_takes_what_comes_later(bench):
    bench.app("quick", "true")
    assert bench.run() == 0
    launcher = bench.launch("--persistent")
    wait_until(lambda: b"Lease" in Path(bench.directory, "log", "stderr").read_bytes(), 20)
    (job,) = bench.add([{"application": "quick"}])
    bench.wait_for(job, "JOB_FINISHED")
    assert launcher.poll() is None


def test_a_workflow_filter_takes_exactly_that_workflow_or_a_glob(bench):
    bench.app("quick", "true")
    names = ["test", "test2", "a b's"]
    jobs = bench.add([{"application": "quick", "workflow": name} for name in names])
    bench.run("--wf-filter", "test")
    assert [bench.job(job)["state"] for job in jobs] == ["JOB_FINISHED", "CREATED", "CREATED"]
    bench.run("--wf-filter", "a*")
    assert [bench.job(job)["state"] for job in jobs] == ["JOB_FINISHED", "CREATED", "JOB_FINISHED"]


def test_a_launch_submitted_from_inside_a_job_outlives_that_job(bench):
    options = "-n 1 -t 5 -q q -A a --job-mode serial --wf-filter other"
    bench.shell("submit", f"{PYTHON} -m balsam_lite.cli submit-launch {options}; sleep 60")
    bench.shell("other", "echo $$ > pid; while [ ! -e $BALSAM_DB_PATH/go ]; do sleep 0.05; done")
    (submitter,) = bench.add([{"application": "submit", "workflow": "first"}])
    (other,) = bench.add([{"application": "other", "workflow": "other"}])
    bench.launch("--wf-filter", "first")
    wait_until(lambda: bench.path(other, "pid").exists(), 40)
    user_actions.kill(bench.db, [submitter])
    wait_until(lambda: bench.job(submitter)["lease"] is None, 20)
    Path(bench.directory, "go").touch()
    bench.wait_for(other, "JOB_FINISHED")
    assert bench.job(other)["attempt"] == 1


# --- unclean deaths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["before-commit", "after-claim", "after-spawn:2", "after-exit:2"])
def test_a_launcher_killed_anywhere_loses_nothing_and_the_attempt_tells_the_truth(bench, place):
    bench.shell("note", "echo $BALSAM_ATTEMPT >> attempts; sleep 0.1")
    jobs = bench.add([{"application": "note", "node_packing_count": 2} for _ in range(6)])
    assert bench.run("--nodes", "2", BALSAM_FAILPOINT=place) == -signal.SIGKILL
    assert bench.run("--nodes", "2") == 0
    assert bench.states() == {"JOB_FINISHED": 6}
    for job in jobs:
        attempts = bench.path(job, "attempts").read_text().split()
        assert len(set(attempts)) == len(attempts)
        assert int(attempts[-1]) == bench.job(job)["attempt"]
        starts = sum(state == "RUNNING" for state in states_of(bench, job))
        assert starts == bench.job(job)["attempt"]


def test_orphans_of_a_killed_launcher_are_dead_before_their_jobs_start_again(bench):
    code = """
        for other in $(cat pids 2>/dev/null); do
            grep -q '^[0-9]* (.*) [RSD]' /proc/$other/stat 2>/dev/null && echo overlap >> overlap; done
        setsid sleep 30 & echo $! >> pids
        echo $$ >> pids; touch up.$BALSAM_ATTEMPT; [ $BALSAM_ATTEMPT = 2 ] || sleep 30; kill $!"""
    bench.shell("orphan", code)
    jobs = bench.add([{"application": "orphan"} for _ in range(2)])
    launcher = bench.launch("--nodes", "2")
    wait_until(lambda: all(bench.path(job, "up.1").exists() for job in jobs), 20)
    launcher.kill()
    launcher.wait()
    assert bench.run("--nodes", "2") == 0
    assert bench.states() == {"JOB_FINISHED": 2}
    for job in jobs:
        assert not bench.path(job, "overlap").exists()
        assert not any(alive(int(pid)) for pid in bench.path(job, "pids").read_text().split())
        assert states_of(bench, job)[2:5] == ["RUNNING", "RESTART_READY", "RUNNING"]


def test_a_job_whose_launchers_die_before_they_start_it_fails_at_its_restart_limit(bench):
    bench.app("quick", "true")
    (job,) = bench.add([{"application": "quick", "restart_limit": 1}])
    for _ in range(2):
        bench.run(BALSAM_FAILPOINT="after-claim")
    assert bench.run() == 0
    assert bench.job(job)["state"] == "FAILED"
    assert "restart_limit is 1" in bench.history(job)[-1][1]


def test_a_job_whose_launcher_died_before_its_start_gets_the_files_of_its_parents(bench):
    """It counts as prepared, by the transaction that claimed it; its links are made when it starts."""
    bench.shell("write", "echo 42 > result")
    bench.shell("read", "cat result && rm result; exit $((BALSAM_ATTEMPT < 3))")
    (parent,) = bench.add([{"application": "write"}])
    assert bench.run() == 0
    (child,) = bench.add([{"application": "read", "parents": [parent], "max_retries": 1}])
    assert bench.run(BALSAM_FAILPOINT="after-claim") == -signal.SIGKILL
    assert bench.run() == 0
    outputs = [path.read_text() for path in sorted(bench.path(child).glob("*.out*"))]
    assert "42\n" in outputs
    # Once its program has run, its directory is its own: what it removed stays removed.
    assert not os.path.lexists(bench.path(child, "result"))


def test_two_launchers_and_ten_commands_at_once_run_each_job_once(bench):
    bench.shell("once", "echo x >> runs")
    jobs = bench.add([{"application": "once", "node_packing_count": 4} for _ in range(100)])
    launchers = [bench.launch("--nodes", "2"), bench.launch("--nodes", "2")]
    argv = [sys.executable, "-m", "balsam_lite.cli", "--db", bench.directory]
    commands = [subprocess.Popen([*argv, "ls", "--by-states"], stdout=subprocess.DEVNULL) for _ in range(5)]
    commands += [
        subprocess.Popen([*argv, "job", "--name", "x", "--workflow", "w", "--app", "once", "--yes"], stdout=subprocess.DEVNULL)
        for _ in range(5)
    ]
    assert [command.wait(60) for command in commands] == [0] * 10
    assert [launcher.wait(60) for launcher in launchers] == [0, 0]
    bench.run()
    assert bench.states() == {"JOB_FINISHED": 105}
    assert all(bench.path(job, "runs").read_text() == "x\n" for job in jobs)
    assert all(bench.job(job)["attempt"] == 1 for job in jobs)


def test_earlier_output_is_kept_when_a_job_runs_again(bench):
    bench.shell("say", "echo attempt $BALSAM_ATTEMPT")
    (job,) = bench.add([{"name": "j", "application": "say"}])
    bench.run()
    user_actions.set_state(bench.db, [job], "RESTART_READY")
    bench.run()
    assert bench.path(job, "j.out").read_text() == "attempt 2\n"
    assert bench.path(job, "j.out.1").read_text() == "attempt 1\n"


def test_a_launch_takes_what_is_planned_for_it_first_and_a_prescheduled_one_nothing_else(bench):
    bench.app("true", "true")
    other, planned = bench.add([{"name": "a", "application": "true"}, {"name": "b", "application": "true"}])
    with bench.db.write() as cx:
        values = {"scheduler": "LocalScheduler@host", "nodes": 1, "wall_minutes": 5, "prescheduled_only": 1}
        number = batch_jobs.add(cx, values, 1)
        batch_jobs.mark_submitted(cx, number, "17")
    user_actions.update_fields(bench.db, [planned], {"queued_launch_id": number})
    batch = {"BALSAM_LOCAL_JOBID": "17", "BALSAM_LOCAL_NODES": "1"}
    assert bench.run(**batch) == 0
    assert (bench.job(planned)["state"], bench.job(other)["state"]) == ("JOB_FINISHED", "CREATED")
    with bench.db.write() as cx:
        cx.execute("UPDATE batch_job SET prescheduled_only = 0")
    (late,) = bench.add([{"name": "c", "application": "true", "queued_launch_id": number}])
    assert bench.run(**batch) == 0
    starts = [bench.history(job)[2][0] for job in (late, other)]
    assert starts == ["RUNNING", "RUNNING"]
    with bench.db.read() as cx:
        first = cx.execute(
            "SELECT job FROM event WHERE to_state = 'RUNNING' AND job IN (?, ?) ORDER BY id", (late, other)
        ).fetchall()
    assert first == [(late,), (other,)]


# --- what waits behind what ---------------------------------------------------------------------------------------------


def test_a_large_job_of_high_priority_starts_beside_a_stream_of_short_ones(bench):
    bench.app("short", "sleep 0.05")
    bench.app("true", "true")
    bench.add({"name": f"s{n}", "application": "short", "node_packing_count": 8} for n in range(600))
    bench.launch("--nodes", "1")
    wait_until(lambda: bench.states().get("JOB_FINISHED", 0) > 30)
    (large,) = bench.add([{"name": "large", "application": "true", "priority": 10}])
    bench.wait_for(large, "JOB_FINISHED")
    assert bench.states()["JOB_FINISHED"] < 500


def test_long_jobs_behind_short_ones_are_not_claimed_without_a_place(bench):
    bench.app("short", "true")
    bench.app("long", "sleep 60")
    bench.add({"name": f"s{n}", "application": "short", "node_packing_count": 4} for n in range(300))
    bench.add({"name": f"l{n}", "application": "long", "node_packing_count": 4} for n in range(60))
    bench.launch("--nodes", "1")
    wait_until(lambda: bench.states().get("JOB_FINISHED", 0) == 300, 60)
    wait_until(lambda: bench.states()["RUNNING"] == 4, 20)


def test_a_place_is_not_kept_for_a_job_that_was_killed(bench):
    bench.app("long", "sleep 60")
    bench.app("true", "true")
    first, large = bench.add(
        [
            {"name": "first", "application": "long", "node_packing_count": 2, "priority": 5},
            {"name": "large", "application": "true"},
        ]
    )
    bench.launch("--nodes", "1", BALSAM_HEARTBEAT_S="60")
    bench.wait_for(first, "RUNNING")
    (small,) = bench.add([{"name": "small", "application": "true", "node_packing_count": 2}])
    time.sleep(0.5)  # nothing should happen
    assert bench.job(small)["state"] == "CREATED"
    user_actions.kill(bench.db, [large])
    bench.wait_for(small, "JOB_FINISHED", timeout=20)


def test_an_output_that_nobody_reads_fails_its_job_alone(bench):
    bench.app("true", "true")
    jobs = bench.add({"name": f"j{n}", "application": "true"} for n in range(5))
    for job in jobs[:3]:
        bench.path(job).mkdir(parents=True)
        os.mkfifo(bench.path(job, f"{bench.job(job)['name']}.out"))
    assert bench.run() == 0
    assert [bench.job(job)["state"] for job in jobs] == ["FAILED"] * 3 + ["JOB_FINISHED"] * 2
    assert "the output file" in bench.history(jobs[0])[-2][1]


def test_the_step_of_a_job_whose_launcher_died_is_done_by_one_that_is_there_already(bench):
    bench.app("true", "true", postprocess="sleep 3")
    (job,) = bench.add([{"name": "j", "application": "true"}])
    first = bench.launch("--persistent")
    bench.wait_for(job, "RUN_DONE")
    bench.launch("--persistent", BALSAM_HEARTBEAT_S="0.5")
    wait_until(lambda: len(list(Path(bench.directory, "log").glob("launcher_*.log"))) == 2)
    first.kill()
    bench.wait_for(job, "JOB_FINISHED", timeout=15)
