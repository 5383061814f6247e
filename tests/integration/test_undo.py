"""`balsam undo`, the trash, `--dry-run`, and working directories that are removed with their jobs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from elsewhere import balsam, environment
from launching import Bench

from balsam_lite.cli import remove
from balsam_lite.cli.main import main
from balsam_lite.core import caller
from balsam_lite.core.errors import NotFound
from balsam_lite.db.engine import doctor
from balsam_lite.db.query import edits, select
from balsam_lite.db.store import insert, large_writes, pieces, trash, undo, user_actions

SCRIPT = "import sys; from balsam_lite.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(caller, "command", "balsam test")
    bench = Bench(tmp_path)
    bench.app("true", "true")
    yield bench
    sound(bench)
    bench.close()


def sound(bench: Bench) -> None:
    found = [one for one in doctor.look_over(bench.db, now_us=2, expiry_s=60) if one.topic in ("rows", "large write")]
    assert [one.level for one in found] == ["ok"], found


def picture(bench: Bench) -> dict[str, list[Any]]:
    """All rows about jobs, but the numbers of events and of the edits by `undo`."""
    queries = {
        "job": "SELECT * FROM job ORDER BY id",
        "event": "SELECT job, time, from_state, to_state, message, data FROM event ORDER BY job, id",
        "dependency": "SELECT * FROM dependency",
        "run": "SELECT * FROM run",
        "edit": "SELECT job, field, attempt, old FROM edit ORDER BY job, action",
        "tags": "SELECT job, key, value FROM job_tag JOIN tag ON tag.id = tag ORDER BY job, key",
        "counts": "SELECT * FROM workflow_count",
    }
    with bench.db.read() as cx:
        return {name: cx.execute(query).fetchall() for name, query in queries.items()}


def run(bench: Bench, *words: str, code: int = 0) -> str:
    found, out, err = balsam(bench.directory, *words)
    assert found == code, (out, err)
    return out + err


def chain(bench: Bench, number: int = 6, **fields: Any) -> list[int]:
    """Add jobs, each the child of the one before."""
    rows = (
        {"name": f"j{n}", "application": "true", "tags": {"n": str(n % 2)}, "data": {"n": n}, **fields,
         "parents": [insert.Position(n - 1)] if n else []}
        for n in range(number)
    )  # fmt: skip
    return bench.add(rows)


# --- the trash --------------------------------------------------------------------------------------------------------


def test_a_removal_is_taken_back_with_all_rows(bench: Bench) -> None:
    jobs = chain(bench)
    run(bench, "modify", "j2", "priority", "4")
    bench.run()
    (waiting,) = bench.add([{"name": "waiting", "application": "true", "parents": [jobs[-1]]}])
    before = picture(bench)
    assert "Removed 7 jobs" in run(bench, "rm", "jobs", "--all", "--yes")
    assert {name: rows for name, rows in picture(bench).items() if rows} == {}
    assert "Took back `balsam rm` of 7 jobs" in run(bench, "undo", "--yes")
    assert picture(bench) == before
    with bench.db.read() as cx:
        assert cx.execute("SELECT count(*) FROM trash").fetchone() == (0,)
    new = bench.add([{"application": "true"}])
    assert new[0] > waiting
    bench.run()
    assert bench.states() == {"JOB_FINISHED": 8}


def test_children_that_failed_by_a_removal_wait_again(bench: Bench) -> None:
    first, *rest = chain(bench)
    assert "Removed 1 job" in run(bench, "rm", "jobs", "--id", f"#{first}", "--force")
    assert bench.states() == {"FAILED": 5}
    assert "1 job restored" in run(bench, "undo", "--yes")
    assert bench.states() == {"CREATED": 1, "AWAITING_PARENTS": 5}
    bench.run()
    assert bench.states() == {"JOB_FINISHED": 6}
    assert [new for new, _ in bench.history(rest[0])][:4] == ["CREATED", "AWAITING_PARENTS", "FAILED", "AWAITING_PARENTS"]


def test_a_job_that_was_removed_while_it_ran_runs_again_after_its_launcher_has_stopped_it(bench: Bench) -> None:
    bench.app("sleep", "sleep 100")
    (job,) = bench.add([{"name": "long", "application": "sleep"}])
    launcher = bench.launch()
    bench.wait_for(job, "RUNNING")
    run(bench, "rm", "jobs", "--name", "long", "--yes")
    run(bench, "undo", "--yes")
    launcher.send_signal(signal.SIGTERM)
    launcher.wait(30)
    found = bench.job(job)
    assert (found["state"], found["lease"], found["attempt"]) == ("RESTART_READY", None, 1)
    assert found["start_after"] > 0
    assert bench.history(job)[-1] == ("RESTART_READY", "It was running when it was removed; taken back by balsam undo")


@pytest.mark.parametrize("how", ["--no-trash", "vacuum", "later"])
def test_what_is_not_in_the_trash_cannot_be_taken_back(bench: Bench, how: str) -> None:
    jobs = chain(bench)
    run(bench, "rm", "jobs", "--all", "--yes", *([how] if how == "--no-trash" else []))
    if how == "vacuum":
        assert "6 removed job(s) deleted for good" in run(bench, "db", "vacuum", "--trash")
    if how == "later":
        with bench.db.write() as cx:
            cx.execute("UPDATE trash SET time = time - ?", (31 * 86_400 * 1_000_000,))
        run(bench, "db", "vacuum")
    with bench.db.read() as cx:
        assert cx.execute("SELECT count(*) FROM trash").fetchone() == (0,)
    assert f"{len(jobs)} jobs left alone: not in the trash any more" in run(bench, "undo", "--yes")
    assert bench.states() == {}


def test_where_the_disk_is_short_nothing_is_kept_and_a_line_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    chain(bench)
    monkeypatch.setattr(trash, "_MIN_FREE_BYTES", 1 << 62)
    monkeypatch.setenv("BALSAM_DB_PATH", bench.directory)
    assert main(["rm", "jobs", "--all", "--yes"]) == 0
    with bench.db.read() as cx:
        assert cx.execute("SELECT count(*) FROM trash").fetchone() == (0,)


def test_an_id_that_is_used_again_stays_with_its_new_job(bench: Bench) -> None:
    one, _ = bench.add([{"name": "one"}, {"name": "two"}])
    job_id = bench.job(one)["job_id"]
    run(bench, "rm", "jobs", "--all", "--yes")
    bench.add([{"name": "new", "given_id": job_id}])
    said = run(bench, "undo", "--yes")
    assert "1 job restored" in said and "1 job left alone: its id is that of a present one" in said
    with bench.db.read() as cx:
        assert [row[0] for row in select.job_rows(cx, {}, ("name",), "name")] == ["new", "two"]


def test_an_application_returns_with_its_jobs(bench: Bench) -> None:
    bench.app("other", "false")
    bench.add({"application": "true", "name": f"j{n}"} for n in range(3))
    before = picture(bench)
    run(bench, "app", "rm", "--name", "true", "--yes")
    assert "3 jobs" not in run(bench, "ls", "apps")
    run(bench, "undo", "--yes")
    assert picture(bench) == before
    bench.run()
    assert bench.states() == {"JOB_FINISHED": 3}


def test_a_salvaged_db_has_the_changes_and_the_removed_jobs(bench: Bench, tmp_path: Path) -> None:
    chain(bench)
    run(bench, "modify", "j1", "args", "-n 5")
    run(bench, "rm", "jobs", "--name", "j5", "--yes")
    run(bench, "killjob", "--name", "j0", "--yes")
    new = str(tmp_path / "new")
    run(bench, "db", "salvage", new)
    for command, restored in (("killjob", 1), ("rm", 1), ("modify", 1)):
        code, out, err = balsam(new, "undo", "--yes")
        assert (code, f"`balsam {command}`" in out, f"{restored} job restored" in out) == (0, True, True), (out, err)
    code, out, _ = balsam(new, "ls", "--history")
    assert code == 0 and out.count("EDITED") == 2
    assert balsam(new, "ls", "--by-states", "--json")[1].count("AWAITING_PARENTS") == 1
    code, out, _ = balsam(new, "db", "check", "--seconds", "0")
    assert code == 0, out


# --- states and fields ------------------------------------------------------------------------------------------------


def test_a_modification_is_taken_back_where_no_job_ran_and_no_other_command_changed_it(bench: Bench) -> None:
    untouched, ran, changed, removed = (
        bench.add([{"name": name, "application": "true", "workflow": "w", "data": {"a": 1, "b": {"c": [1]}}}])[0]
        for name in ("untouched", "ran", "changed", "removed")
    )
    change = {"args": "-n 5", "data": {"a": 2, "x": 1}, "workflow": "v", "tags": {"k": "v"}}
    user_actions.update_fields(bench.db, [untouched, ran, changed, removed], change)
    with bench.db.read() as cx:
        action = undo.find(cx)
    user_actions.update_fields(bench.db, [changed], {"args": "-n 6"})
    user_actions.set_state(bench.db, [untouched, changed], "JOB_FINISHED")
    user_actions.delete(bench.db, [removed])
    bench.run()
    would = undo.preview(bench.db, action)
    done = undo.take_back(bench.db, action)
    assert done == would == undo.Undone(1, {"ran": 1, "changed": 1, "gone": 1})
    found = bench.job(untouched)
    assert (found["args"], found["workflow"], found["tags"]) == ("", "w", "{}")
    assert json.loads(found["data"]) == {"a": 1, "b": {"c": [1]}}
    assert (bench.job(ran)["args"], bench.job(changed)["args"]) == ("-n 5", "-n 6")
    with bench.db.read() as cx:
        assert [row["new"] for row in edits.edits(cx, [untouched]) if row["field"] == "args"] == ["-n 5", ""]
        with pytest.raises(NotFound, match="taken back already"):
            undo.find(cx, action.id)


def test_a_kill_and_a_rerun_are_taken_back_with_their_effect_on_children(bench: Bench) -> None:
    jobs = chain(bench)
    run(bench, "killjob", "--name", "j0", "--yes")
    assert bench.states() == {"USER_KILLED": 1, "FAILED": 5}
    run(bench, "undo", "--yes")
    assert bench.states() == {"CREATED": 1, "AWAITING_PARENTS": 5}
    user_actions.set_state(bench.db, [jobs[0]], "FAILED")
    with bench.db.read() as cx:
        causes = select.count_failures(cx)
    assert causes == {"parent failed": 5, "set by a user": 1}
    run(bench, "rerun", "--name", "j0", "--set", "wall_time_minutes=7", "--yes")
    assert bench.states() == {"CREATED": 1, "AWAITING_PARENTS": 5}
    run(bench, "undo", "--yes")
    with bench.db.read() as cx:
        assert select.count_failures(cx) == causes
    assert bench.job(jobs[0])["wall_time_minutes"] == 1


def test_the_last_command_is_taken_back_first_and_each_once(bench: Bench) -> None:
    bench.add([{"name": "j"}])
    for priority in (1, 2, 3):
        run(bench, "modify", "j", "priority", str(priority))
    run(bench, "modify", "j", "priority", "3")  # changes nothing
    for expected in (2, 1, 0):
        run(bench, "undo", "--yes")
        assert bench.job(1)["priority"] == expected
    assert "no command of" in run(bench, "undo", "--yes", code=3)
    assert "taken back already" in run(bench, "undo", "1", "--yes", code=3)
    assert "no command of yours" in run(bench, "undo", "99", "--yes", code=3)
    listed = json.loads(balsam(bench.directory, "undo", "--list", "--json")[1])
    assert [(one["command"], one["is_undone"]) for one in listed] == [("balsam undo", False)] * 3 + [
        ("balsam modify", True)
    ] * 3


def test_what_a_script_did_is_taken_back_by_its_number_only_and_what_a_job_did_never(bench: Bench, tmp_path: Path) -> None:
    (job,) = bench.add([{"name": "j", "application": "true"}])
    script = tmp_path / "script.py"
    script.write_text("from balsam_lite.launcher.dag import BalsamJob\nBalsamJob.objects.filter(name='j').update(priority=5)\n")
    for own in ({}, {"BALSAM_RUN": "x:1:1:1"}):
        environ = {**environment(), "BALSAM_DB_PATH": bench.directory, **own}
        subprocess.run([sys.executable, script], check=True, env=environ)
        script.write_text(script.read_text().replace("5", "6"))
    run(bench, "undo", "--yes", code=3)
    listed = json.loads(balsam(bench.directory, "undo", "--list", "--json")[1])
    assert [one["command"] for one in listed] == ["script.py"]
    assert "changed since" in run(bench, "undo", str(listed[0]["id"]), "--yes")
    assert bench.job(job)["priority"] == 6


def test_another_users_commands_are_not_taken_back(bench: Bench) -> None:
    bench.add([{"name": "j"}])
    run(bench, "modify", "j", "priority", "1")
    with bench.db.write() as cx:
        cx.execute("UPDATE author SET user = 'another'")
    assert "no command of" in run(bench, "undo", "--yes", code=3)


# --- very many jobs, and crashes --------------------------------------------------------------------------------------

JOBS = 3000


@pytest.mark.parametrize("piece", [1, 3])
@pytest.mark.parametrize("at", ["before-piece", "after-piece"])
@pytest.mark.parametrize("deed", ["rm", "undo"])
def test_a_removal_or_an_undo_that_is_killed_in_the_middle_is_completed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, deed: str, at: str, piece: int
) -> None:
    monkeypatch.setattr(large_writes, "MAX_DIRECT_JOBS", 1000)
    monkeypatch.setattr(pieces, "PIECE_S", 0.0)
    rows = ({"name": f"j{n}", "parents": [insert.Position(n - 1)] if n % 3 else []} for n in range(JOBS))
    jobs = list(insert.add_jobs(bench.db, rows).ids)
    before = {name: rows for name, rows in picture(bench).items() if name != "edit"}
    if deed == "undo":
        user_actions.delete(bench.db, jobs)
        code = "with db.read() as cx:\n    action = undo.find(cx)\nundo.take_back(db, action)"
    else:
        code = f"user_actions.delete(db, range({jobs[0]}, {jobs[-1] + 1}))"
    program = f"""
