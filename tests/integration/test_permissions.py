"""Who can read what: the database, job scripts and backups hold the values of environment variables."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from elsewhere import balsam

from balsam_lite.db.engine import directories


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path | str) -> str:
    return stat.filemode(os.stat(path).st_mode)[1:]


def sqlite_files(directory: Path) -> dict[str, str]:
    return {path.name[len("balsam.sqlite3") :]: mode(path) for path in sorted(directory.glob("balsam.sqlite3*"))}


def init(directory: Path, *options: str) -> str:
    code, out, err = balsam(None, "init", *options, str(directory))
    assert code == 0, err
    return out + err


def finding(directory: Path) -> tuple[str, str]:
    code, out, err = balsam(directory, "db", "check", "--seconds", "0", "--json")
    assert code == 0, err
    (found,) = (one for one in json.loads(out) if one["topic"] == "rights")
    return found["level"], found["text"]


def info(directory: Path) -> bool:
    return bool(json.loads(balsam(directory, "db", "info", "--json")[1])[0]["shared_read"])


def everything_written(directory: Path, backup: Path) -> dict[str, str]:
    """The modes of all that holds values of variables, as commands write it while the DB is open."""
    db = directories.open_database(str(directory))
    with db.read():
        assert balsam(directory, "app", "--name", "a", "--executable", "true")[0] == 0
        line = ("job", "--name", "j", "--workflow", "w", "--app", "a", "--env", "A=1", "--yes")
        code, _, err = balsam(directory, *line)
        assert code == 0, err
        found = sqlite_files(directory)
    db.close()
    assert balsam(directory, "db", "backup", str(backup))[0] == 0
    launch = ("submit-launch", "-n", "1", "-t", "1", "-q", "local", "-A", "x", "--job-mode", "serial")
    code, out, err = balsam(directory, *launch, BALSAM_SCHEDULER_CLASS="LocalScheduler")
    assert code == 0, err
    (script,) = (path for path in (directory / "qsubmit").iterdir() if path.suffix == ".sh")
    return {**found, "backup": mode(backup), "script": mode(script)}


def test_nobody_else_can_read_what_holds_environment_values(tmp_path):
    directory = tmp_path / "db"
    init(directory)
    assert everything_written(directory, tmp_path / "b.sqlite3") == {
        "": "rw-------",
        "-shm": "rw-------",
        "-wal": "rw-------",
        "backup": "rw-------",
        "script": "rwx------",
    }
    assert mode(directory) == mode(directory / "data") == "rwxr-xr-x"  # a project's group needs the results
    assert finding(directory)[0] == "ok"
    assert not info(directory)


def test_others_can_read_it_after_init_shared_read_as_umask_allows(tmp_path):
    os.umask(0o027)
    directory = tmp_path / "db"
    init(directory, "--shared-read")
    assert everything_written(directory, tmp_path / "b.sqlite3") == {
        "": "rw-r-----",
        "-shm": "rw-r-----",
        "-wal": "rw-r-----",
        "backup": "rw-r-----",
        "script": "rwxr-x---",
    }
    tmp_path.chmod(0o755)
    directory.chmod(0o755)
    init(directory)  # keeps to what was said
    assert info(directory)
    assert set(sqlite_files(directory).values()) == {"rw-r-----"}  # a launcher may have the WAL open


def reachable(directory: Path) -> bool:
    """Whether the directories above let others in."""
    return all(os.stat(above).st_mode & 0o011 for above in [directory, *directory.resolve().parents])


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that others can enter; pytest's own they cannot."""
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        os.chmod(made, 0o755)
        yield Path(made)


def of_an_older_version(directory: Path) -> None:
    init(directory)
    marker = json.loads((directory / "balsam.json").read_text())
    del marker["shared_read"]
    (directory / "balsam.json").write_text(json.dumps(marker))
    (directory / "balsam.sqlite3").chmod(0o644)


def test_a_db_of_an_older_version_goes_on_as_it_was_and_check_tells_the_way_to_change_it(open_place):
    directory = open_place / "db"
    of_an_older_version(directory)
    init(directory)
    written = everything_written(directory, open_place / "b.sqlite3")
    assert written == {"": "rw-r--r--", "-shm": "rw-r--r--", "-wal": "rw-r--r--", "backup": "rw-r--r--", "script": "rwxr-xr-x"}
    level, text = finding(directory)
    assert level == "note"
    # The WAL as well, while a launch that is just ending has the DB open.
    assert re.match(r"others can read balsam\.sqlite3, (balsam\.sqlite3-(wal|shm), )*qsubmit/", text)
    assert f"`balsam init --no-shared-read {directory}`" in text
    init(directory, "--no-shared-read")
    assert set(sqlite_files(directory).values()) == {"rw-------"}  # a launch that is just ending may have it open
    assert {mode(path) for path in (directory / "qsubmit").iterdir()} <= {"rwx------", "rw-------"}
    assert finding(directory)[0] == "ok"
    assert not info(directory)


def test_check_says_what_others_can_read_also_where_that_was_wanted(open_place):
    directory = open_place / "db"
    init(directory, "--shared-read")
    level, text = finding(directory)
    assert level == "ok"
    assert "others can read balsam.sqlite3" in text and "as `balsam init --shared-read` allows" in text


def test_nothing_is_readable_below_a_directory_that_others_cannot_enter(open_place):
    directory = open_place / "db"
    init(directory, "--shared-read")
    open_place.chmod(0o700)
    assert directories.readable_by_others(str(directory)) == []
    assert not reachable(directory)


def test_another_user_can_read_a_db_of_a_group_and_not_a_private_one(open_place):
    if os.geteuid():
        pytest.skip("root is needed to be another user")
    for name, options in (("private", ()), ("common", ("--shared-read",))):
        init(open_place / name, *options)
    readable = [
        name
        for name in ("private", "common")
        if not subprocess.run(
            ["head", "-c1", str(open_place / name / "balsam.sqlite3")],
            user=65534,
            group=65534,
            extra_groups=[],
            capture_output=True,
        ).returncode
    ]
    assert readable == ["common"]


def test_a_salvaged_db_is_private(open_place):
    directory = open_place / "db"
    init(directory, "--shared-read")
    assert balsam(directory, "app", "--name", "a", "--executable", "true")[0] == 0
    code, _, err = balsam(directory, "db", "salvage", str(open_place / "new"))
    assert code == 0, err
    assert sqlite_files(open_place / "new") == {"": "rw-------"}
