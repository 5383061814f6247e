"""`balsam db`: what is wrong is found and said, a backup is whole, and nothing is taken from those who are at work."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sshd
from elsewhere import balsam, environment, python, python_argv, small_disk
from helpers import wait_until
from launching import Bench
from mounts import hosts, need
from sshd import remote_host

from balsam_lite.cli import db as db_commands
from balsam_lite.core.clock import SystemClock
from balsam_lite.core.errors import DatabaseBusy, DatabaseError, DatabaseFull, InputError
from balsam_lite.db.engine import directories, doctor, filesystem, maintenance
from balsam_lite.db.engine.connection import Database

NOW_US = 1_000_000_000_000_000


@pytest.fixture(params=["local", "shared"])
def db(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Database]:
    made = directories.create(str(tmp_path / "db"), request.param)
    assert balsam(made.directory, "make_dummies", "30")[0] == 0
    yield made
    made.close()


def findings(db: Database) -> dict[str, list[doctor.Finding]]:
    found: dict[str, list[doctor.Finding]] = {}
    for finding in doctor.look_over(db, now_us=NOW_US, expiry_s=120):
        found.setdefault(finding.topic, []).append(finding)
    return found


def change(db: Database, *statements: str) -> None:
    with db.write() as cx:
        for statement in statements:
            cx.execute(statement)


# --- check ------------------------------------------------------------------------------------------------------------


def test_the_db_is_free_while_a_finding_is_told(db: Database) -> None:
    for _ in doctor.look_over(db, now_us=NOW_US, expiry_s=120):
        change(db, "UPDATE lease SET note = ''")


def test_a_sound_db_passes_and_leaves_nothing_behind(db: Database) -> None:
    before = sorted(os.listdir(db.directory))
    code, out, err = balsam(db.directory, "db", "check", "--seconds", "0.3")
    assert (code, err) == (0, "")
    assert "wrong" not in out
    assert "none was lost" in out
    # SQLite's own files come and go with those who have the DB open.
    assert [name for name in sorted(os.listdir(db.directory)) if "sqlite3-" not in name] == [
        name for name in before if "sqlite3-" not in name
    ]


def test_the_findings_are_told_as_json(db: Database) -> None:
    code, out, _ = balsam(db.directory, "db", "check", "--seconds", "0", "--quick", "--json")
    found = json.loads(out)
    assert code == 0
    assert [finding["topic"] for finding in found][:4] == ["access", "rights", "sqlite", "file"]
    assert {finding["level"] for finding in found} <= {"ok", "note"}


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE job SET state = 'RUNNING', lease = 77 WHERE id = 1", "1 job(s) belong to a launcher that has ended"),
        ("UPDATE job SET state = 'RUNNING' WHERE id < 3", "2 job(s) are RUNNING, but no launcher has them"),
        ("UPDATE job SET state = 'AWAITING_PARENTS' WHERE id = 3", "1 job(s) wait for parents, although these have all ended"),
        ("UPDATE state_count SET jobs = 7 WHERE state = 'FAILED'", "wrong for 1 state(s)"),
        ("UPDATE state_count SET jobs = 29 WHERE state = 'CREATED'", "wrong for 2 state(s)"),
        ("DELETE FROM state_count WHERE state = 'CREATED'", "wrong for 1 state(s)"),
        ("UPDATE workflow_count SET jobs = jobs + 1", "wrong for 2 state(s) of workflows"),
        ("INSERT INTO failure (cause, jobs) VALUES ('exit code 1', 1)", "wrong for 1 cause(s)"),
        ("UPDATE job SET state = 'FAILED' WHERE id = 3", "1 job(s) have a cause of failure but are not FAILED"),
    ],
)
def test_rows_that_contradict_each_other_are_wrong(db: Database, statement: str, said: str) -> None:
    change(db, statement)
    assert said in " ".join(finding.text for finding in findings(db)["rows"] if finding.level == doctor.WRONG)
    code, out, err = balsam(db.directory, "db", "check", "--seconds", "0")
    assert code == 1
    assert said in out
    assert "wrong with this DB" in err


def test_leftovers_which_do_no_harm_are_only_noted(db: Database) -> None:
    change(
        db,
        "INSERT INTO dependency VALUES (555, 1)",
        "INSERT INTO event (job, time, from_state, to_state) VALUES (555, 1, 'A', 'B')",
    )
    assert [finding.level for finding in findings(db)["rows"]] == [doctor.NOTE, doctor.NOTE]
    assert balsam(db.directory, "db", "check", "--seconds", "0")[0] == 0


def test_open_leases_are_told_with_holder_and_age_and_whether_it_is_dead(db: Database) -> None:
    columns = "INSERT INTO lease (kind, host, pid_namespace, pid, started, opened, heartbeat) VALUES"
    change(
        db,
        f"{columns} ('launcher', 'far', 'x', 42, '1', 0, {NOW_US - 5_000_000})",
        f"{columns} ('service', 'far', 'x', 43, '1', 0, {NOW_US - 500_000_000})",
        "UPDATE job SET lease = 1 WHERE id = 1",
    )
    living, dead = findings(db)["lease"]
    by_clock = "by the clock of far"
    assert living == ("lease", "ok", f"launcher 1 (pid 42 on far) has 1 job(s), last heard of 5 s ago {by_clock}")
    assert dead.level == doctor.NOTE
    text = f"service 2 (pid 43 on far) has 0 job(s), no sign of life for 8 min {by_clock}: it is dead, or the clocks differ"
    assert dead.text.startswith(text)
    change(db, f"UPDATE lease SET heartbeat = {NOW_US + 3_000_000} WHERE id = 1")  # while the file was being checked
    assert "last heard of 0 s ago" in findings(db)["lease"][0].text
    change(db, f"UPDATE lease SET heartbeat = {NOW_US + 700_000_000} WHERE id = 1")
    assert "the clock of far is 11 min ahead of this host's" in findings(db)["lease"][0].text


def test_clocks_that_differ_are_told(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = "INSERT INTO lease (kind, host, pid_namespace, pid, started, opened, heartbeat) VALUES"
    now_us = SystemClock.now_us()
    change(db, *(f"{columns} ('launcher', 'far', 'x', 4, '1', 0, {now_us + ahead_us})" for ahead_us in (-(10**9), 400_000_000)))
    change(db, f"{columns} ('launcher', 'near', 'x', 5, '1', 0, {now_us - 10**9})")
    (found,) = (one for one in findings(db)["clocks"] if "of far is" in one.text)
    assert found.level == doctor.NOTE
    assert found.text.startswith("the clock of far is 6 min ahead of this host's")
    assert not any("near" in one.text for one in findings(db)["clocks"]), "a late heartbeat may be an old one"
    assert abs(filesystem.clock_ahead_s(db.directory) or 0.0) < 1
    real = time.time
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: real() + 600)
        assert round(filesystem.clock_ahead_s(db.directory) or 0.0) == -600
    assert not [name for name in os.listdir(db.directory) if name.startswith(".balsam-part")]


def test_the_clocks_of_peers_are_compared_by_the_moment_at_which_they_met() -> None:
    here, peer, other = (
        doctor.TesterReport("a", host, "ns", 1, 1.0, met_s) for host, met_s in (("a", 100), ("b", 93), ("c", 104))
    )
    late, fine = db_commands._clocks([here, peer, other])
    assert (late.level, fine.level) == (doctor.OK, doctor.OK), "a slow transaction may be why"
    (late,) = db_commands._clocks([here, peer._replace(met_s=20)])
    assert (late.level, late.text[:51]) == (doctor.NOTE, "the clock of b is 80 s behind this host's: times in")


def test_a_damaged_file_is_wrong_and_no_traceback(db: Database) -> None:
    db.close()
    size = os.path.getsize(db.path)
    with open(db.path, "r+b") as file:
        file.seek(size // 2)
        file.write(os.urandom(size // 3))
    code, out, err = balsam(db.directory, "db", "check", "--seconds", "0")
    assert code == 1
    assert "wrong  file: " in out
    assert "Traceback" not in err
    file_finding = findings(db)["file"][0]
    assert file_finding.level == doctor.WRONG


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000])
def test_a_file_that_is_no_database_is_wrong(tmp_path: Path, content: bytes) -> None:
    made = directories.create(str(tmp_path / "db"))
    made.close()
    Path(made.path).write_bytes(content)
    code, out, _ = balsam(made.directory, "db", "check", "--seconds", "0")
    assert code == 1
    assert "wrong  file: " in out


def test_a_db_opened_the_wrong_way_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = directories.create(str(tmp_path / "db"))
    made.close()
    network = filesystem.Mount("/scratch", "lustre", "mds:/scratch")
    monkeypatch.setattr(filesystem, "mount_of", lambda directory: network)
    finding = next(doctor.look_over(made, now_us=NOW_US, expiry_s=1))
    assert finding.level == doctor.WRONG
    assert (
        "lustre file system mds:/scratch mounted on /scratch, opened as on a local disk, which would lose jobs" in finding.text
    )


def test_without_a_db_the_error_is_that(tmp_path: Path) -> None:
    code, _, err = balsam(tmp_path, "db", "check")
    assert code == 1
    assert "holds no Balsam DB" in err


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "16", "x"])
def test_the_test_takes_a_reasonable_time(db: Database, seconds: str) -> None:
    assert balsam(db.directory, "db", "check", "--seconds", seconds)[0] == 2


# --- the lock self-test -----------------------------------------------------------------------------------------------


def test_two_hosts_are_tested_over_ssh_and_nothing_is_lost(tmp_path: Path) -> None:
    need()
    with hosts(2, tmp_path, locks=False) as (first, second):
        directory = str(first.point / "db")
        words = [sys.executable, "-m", "balsam_lite.cli"]
        assert first.run(*words, "init", directory, **environment()).returncode == 0
        with remote_host(tmp_path, second.argv()) as remote:
            check = [*words, "--db", directory, "db", "check", "--seconds", "0.5", "--peer", sshd.HOST]
            done = first.run(*check, **{**environment(), "PATH": remote.path})
            assert done.returncode == 0, done.stdout + done.stderr
            assert "2 processes on 2 host(s)" in done.stdout
            done = first.run(*check, "--peer", "no-such-host", **{**environment(), "PATH": remote.path}, timeout=120)
        assert done.returncode == 1
        assert "the tester on no-such-host failed: exit code 255, ssh: Could not resolve hostname" in done.stdout


def test_a_peer_that_is_this_very_host_is_no_proof(db: Database) -> None:
    code, out, _ = balsam(db.directory, "db", "check", "--peer", "me", "--peer-command", "env", "--seconds", "0.2")
    assert code == 0
    assert " note  locks: 2 processes on 1 host(s)" in out


def test_the_command_for_a_peer_may_be_one_word_for_a_shell(db: Database) -> None:
    command = "sh -c {command}"
    code, out, _ = balsam(db.directory, "db", "check", "--peer", "me", "--peer-command", command, "--seconds", "0.2")
    assert code == 0
    assert "2 processes" in out


def test_ssh_with_options_needs_no_quotes_for_the_other_hosts_shell(db: Database, tmp_path: Path) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\nshift 3\nexec sh -c "$*"\n')  # as ssh(1): the words are joined by blanks
    ssh.chmod(0o755)
    finding, *_ = db_commands._test_locks(db, ["me"], f"{ssh} -p 2222 {{host}}", 0.1)
    assert finding.text.startswith("2 processes"), finding


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("false", "exit code 1"),
        ("/nonexistent/ssh {host}", "could not be started"),
        ("echo hello {host}", "exit code 0, hello me"),
        ("sh -c 'echo \"{}\"'", "exit code 0"),
        ("sh -c 'echo Host key verification failed. >&2; exit 255'", "exit code 255, Host key verification failed."),
    ],
)
def test_a_peer_that_cannot_be_reached_is_wrong_and_says_why(db: Database, command: str, said: str) -> None:
    finding, *_ = db_commands._test_locks(db, ["me"], command, 0.1)
    assert finding.level == doctor.WRONG
    assert said in finding.text


@pytest.mark.parametrize("command", ["", "ssh 'unfinished"])
def test_a_peer_command_must_be_one(db: Database, command: str) -> None:
    code, _, err = balsam(db.directory, "db", "check", "--peer", "me", "--peer-command", command)
    assert code == 2
    assert "--peer-command" in err


def test_lost_doubled_and_missing_work_is_noticed(db: Database) -> None:
    with doctor.scratch(db) as directory:
        tally = doctor.count(directory, "one", 1, 0.1)
        assert doctor.faults(directory, [tally]) == []
        lying = tally._replace(commits=tally.commits + 3)
        assert len(doctor.faults(directory, [lying])) == 2
        scratch = directories.open_database(directory)
        change(scratch, "INSERT INTO tally SELECT 'two', n FROM tally WHERE n = 1")
        scratch.close()
        assert doctor.faults(directory, [tally]) == ["1 numbers were given twice"]
    assert not os.path.exists(directory)


def test_locks_which_do_not_hold_are_found_by_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two who both believe that the lock is theirs: one's work is lost, or the file breaks; the test says so."""
    code = """
from balsam_lite.db.engine import doctor, session
session.LockFile.take = lambda self: True
session.LockFile.is_mine = lambda self: True
from balsam_lite.core.errors import BalsamError
try:
    say(doctor.count(sys.argv[1], sys.argv[2], 2, 1.5).as_text())
except BaseException as exc:
    say('failed')
"""
    need()
    with hosts(2, tmp_path, locks=False) as both:
        made = directories.create(str(tmp_path / "back" / "db"), "shared")
        with doctor.scratch(made) as directory:
            seen = directory.replace(str(tmp_path / "back"), str(both[0].point))
            testers = [
                host.start(*python_argv(code, seen), f"t{n}", env=environment(), stderr=subprocess.DEVNULL)
                for n, host in enumerate(both)
            ]
            said = [tester.communicate(timeout=60)[0] for tester in testers]
            tallies = [doctor.TesterReport.parsed(text) for text in said]
            assert None in tallies or doctor.faults(directory, [tally for tally in tallies if tally])


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"name": 1}', "Last login: today\n\x00\xff", "[" * 100_000])
def test_a_tester_that_prints_garbage_has_said_nothing(text: str) -> None:
    assert doctor.TesterReport.parsed(text) is None