from balsam_lite.core import caller
from balsam_lite.db.engine import directories
from balsam_lite.db.store import large_writes, pieces, undo, user_actions
caller.command = "balsam test"
large_writes.MAX_DIRECT_JOBS, pieces.PIECE_S = 1000, 0.0
db = directories.open_database({bench.directory!r})
{code}
"""
    failing = {**environment(), "BALSAM_FAILPOINT": f"{at}:{piece}"}
    done = subprocess.run([sys.executable, "-c", program], env=failing, check=False, timeout=100)
    assert done.returncode == -signal.SIGKILL
    pieces.complete(bench.db)
    if deed == "rm":
        assert bench.states() == {}
        with bench.db.read() as cx:
            action = undo.find(cx)
        assert action.jobs == JOBS
        assert undo.take_back(bench.db, action).taken == JOBS
    after = {name: rows for name, rows in picture(bench).items() if name != "edit"}
    assert after == before


def test_a_parent_of_very_many_children_returns_with_them(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (parent,) = bench.add([{"name": "parent"}])
    insert.add_jobs(bench.db, ({"name": f"j{n}", "parents": [parent]} for n in range(JOBS)))
    before = {name: rows for name, rows in picture(bench).items() if name in ("dependency", "tags", "counts", "run")}
    monkeypatch.setattr(large_writes, "MAX_DIRECT_JOBS", 1000)
    assert user_actions.delete(bench.db, [parent], force=True) == 1
    pieces.complete(bench.db)
    assert bench.states() == {"FAILED": JOBS}
    with bench.db.read() as cx:
        action = undo.find(cx)
    assert undo.take_back(bench.db, action) == undo.Undone(1, {})
    pieces.complete(bench.db)
    assert bench.states() == {"CREATED": 1, "AWAITING_PARENTS": JOBS}
    after = picture(bench)
    assert {name: after[name] for name in before} == before


# --- dry runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("rm", "jobs", "--all"), "Would remove 6 jobs: 1 CREATED, 5 AWAITING_PARENTS."),
        (("job", "rm", "--name", "j5"), "Would remove 1 job: 1 AWAITING_PARENTS."),
        (("rm", "jobs", "--name", "j1", "--force"), "Would remove 1 job: 1 AWAITING_PARENTS."),
        (("rm", "apps", "--all", "--with-jobs"), "Would remove 1 app of"),
        (("app", "rm", "--name", "true"), "Would remove 1 app of"),
        (("rerun", "--name", "j0", "--downstream"), "Would run again 1 job and 5 jobs below"),
        (("job", "rerun", "--name", "j0"), "Would run again 1 job: 1 CREATED."),
        (("killjob", "--name", "j0", "--recursive"), "Would kill 1 job and those of 5 jobs below"),
        (("job", "kill", "--name", "j*"), "Would kill 6 jobs"),
        (("undo",), "Would take back `balsam modify` of 1 job (priority)"),
    ],
)
def test_a_dry_run_tells_what_would_be_done_and_writes_nothing(bench: Bench, words: tuple[str, ...], said: str) -> None:
    chain(bench)
    run(bench, "modify", "j0", "priority", "1")
    with bench.db.read() as cx:
        before = cx.execute("PRAGMA data_version").fetchone()
    rows = picture(bench)
    told = run(bench, *words, "--dry-run")
    assert said in told
    assert "Nothing was changed." in told
    assert picture(bench) == rows
    with bench.db.read() as cx:
        assert cx.execute("SELECT count(*) FROM action").fetchone() == (1,)
        assert cx.execute("PRAGMA data_version").fetchone() == before


def test_a_dry_run_is_refused_like_the_removal(bench: Bench) -> None:
    chain(bench)
    refused = [run(bench, "rm", "jobs", "--name", "j1", word, code=1) for word in ("--dry-run", "--yes")]
    assert refused[0] == refused[1]
    assert "1 job(s) wait for what is to be removed, for example j2" in refused[0]


# --- working directories ----------------------------------------------------------------------------------------------


def test_working_directories_go_with_their_jobs_but_never_others(bench: Bench, tmp_path: Path) -> None:
    bench.shell("writes", "head -c 20000 /dev/zero > big; ln -s . self; ln -s /etc elsewhere; mkdir sub; echo x > sub/y")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("p")
    common = {"application": "writes", "workflow": "w"}
    plain, _, _, own = bench.add([
        {**common, "name": "plain"},
        {**common, "name": "shared1", "workdir": "common", "allow_shared_workdir": True},
        {**common, "name": "shared2", "workdir": "common", "allow_shared_workdir": True},
        {**common, "name": "own", "user_workdir": str(outside)},
    ])  # fmt: skip
    (above,) = bench.add([{**common, "name": "above", "workdir": "w"}])
    (linked,) = bench.add([{**common, "name": "linked", "workdir": "through/it"}])
    bench.run("--job-mode", "serial")
    kept = bench.add([{"name": "stays", "workflow": "w"}])
    data = Path(bench.directory, "data")
    (data / "through").rename(tmp_path / "real")
    (data / "through").symlink_to(tmp_path / "real")
    paths = {name: data / bench.job(number)["workdir"] for name, number in {"plain": plain, "stays": kept[0]}.items()}
    paths["stays"].mkdir(parents=True, exist_ok=True)
    names = [word for name in ("plain", "own", "shared1", "above", "linked") for word in ("--name", name)]
    told = run(bench, "rm", "jobs", *names, "--workdirs", "--yes")
    assert "Removed 5 jobs" in told
    assert "Removed 1 working directory with" in told and "24.6 kB" in told
    assert "2 left alone that another job has, too." in told
    assert "2 left alone outside of data/." in told
    assert not paths["plain"].exists()
    assert (outside / "precious").read_text() == "p"
    assert (data / "common" / "big").exists() and paths["stays"].exists()
    assert (tmp_path / "real" / "it" / "big").exists()
    assert os.path.isdir("/etc")
    assert own and above and linked


def test_a_directory_that_cannot_be_removed_is_named_and_the_others_go(bench: Bench) -> None:
    bench.shell("writes", "mkdir sub; echo x > sub/y")
    jobs = bench.add({"name": f"j{n}", "application": "writes"} for n in range(3))
    bench.run()
    stubborn = bench.path(jobs[1], "sub")
    subprocess.run(["chattr", "+i", stubborn], check=False) if os.getuid() == 0 else stubborn.chmod(0o500)
    places = [bench.path(job) for job in jobs]
    try:
        code, out, err = balsam(bench.directory, "rm", "jobs", "--all", "--yes", "--workdirs")
        if stubborn.exists():
            assert code == 1 and "Cannot be removed" in err and "Removed 2 working directories" in out
        assert [place.exists() for place in places] == [False, stubborn.exists(), False]
        assert bench.states() == {}
    finally:
        if os.getuid() == 0:
            subprocess.run(["chattr", "-i", stubborn], check=False)


def test_the_question_says_that_files_do_not_come_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask(question: str, *words: str) -> None:
        asked.append(question)
        raise click.exceptions.Exit(1)

    chain(bench)
    monkeypatch.setattr(remove, "confirm_or_end", ask)
    monkeypatch.setenv("BALSAM_DB_PATH", bench.directory)
    assert main(["rm", "jobs", "--all", "--workdirs"]) == 1
    assert asked == ["Remove ALL 6 jobs AND THEIR WORKING DIRECTORIES, which nothing brings back?"]
    assert bench.states() == {"CREATED": 1, "AWAITING_PARENTS": 5}
