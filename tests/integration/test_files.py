"""Files that are written whole or not at all, and locks between processes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from balsam_lite.core import files


def test_a_replaced_file_has_the_old_content_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("old")
    with files.replacing(str(path)) as temporary:
        Path(temporary).write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["x.json"]


def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def fail() -> None:
        with files.replacing(str(path)) as temporary:
            Path(temporary).write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (os.listdir(tmp_path), path.read_text()) == (["x"], "old")


def test_a_file_of_the_longest_possible_name_can_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 127)
    files.write_atomic(str(path), "ä\udcff", 0o640)
    assert path.read_bytes() == b"\xc3\xa4\xff"
    assert path.stat().st_mode & 0o777 == 0o640


def test_every_user_may_read_a_small_file_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        files.write_json_atomic(str(tmp_path / "x"), {"a": 1})
    finally:
        os.umask(before)
    assert json.loads((tmp_path / "x").read_text()) == {"a": 1}
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


def test_a_lock_keeps_other_processes_out_until_its_holder_is_killed(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    code = (
        "import sys, time\nfrom balsam_lite.core import files\n"
        "with files.locked(sys.argv[1]):\n print(1, flush=True)\n time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"1\n"
        try:
            with pytest.raises(TimeoutError, match="locked by another process"), files.locked(path, 0.02):
                pass
        finally:
            holder.send_signal(signal.SIGKILL)
    with files.locked(path):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_from_a_file_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(FileNotFoundError), files.locked(str(tmp_path / "none/lock")):
        pass
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(files.LocksUnsupported), files.locked(str(tmp_path / "lock")):
        pass
