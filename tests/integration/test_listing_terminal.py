"""Listings on a terminal: the newest 50 jobs, columns that fit, colour; and none of that in a pipe."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from elsewhere import environment

from balsam_lite.db.engine import directories
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.store import apps, insert, user_actions

LONG = "runs/" + "x" * 90


@pytest.fixture
def db(tmp_path: Path):
    """Sixty jobs, the last one FAILED."""
    found = directories.create(str(tmp_path / "db"))
    with found.write() as cx:
        apps.add_app(cx, {"name": "say", "executable": "echo Hello,"})
    insert.add_jobs(
        found, [{"name": f"j{n:02}", "workflow": "w", "application": "say", "tags": {"n": str(n)}} for n in range(60)]
    )
    user_actions.set_state(found, [60], "FAILED")
    yield found
    found.close()


def shown(db: Database, *words: str, columns: int = 80, **variables: str) -> tuple[str, str]:
    """Return what the command prints on a terminal of that width, and its words on stderr."""
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environ = {**environment(), "BALSAM_DB_PATH": db.directory, "TERM": "xterm", **variables}
    environ.pop("COLUMNS", None)
    argv = [sys.executable, "-m", "balsam_lite.cli", *words]
    with subprocess.Popen(argv, stdout=terminal, stderr=subprocess.PIPE, env=environ, text=True) as process:
        os.close(terminal)
        printed = b""
        while True:
            try:
                piece = os.read(screen, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            printed += piece
        assert process.stderr
        err = process.stderr.read()
    os.close(screen)
    assert process.returncode == 0, err
    return printed.decode().replace("\r\n", "\n"), err


def test_ls_shows_the_newest_fifty_in_ascending_order_and_how_many_more_there_are(db: Database) -> None:
    lines = shown(db, "ls", NO_COLOR="1")[0].splitlines()
    assert [line.split()[2] for line in lines[2:-1]] == [f"j{n}" for n in range(10, 60)]
    assert lines[-1] == "(10 more BalsamJobs not shown...)"
    for words in (["--history"], ["--verbose"], ["--by-states"]):
        assert "more BalsamJobs not shown...)" in shown(db, "ls", *words)[0]
    table = shown(db, "ls", "--columns", "name")[0].splitlines()
    assert (len(table), table[-1]) == (52, "j59")


@pytest.mark.parametrize(("words", "variables"), [
    (["--limit", "60"], {}), ([], {"BALSAM_LS_LIMIT": "60"}), (["--json"], {}), (["--format", "csv"], {}),
])  # fmt: skip
def test_what_is_told_otherwise_shows_all(db: Database, words: list[str], variables: dict[str, str]) -> None:
    out = shown(db, "ls", *words, **variables)[0]
    assert "j00" in out and "not shown" not in out


def test_an_order_of_the_user_is_kept(db: Database) -> None:
    lines = shown(db, "ls", "--sort", "-name", "--limit", "2")[0].splitlines()
    assert [line.split()[2] for line in lines[2:4]] == ["j59", "j58"]


def test_job_ls_shows_the_newest_fifty_too(db: Database) -> None:
    out, err = shown(db, "job", "ls", NO_COLOR="1")
    assert [line.split()[0] for line in out.splitlines()[2:]] == [str(n) for n in range(11, 61)]
    assert "10 more jobs" in err
    assert "j00" in shown(db, "job", "ls", "--columns", "name", "--limit", "60")[0]


@pytest.mark.parametrize("columns", [40, 80, 100])
def test_a_table_fits_the_terminal_and_names_what_it_leaves_out(db: Database, columns: int) -> None:
    insert.add_jobs(db, [{"name": "long", "application": "say", "workflow": "w" * 60, "description": "d" * 90}])
    words = ["job", "ls", "--limit", "100", "--columns", "id,name,workflow,description"]
    narrow = shown(db, *words, columns=columns)[0]
    assert "..." in narrow
    assert max(map(len, narrow.splitlines())) <= max(columns, 50)  # each column keeps twelve
    assert "d" * 90 in shown(db, *words, "--wide", columns=columns)[0]
    out, err = shown(db, "job", "ls", "-v", "--format", "table", "--limit", "100", columns=columns, NO_COLOR="1")
    assert max(map(len, out.splitlines())) <= columns
    assert err.startswith("No room for ") and "--wide" in err


def test_ls_keeps_its_five_columns_at_any_width(db: Database) -> None:
    lines = shown(db, "ls", columns=30, NO_COLOR="1")[0].splitlines()
    assert lines[0].split(" | ")[-1].strip() == "state"
    assert re.match(r"[0-9a-f]{8}-[0-9a-f-]{27} \| j10", lines[2])


@pytest.mark.parametrize("words", [["ls"], ["job", "ls"]])
def test_states_are_coloured_on_a_terminal_alone(db: Database, words: list[str]) -> None:
    assert "\x1b[31mFAILED\x1b[0m" in shown(db, *words, columns=200)[0]
    assert "\x1b" not in shown(db, *words, NO_COLOR="1")[0]
    assert "\x1b" not in shown(db, *words, TERM="dumb")[0]
    assert "\x1b" not in shown(db, *words, "--json")[0]
    environ = {**environment(), "BALSAM_DB_PATH": db.directory}
    done = subprocess.run([sys.executable, "-m", "balsam_lite.cli", *words], env=environ, capture_output=True, text=True)
    assert (done.returncode == 0 and "\x1b" not in done.stdout and "j00" in done.stdout) or words != ["ls"]


def test_short_ids_are_shown_where_the_table_is_fitted(db: Database) -> None:
    words = ["job", "ls", "--columns", "job_id", "--limit", "1"]
    assert len(shown(db, *words)[0].splitlines()[-1]) == 8
    assert len(shown(db, *words, "--wide")[0].splitlines()[-1]) == 36
    assert len(shown(db, *words, "--format", "csv")[0].splitlines()[-1]) == 36
