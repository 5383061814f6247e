"""The file in which a launcher records what it has started, and readers that meet it in any condition."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from balsam_lite.launcher.exec import run_file
from balsam_lite.launcher.exec.run_file import RunEntry, RunFiles, Writer

ID, LEASE = "abc", 7
MARK = f"{ID}:{LEASE}:"


def files(directory: Path, lease: int = LEASE, rank: int = 0) -> RunFiles:
    return RunFiles(str(directory / "runs"), ID, lease, rank, 0o600)


def record(writer: Writer, one: RunEntry) -> str:
    return writer.start(one.pid, one.started, f"{MARK}{one.job}:{one.attempt}".encode())


def write(directory: Path, *records: RunEntry, lease: int = LEASE, rank: int = 0, number: int = 0) -> Path:
    file = files(directory, lease, rank).file(number)
    writer = Writer(file)
    for one in records:
        assert record(writer, one) == ""
    return Path(file.path)


def read(directory: Path, db_id: str = ID, rank: int | None = None) -> list[RunEntry]:
    return run_file.read(str(directory / "runs"), db_id, LEASE, rank)


ONE, TWO, THREE = RunEntry(1, 1, 4001, "100"), RunEntry(2, 1, 4002, "101"), RunEntry(3, 5, 4003, "102")


def test_records_of_all_nodes_and_helpers_are_read_and_those_of_other_leases_are_not(tmp_path: Path) -> None:
    write(tmp_path, ONE)
    write(tmp_path, TWO, number=3)
    write(tmp_path, THREE, rank=12)
    write(tmp_path, RunEntry(9, 9, 9009, "9"), lease=77)
    assert sorted(read(tmp_path)) == [ONE, TWO, THREE]
    assert read(tmp_path, rank=12) == [THREE]
    assert read(tmp_path, "another") == []
    assert run_file.leases_here(str(tmp_path / "runs"), ID) == {LEASE, 77}
    assert run_file.leases_here(str(tmp_path / "runs"), "another") == set()


def test_the_mark_of_a_rank_and_of_a_program_that_is_no_jobs_are_understood(tmp_path: Path) -> None:
    writer = Writer(files(tmp_path).file(0))
    writer.start(4001, "1", f"{MARK}1:2@3".encode())
    writer.start(4002, "1", b"")
    assert read(tmp_path) == [RunEntry(1, 2, 4001, "1"), RunEntry(0, 0, 4002, "1")]


def test_nobody_else_may_read_the_file(tmp_path: Path) -> None:
    assert write(tmp_path, ONE).stat().st_mode & 0o777 == 0o600


def test_there_is_no_file_before_something_was_started(tmp_path: Path) -> None:
    write(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert read(tmp_path) == []


def test_a_program_whose_start_is_unknown_is_not_recorded(tmp_path: Path) -> None:
    """It could not be told from another one that has its pid later."""
    write(tmp_path, ONE._replace(started=""))
    assert read(tmp_path) == []


def test_what_has_ended_is_not_read_when_something_else_was_started_since(tmp_path: Path) -> None:
    writer = Writer(files(tmp_path).file(0))
    record(writer, ONE)
    writer.end(ONE.pid)
    assert read(tmp_path) == [ONE]
    record(writer, TWO)
    assert read(tmp_path) == [TWO]
    writer.end(12345)
    record(writer, ONE._replace(job=8))
    assert read(tmp_path) == [TWO, ONE._replace(job=8)]


def test_a_file_stays_small_however_many_programs_are_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_file, "MAX_BYTES", 10_000)
    writer = Writer(file := files(tmp_path).file(0))
    record(writer, ONE)
    for number in range(10_000):
        record(writer, RunEntry(5, 1, 5000 + number, "100"))
        assert ONE in read(tmp_path) or number % 100
        writer.end(5000 + number)
    assert os.path.getsize(file.path) < 11_000
    assert read(tmp_path) == [ONE, RunEntry(5, 1, 14999, "100")]
    assert os.listdir(tmp_path / "runs") == ["7-0-0"]


def test_cutting_the_file_at_any_byte_costs_the_records_behind_it_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path, ONE, TWO, THREE)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert read(tmp_path) == [ONE, TWO, THREE][: max(0, whole[:size].count(b"\n") - 1)]


def test_a_torn_record_in_the_middle_costs_itself_alone(tmp_path: Path) -> None:
    path = write(tmp_path, ONE, TWO, THREE)
    head, *lines = path.read_bytes().splitlines(keepends=True)
    for size in range(1, len(lines[0])):
        path.write_bytes(head + lines[0][:size] + b"\n" + b"".join(lines[1:]))
        found = read(tmp_path)
        assert found[-2:] == [TWO, THREE]
        assert all(one.pid == ONE.pid or one.started != ONE.started or one.job != ONE.job for one in found)
    path.write_bytes(head + lines[0] + bytes(4096) + b"\n" + lines[2])
    assert read(tmp_path) == [ONE, THREE]


@pytest.mark.parametrize(
    ("field", "value"), [("db", "other"), ("boot", "other"), ("host", "x"), ("pid_namespace", "x"), ("lease", 8)]
)
def test_pids_of_another_db_boot_host_or_namespace_mean_nothing(tmp_path: Path, field: str, value: object) -> None:
    path = write(tmp_path, ONE)
    head, _, rest = path.read_bytes().partition(b"\n")
    path.write_bytes(json.dumps({**json.loads(head), field: value}).encode() + b"\n" + rest)
    assert read(tmp_path) == []


@pytest.mark.parametrize("text", [b"", b"\0" * 5000, b"[]\n+4001 100 1:1\n", b"{}\n", b"\xff\n", b"null\n+4001 100 1:1\n"])
def test_a_file_without_a_header_names_nothing(tmp_path: Path, text: bytes) -> None:
    write(tmp_path, ONE).write_bytes(text)
    assert read(tmp_path) == []


@pytest.mark.parametrize(
    "line",
    [
        "+4001 1",
        "+ 1 1:1",
        "+4001 1 1",
        "+-7 1 1:1",
        "+4001 1 1:1:1:1",
        "+4_1 1 1:1",
        "+4001 . 1:1",
        "-",
        "--4001",
        "+٤٠ 1 1:1",
    ],
)
def test_a_line_that_is_no_record_names_nothing(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, ONE)
    path.write_bytes(path.read_bytes() + line.encode() + b"\n")
    assert read(tmp_path) == [ONE]


def test_what_is_no_file_names_nothing_and_holds_nobody_up(tmp_path: Path) -> None:
    directory = tmp_path / "runs"
    directory.mkdir()
    os.mkfifo(directory / f"{LEASE}-0-0")
    (directory / f"{LEASE}-1-0").mkdir()
    (directory / f"{LEASE}-2-0").symlink_to("/dev/zero")
    (directory / f"{LEASE}-x").touch()
    assert read(tmp_path) == []
    run_file.remove(str(directory), LEASE)
    assert sorted(os.listdir(directory)) == [f"{LEASE}-1-0", f"{LEASE}-x"]


def test_pid_1_and_0_are_never_named(tmp_path: Path) -> None:
    write(tmp_path, RunEntry(1, 1, 1, "0"), RunEntry(1, 1, 0, "0"), ONE)
    assert read(tmp_path) == [ONE]


def test_100_000_records_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, *(RunEntry(number, 1, 5000 + number, "100") for number in range(100_000)))
    assert len(read(tmp_path)) == 100_000


def test_a_file_that_cannot_be_written_is_told_and_written_when_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").write_text("in the way")
    writer = Writer(files(tmp_path).file(0))
    assert "Not a directory" in record(writer, ONE)
    assert record(writer, TWO) == ""
    (tmp_path / "runs").unlink()
    monkeypatch.setattr(run_file, "RETRY_S", 0.0)
    writer._retry_at = 0.0
    assert record(writer, THREE) == ""
    assert read(tmp_path) == [ONE, TWO, THREE]


def test_a_full_disk_costs_no_record_when_there_is_space_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_file, "RETRY_S", 0.0)
    writer = Writer(files(tmp_path).file(0))
    record(writer, ONE)
    with monkeypatch.context() as patch:
        write_all = os.write
        patch.setattr(os, "write", lambda fd, data: write_all(fd, data[:5]))
        assert "only a part of" in record(writer, TWO)
    assert record(writer, THREE) == ""
    assert read(tmp_path) == [ONE, TWO, THREE]


def test_removing_takes_the_files_of_that_lease_and_rank_alone(tmp_path: Path) -> None:
    first, second, kept = write(tmp_path, ONE), write(tmp_path, TWO, rank=1), write(tmp_path, TWO, lease=77)
    run_file.remove(str(tmp_path / "runs"), LEASE, 1)
    assert (first.exists(), second.exists(), kept.exists()) == (True, False, True)
    run_file.remove(str(tmp_path / "runs"), LEASE)
    assert (first.exists(), second.exists(), kept.exists()) == (False, False, True)


def test_removing_for_a_host_leaves_what_other_hosts_need(tmp_path: Path) -> None:
    mine, others, torn = write(tmp_path, ONE), write(tmp_path, TWO, rank=1), write(tmp_path, TWO, rank=2)
    others.write_bytes(others.read_bytes().replace(os.uname().nodename.encode(), b"elsewhere"))
    torn.write_bytes(b"{")
    run_file.remove(str(tmp_path / "runs"), LEASE, host=os.uname().nodename)
    assert (mine.exists(), others.exists(), torn.exists()) == (False, True, False)
