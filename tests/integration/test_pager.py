"""Long listings on a terminal are paged, as git does; and `| head` ends every command that prints much without an error."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest
from elsewhere import environment

from balsam_lite.db.engine import directories
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.store import apps, insert

#: A pager that shows what it got.
MARK = "sed s/^/P:/"


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    found = directories.create(str(tmp_path_factory.mktemp("paged") / "db"))
    with found.write() as cx:
        apps.add_app(cx, {"name": "say", "executable": "echo"})
    insert.add_jobs(found, ({"name": f"j{n}", "workflow": "w", "application": "say", "data": {"n": n}} for n in range(20_000)))
    yield found
    found.close()


class OnTerminal:
    """`balsam` with a new terminal, as that of its session."""

    def __init__(self, db: Database, words: list[str], **variables: str) -> None:
        environ = {**environment(), "BALSAM_DB_PATH": db.directory, "TERM": "xterm", **variables}
        for name in [name for name in environ if name in ("COLUMNS", "LESS") or environ[name] == "(unset)"]:
            del environ[name]
        self.pid, self.screen = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
            os.execve(sys.executable, [sys.executable, "-m", "balsam_lite.cli", *words], environ)
        self.printed = ""

    def read_until(self, text: str, timeout_s: float = 60) -> str:
        """Read what is shown until this text has come; None: until the end."""
        ends = time.monotonic() + timeout_s
        while text not in self.printed or not text:
            assert time.monotonic() < ends, self.printed[-2000:]
            if select.select([self.screen], [], [], 0.2)[0]:
                try:
                    piece = os.read(self.screen, 65536)
                except OSError:  # the other end is closed
                    piece = b""
                if not piece:
                    assert not text, self.printed[-2000:]
                    break
                self.printed += piece.decode()
        return self.printed

    def end(self) -> int:
        """Read to the end and return the exit code."""
        self.read_until("")
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.screen)
        return code


LISTINGS = [
    "job ls",
    "ls",
    "ls --verbose --limit 9",
    "ls --history --limit 40",
    "results",
    "sql --views",
    "job ls --format csv",
]


@pytest.mark.parametrize("words", LISTINGS)
def test_a_listing_longer_than_the_screen_is_paged(db: Database, words: str) -> None:
    shown = OnTerminal(db, words.split(), PAGER=MARK)
    assert shown.end() == 0
    lines = [line for line in shown.printed.split("\r\n") if line]
    assert len([line for line in lines if line.startswith("P:")]) > 24
    said = [line for line in lines if not line.startswith("P:")]
    assert lines[len(lines) - len(said) :] == said, "words come after the pager"


@pytest.mark.parametrize("words", ["ls --limit 5", "job ls --limit 5", "results --limit 5", "app ls", "site ls", "ls apps"])
def test_a_listing_that_fits_is_not_paged(db: Database, words: str) -> None:
    shown = OnTerminal(db, words.split(), PAGER=MARK)
    assert shown.end() == 0
    assert "P:" not in shown.printed and shown.printed.strip()


@pytest.mark.parametrize(
    ("more", "variables"),
    [(["--no-pager"], {"PAGER": MARK}), ([], {"PAGER": ""}), ([], {"PAGER": "cat"}), ([], {"PAGER": MARK, "TERM": "dumb"})],
)  # fmt: skip
def test_no_pager_where_none_is_wanted(db: Database, more: list[str], variables: dict[str, str]) -> None:
    shown = OnTerminal(db, ["job", "ls", *more], **variables)
    assert shown.end() == 0
    assert "P:" not in shown.printed and shown.printed.count("\n") > 50


def test_a_pager_that_is_not_there_is_told_and_nothing_is_lost(db: Database) -> None:
    shown = OnTerminal(db, ["job", "ls"], PAGER="/none/pager -x")
    assert shown.end() == 0
    assert shown.printed.count("\n") > 50
    assert "The pager '/none/pager -x', which PAGER names, cannot be run." in shown.printed.replace("\r\n", "")


def test_a_pager_that_fails_ends_the_command_quietly(db: Database) -> None:
    shown = OnTerminal(db, ["ls", "--limit", "20000"], PAGER="false")
    assert shown.end() == 0
    assert "Traceback" not in shown.printed


@pytest.mark.skipif(
    not any(os.access(f"{folder}/less", os.X_OK) for folder in os.environ["PATH"].split(":")), reason="no less here"
)
@pytest.mark.parametrize("words", ["job ls --limit 20000", "sql 'SELECT * FROM jobs'", "results --limit 20000", "job ls"])
def test_less_shows_the_first_screen_and_ends_by_q(db: Database, words: str) -> None:
    shown = OnTerminal(db, shlex.split(words), PAGER="(unset)")
    shown.read_until("\n:")
    os.write(shown.screen, b"q")
    assert shown.end() == 0
    assert "Traceback" not in shown.printed and "Broken" not in shown.printed
    assert shown.printed.count("\n") < 60


@pytest.mark.skipif(
    not any(os.access(f"{folder}/less", os.X_OK) for folder in os.environ["PATH"].split(":")), reason="no less here"
)
def test_ctrl_c_is_for_the_pager(db: Database) -> None:
    shown = OnTerminal(db, ["job", "ls"], PAGER="(unset)")
    shown.read_until("\n:")
    os.write(shown.screen, b"\x03")
    time.sleep(0.3)  # nothing is to happen
    assert os.waitpid(shown.pid, os.WNOHANG) == (0, 0)
    os.write(shown.screen, b"q")
    assert shown.end() in (0, 130)


MUCH = [
    "ls --limit 20000", "ls --json", "ls --history --limit 5000", "job ls", "job ls --format csv", "job ls --format jsonl",
    "results --format csv", "results --wide", "sql 'SELECT * FROM events'", "report -o -", "sql --views",
]  # fmt: skip


@pytest.mark.parametrize("words", MUCH)
def test_head_ends_a_command_quietly(db: Database, words: str) -> None:
    argv = [sys.executable, "-m", "balsam_lite.cli", *shlex.split(words)]
    environ = {**environment(), "BALSAM_DB_PATH": db.directory}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.read(10)
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode in (0, 128 + signal.SIGPIPE), err
    assert b"Traceback" not in err and b"Broken" not in err and b"Error" not in err