def test_what_a_login_shell_prints_is_no_obstacle() -> None:
    tally = doctor.TesterReport("a", "h", "ns", 3, 0.1, 1.5)
    assert doctor.TesterReport.parsed(f"Welcome!\n{tally.as_text()}\nlogout\n") == tally


# --- backup -----------------------------------------------------------------------------------------------------------


def jobs_in(path: Path | str) -> int:
    cx = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        assert cx.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return int(cx.execute("SELECT count(*) FROM job").fetchone()[0])
    finally:
        cx.close()


def test_a_backup_has_what_was_committed_last_and_is_one_file(db: Database, tmp_path: Path) -> None:
    with db.read() as cx:  # the DB is open, so that the last commits are in the WAL
        cx.execute("SELECT 1 FROM job").fetchone()
    assert balsam(db.directory, "make_dummies", "5")[0] == 0
    target = tmp_path / "it's a \u00fcber backup.db"
    code, out, err = balsam(db.directory, "db", "backup", str(target))
    assert (code, out) == (0, "")
    assert str(target) in err
    assert [name for name in os.listdir(tmp_path) if "backup" in name] == [target.name]
    assert jobs_in(target) == 35


def test_a_backup_can_be_used_as_a_db(db: Database, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.mkdir()
    maintenance.backup(db, str(new / "balsam.sqlite3"))
    assert balsam(None, "init", str(new))[0] == 0
    code, out, _ = balsam(new, "ls", "--json")
    assert code == 0
    assert len(json.loads(out)) == 30


def test_a_backup_of_a_db_in_full_swing_is_one_moment_of_it(db: Database, tmp_path: Path) -> None:
    change(db, "CREATE TABLE pair (a INTEGER, b INTEGER)", "INSERT INTO pair VALUES (0, 0)")
    code = """
while True:
    with db.write() as cx:
        cx.execute('UPDATE pair SET a = a + 1')
        cx.execute('UPDATE pair SET b = b + 1')
"""
    with python(code, db.directory) as writer:
        try:
            values = set()
            give_up = time.monotonic() + 60
            for number in itertools.count():
                target = tmp_path / f"copy{number}"
                maintenance.backup(db, str(target))
                cx = sqlite3.connect(target)
                a, b = cx.execute("SELECT a, b FROM pair").fetchone()
                cx.close()
                assert a == b
                values.add(a)
                if number >= 4 and len(values) > 1:
                    break
                assert time.monotonic() < give_up, f"no process could write between {number + 1} backups"
                time.sleep(0.05)
        finally:
            writer.kill()


def test_a_file_that_exists_is_not_replaced_without_force(db: Database, tmp_path: Path) -> None:
    target = tmp_path / "old"
    target.write_text("precious")
    with pytest.raises(InputError, match="exists already"):
        maintenance.backup(db, str(target))
    assert target.read_text() == "precious"
    maintenance.backup(db, str(target), force=True)
    assert jobs_in(target) == 30


def test_the_db_itself_is_never_the_backup(db: Database, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(db.path)
    for path in (db.path, f"{db.path}-wal", str(link), os.path.join(db.directory, "data", "..", "balsam.sqlite3")):
        with pytest.raises(InputError, match="belongs to the DB"):
            maintenance.backup(db, path, force=True)
    assert jobs_in(db.path) == 30


@pytest.mark.parametrize("path", ["{tmp}", "{tmp}/no/such/dir/file", "{tmp}/" + "x" * 300])
def test_a_path_that_cannot_be_written_is_an_error(db: Database, tmp_path: Path, path: str) -> None:
    with pytest.raises((InputError, DatabaseError)):
        maintenance.backup(db, path.format(tmp=tmp_path))
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_a_full_disk_leaves_no_half_backup(db: Database, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "64k") as disk:
        with pytest.raises(DatabaseFull):
            maintenance.backup(db, str(disk / "copy"))
        assert os.listdir(disk) == []


def test_a_damaged_db_is_not_backed_up_as_if_it_were_whole(db: Database, tmp_path: Path) -> None:
    db.close()
    size = os.path.getsize(db.path)
    with open(db.path, "r+b") as file:
        file.seek(size // 2)
        file.write(os.urandom(size // 3))
    with pytest.raises(DatabaseError):
        maintenance.backup(db, str(tmp_path / "copy"))
    assert [name for name in os.listdir(tmp_path) if "copy" in name] == []


# --- vacuum and info --------------------------------------------------------------------------------------------------


def test_vacuum_gives_back_what_removed_jobs_have_left(db: Database) -> None:
    assert balsam(db.directory, "make_dummies", "3000")[0] == 0
    assert balsam(db.directory, "rm", "jobs", "--all", "--force")[0] == 0
    db.close()
    before = os.path.getsize(db.path)
    code, _, err = balsam(db.directory, "db", "vacuum")
    assert code == 0, err
    assert os.path.getsize(db.path) < before / 2
    assert jobs_in(db.path) == 0


def test_vacuum_is_refused_while_a_launcher_lives_and_not_when_it_is_dead(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    try:
        launcher = bench.launch("--persistent")
        wait_until(lambda: maintenance.info(bench.db)["open_leases"] == 1)
        code, _, err = balsam(bench.directory, "db", "vacuum")
        assert code == DatabaseBusy.exit_code
        assert f"launcher 1 (pid {launcher.pid} on " in err
        assert balsam(bench.directory, "db", "vacuum", "--force")[0] == 0
        launcher.send_signal(signal.SIGKILL)
        launcher.wait(20)
        assert balsam(bench.directory, "db", "vacuum")[0] == 0
    finally:
        bench.close()


def test_info_counts_and_names_the_settings_in_force(db: Database, tmp_path: Path) -> None:
    Path(db.directory, "settings.json").write_text('{"HEARTBEAT_S": 5}')
    code, out, _ = balsam(db.directory, "db", "info", "--json", BALSAM_IDLE_TTL_S="3")
    assert code == 0
    found: dict[str, Any] = json.loads(out)[0]
    assert (found["jobs"], found["states"], found["applications"], found["access"]) == (30, {"CREATED": 30}, 1, db.access)
    assert found["bytes"] == found["pages"] * found["page_bytes"] > 0
    assert str(Path(db.directory, "settings.json")) in found["settings"]
    assert "BALSAM_IDLE_TTL_S" in found["settings"]
    code, out, _ = balsam(db.directory, "db", "info")
    assert code == 0
    assert "states: 30 CREATED" in out


def test_no_statement_runs_alone_inside_a_transaction(db: Database) -> None:
    with db.write(), pytest.raises(RuntimeError, match="inside a transaction"):
        db.execute_outside_transaction("VACUUM")
