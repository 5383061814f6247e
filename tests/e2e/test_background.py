"""What a run leaves running when it ends: said in its history, ended before a retry and with the launcher, or kept."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import wait_until
from launching import Bench, alive

from balsam_lite.core.process_table import RUN_VARIABLE, below, read_proc
from balsam_lite.db.store import apps, user_actions
from balsam_lite.launcher.exec import adopted
from balsam_lite.launcher.exec.adopted import Adopted

#: Leaves a process whose pid it writes, in a way that does not let it be taken for a part of the job.
LEAVE = "sleep 4444 & echo $! > $BALSAM_TEST/pid.$BALSAM_ATTEMPT"
LEAVE_HIDDEN = "(env -i setsid sh -c 'echo $$ > '$BALSAM_TEST/pid.$BALSAM_ATTEMPT'; exec sleep 4444' &)"
#: Succeeds if the one of the first attempt lives; a zombie does not.
LIVES = "grep -qs ') [RSDT] ' /proc/$(cat {}/pid.1)/stat"
WAIT = "until test -s $BALSAM_TEST/pid.$BALSAM_ATTEMPT; do sleep 0.01; done"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, BALSAM_TEST=str(tmp_path), BALSAM_USER_KILL_GRACE_S="0.5")
    yield made
    made.close()
    for path in tmp_path.glob("pid.*"):
        if path.read_text().strip() and alive(int(path.read_text())):
            os.kill(int(path.read_text()), signal.SIGKILL)


def left_pid(tmp_path: Path, attempt: int = 1) -> int:
    path = tmp_path / f"pid.{attempt}"
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


def messages(bench: Bench, job: int) -> list[str]:
    return [message for _, message in bench.history(job)]


@pytest.mark.parametrize("leave", [LEAVE, LEAVE_HIDDEN], ids=["child", "hidden"])
def test_what_a_good_run_leaves_is_in_its_history_and_ends_with_the_launcher(bench: Bench, tmp_path: Path, leave: str) -> None:
    bench.shell("leaves", f"{leave}\n{WAIT}")
    (job,) = bench.add([{"application": "leaves"}])
    launcher = bench.launch("--persistent")
    bench.wait_for(job, "JOB_FINISHED")
    assert "Left 1 process running: sleep" in messages(bench, job)
    assert alive(left_pid(tmp_path))
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(30) == 0
    assert not alive(left_pid(tmp_path))


@pytest.mark.parametrize("leave", [LEAVE, LEAVE_HIDDEN], ids=["child", "hidden"])
def test_what_a_failed_run_leaves_ends_before_the_job_runs_again(bench: Bench, tmp_path: Path, leave: str) -> None:
    look = f"test $BALSAM_ATTEMPT = 2 && {LIVES.format(tmp_path)} && touch {tmp_path}/overlap"
    bench.shell("fails", f"{look}\n{leave}\n{WAIT}\nexit 1")
    (job,) = bench.add([{"application": "fails", "max_retries": 1}])
    assert bench.run() == 0
    assert bench.job(job)["state"] == "FAILED"
    assert messages(bench, job).count("nonzero return 1; left 1 process running: sleep") == 2
    assert not (tmp_path / "overlap").exists()
    assert not alive(left_pid(tmp_path, 1))
    assert not alive(left_pid(tmp_path, 2))


@pytest.mark.parametrize("before", ["", "trap '' TERM\n"], ids=["ends", "ignores TERM"])
def test_what_a_good_run_leaves_ends_before_the_same_launcher_runs_the_job_again(
    bench: Bench, tmp_path: Path, before: str
) -> None:
    bench.shell(
        "leaves",
        f"test $BALSAM_ATTEMPT = 2 && {LIVES.format(tmp_path)} && touch {tmp_path}/overlap\n{before}{LEAVE}",
    )
    (job,) = bench.add([{"application": "leaves"}])
    bench.launch("--persistent")
    bench.wait_for(job, "JOB_FINISHED")
    assert alive(left_pid(tmp_path))
    user_actions.set_state(bench.db, [job], "RESTART_READY")
    wait_until(lambda: bench.job(job)["attempt"] == 2 and bench.job(job)["state"] == "JOB_FINISHED")
    assert not (tmp_path / "overlap").exists()


@pytest.mark.parametrize("of", ["job", "application"])
@pytest.mark.parametrize("code", [0, 1])
def test_background_processes_are_kept_where_the_job_or_its_application_says_so(
    bench: Bench, tmp_path: Path, of: str, code: int
) -> None:
    bench.shell("serves", f"{LEAVE}\nexit {code}")
    with bench.db.write() as cx:
        apps.update_app(cx, "serves", {"keep_background": of == "application"})
    (job,) = bench.add([{"application": "serves", "keep_background": of == "job", "max_retries": 1}])
    assert bench.run() == 0
    attempts = range(1, 2 + code)
    assert bench.job(job)["attempt"] == 1 + code
    assert all(alive(left_pid(tmp_path, attempt)) for attempt in attempts)
    assert [message for message in messages(bench, job) if "eft 1 process running: sleep" in message]


def test_a_kept_job_that_still_runs_ends_with_a_killed_launcher_and_what_an_ended_one_left_does_not(
    bench: Bench, tmp_path: Path
) -> None:
    bench.shell("serves", LEAVE)
    bench.shell("runs", f"trap '' TERM\nsleep 4444 & echo $$ > {tmp_path}/leader\nwait; wait; sleep 4444")
    ended, running = bench.add([{"application": name, "keep_background": True} for name in ("serves", "runs")])
    launcher = bench.launch("--nodes", "2")
    bench.wait_for(ended, "JOB_FINISHED")
    wait_until(lambda: (tmp_path / "leader").exists() and (tmp_path / "leader").read_text().endswith("\n"))
    leader = int((tmp_path / "leader").read_text())
    launcher.kill()
    launcher.wait()
    wait_until(lambda: not alive(leader))
    assert alive(left_pid(tmp_path))
    assert bench.job(running)["state"] == "RUNNING"


def test_a_process_that_ends_just_after_the_run_is_not_mentioned(bench: Bench) -> None:
    bench.shell("pipes", "sleep 0.01 &")
    jobs = bench.add([{"application": "pipes"}] * 5)
    assert bench.run() == 0
    assert bench.states() == {"JOB_FINISHED": 5}
    found = {message for job in jobs for message in messages(bench, job) if "eft" in message}
    assert len(found) < 5  # on a busy host one may need longer than the patience lasts


def test_a_killed_job_takes_a_hidden_process_of_its_own_session_along(bench: Bench, tmp_path: Path) -> None:
    """It has lost its parent, its environment and its session, so that only the spawn helper knows of it."""
    bench.shell("hides", f"{LEAVE_HIDDEN}\n{WAIT}\nexec env -i sleep 4444")
    (job,) = bench.add([{"application": "hides"}])
    bench.launch("--persistent")
    pid = left_pid(tmp_path)
    user_actions.kill(bench.db, [job])
    wait_until(lambda: not alive(pid))


class _Run:
    """A leader of a session, as a spawn helper has it."""

    def __init__(self, script: str, directory: str, environ: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(["sh", "-c", script], start_new_session=True, cwd=directory, env=environ)
        self.pid, self.directory = self.process.pid, directory
        self.is_kept = False
        self.mark = (environ or {}).get(RUN_VARIABLE, "").encode()


def test_nothing_is_looked_at_where_runs_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> None:
        raise AssertionError(pid)

    known = Adopted()
    others = known._children()  # of the test run, zombies among them
    monkeypatch.setattr(adopted, "process_of", refuse)
    first, second = _Run("true", str(tmp_path)), _Run("sleep 60", str(tmp_path))
    first.process.wait()
    living = dict.fromkeys([*others, second.pid], second)
    assert known.look(living, [first]) == ([first.pid], [])
    assert known.of(first.pid) == []
    second.process.kill()
    second.process.wait()


def test_without_a_list_of_children_nobody_claims_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise FileNotFoundError

    monkeypatch.setattr(os, "open", refuse)
    known = Adopted()
    assert known.look({}, []) == ([], [])
    assert known.of(17) is None


def test_a_hidden_process_of_a_helper_that_was_killed_ends_before_its_job_runs_again(bench: Bench, tmp_path: Path) -> None:
    bench.shell(
        "hides",
        f"test $BALSAM_ATTEMPT = 2 && {{ {LIVES.format(tmp_path)} && touch {tmp_path}/overlap; exit 0; }}\n"
        f"{LEAVE_HIDDEN}\n{WAIT}\nexec sleep 4444",
    )
    (job,) = bench.add([{"application": "hides"}])
    launcher = bench.launch()
    pid = left_pid(tmp_path)
    wait_until(lambda: bench.job(job)["state"] == "RUNNING")
    for one in helpers_of(launcher.pid):
        os.kill(one, signal.SIGKILL)
    assert launcher.wait(60) == 0
    assert not alive(pid)
    assert not (tmp_path / "overlap").exists()
    assert (bench.job(job)["state"], bench.job(job)["attempt"]) == ("JOB_FINISHED", 2)


def test_what_an_ended_run_has_left_ends_after_a_crash_before_its_job_runs_again(bench: Bench, tmp_path: Path) -> None:
    """It hides, is in a separate session, and its parent has ended: only the run file names it."""
    look = f"test $BALSAM_ATTEMPT = 2 && {LIVES.format(tmp_path)} && touch {tmp_path}/overlap"
    bench.shell(
        "leaves", f"{look}\n{LEAVE_HIDDEN}\n{WAIT}\nexec env -i sleep $(test $BALSAM_ATTEMPT = 1 && echo 4444 || echo 0)"
    )
    (job,) = bench.add([{"application": "leaves"}])
    launcher = bench.launch()
    pid = left_pid(tmp_path)
    runs = Path(bench.directory) / "runs"
    wait_until(lambda: f"+{pid} " in "".join(path.read_text() for path in runs.iterdir()))
    kill_together([launcher.pid, *helpers_of(launcher.pid)])
    launcher.wait()
    assert alive(pid)
    assert bench.run() == 0
    assert not alive(pid)
    assert not (tmp_path / "overlap").exists()
    assert (bench.job(job)["state"], bench.job(job)["attempt"]) == ("JOB_FINISHED", 2)


def helpers_of(launcher: int) -> list[int]:
    return [one.pid for one in below(launcher) if b"spawn_helper" in read_proc(f"/proc/{one.pid}/cmdline")]


def kill_together(pids: list[int]) -> None:
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, number)
    wait_until(lambda: not any(map(alive, pids)))


def test_what_a_failed_run_leaves_ends_where_the_kernel_lists_no_children(bench: Bench, tmp_path: Path) -> None:
    """It is then found by its session and its run mark."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "def open_file(path, *words, _open=os.open, **options):\n"
        "    if str(path).endswith('/children'):\n"
        "        raise FileNotFoundError(path)\n"
        "    return _open(path, *words, **options)\n"
        "os.open = open_file\n"
    )
    bench.shell("fails", f"test $BALSAM_ATTEMPT = 2 && {LIVES.format(tmp_path)} && touch {tmp_path}/overlap\n{LEAVE}\nexit 1")
    (job,) = bench.add([{"application": "fails", "max_retries": 1}])
    assert bench.run(PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}") == 0
    assert "nonzero return 1" in messages(bench, job)  # without what was left, which is unknown
    assert not (tmp_path / "overlap").exists()
    assert not alive(left_pid(tmp_path, 1)) and not alive(left_pid(tmp_path, 2))
