"""The command as a process: terminals, pipes, signals, and the log that it follows."""

from __future__ import annotations

import json
import os
import pty
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT, wait_until

from balsam_lite import __version__
from balsam_lite.cli import logs

BALSAM = [sys.executable, "-c", "import sys; from balsam_lite.cli.main import main; sys.exit(main())"]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell in which a DB is active; the DB holds the app `say`."""
    found = {name: value for name, value in os.environ.items() if not name.startswith(("BALSAM_", "_BALSAM"))}
    found.pop("PYTHONUNBUFFERED", None)  # Python does not notice then that a pipe took only a part
    found.update(BALSAM_HOME=str(tmp_path / "home"), BALSAM_DB_PATH=str(tmp_path / "db"), PYTHONPATH=str(ROOT))
    for words in (["init", str(tmp_path / "db")], ["app", "--name", "say", "--executable", "echo"]):
        subprocess.run([*BALSAM, *words], check=True, env=found, stdout=subprocess.DEVNULL)
    return found


def balsam(environ: dict[str, str], *words: str) -> tuple[int, str, str]:
    done = subprocess.run([*BALSAM, *words], env=environ, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout, done.stderr


JOB = ("job", "--name", "j", "--workflow", "w", "--application", "say")


def test_exit_codes_and_output_reach_the_shell(environ: dict[str, str]) -> None:
    assert balsam(environ, "--version") == (0, f"balsam {__version__}\n", "")
    assert balsam(environ, *JOB, "--yes")[0] == 0
    assert [job["name"] for job in json.loads(balsam(environ, "ls", "--json")[1])] == ["j"]
    assert balsam(environ, "ls", "--limit", "0")[0] == 2
    assert balsam(environ, "dep", "zz", "zz")[0] == 3
    assert balsam({**environ, "BALSAM_DB_PATH": "/nowhere"}, "ls")[0] == 1


def test_a_pipe_is_no_terminal_even_if_it_says_yes(environ: dict[str, str]) -> None:
    done = subprocess.run([*BALSAM, *JOB], env=environ, input="y\n", capture_output=True, text=True)
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert balsam(environ, "ls", "--json")[1] == "[]\n"


class Terminal:
    """A command with a terminal of its own."""

    def __init__(self, environ: dict[str, str], *words: str) -> None:
        self.side, other = pty.openpty()
        self.process = subprocess.Popen(
            [*BALSAM, *words], env=environ, stdin=other, stdout=other, stderr=other, start_new_session=True
        )
        os.close(other)
        self.text = ""

    def read_until(self, words: str) -> str:
        give_up = time.monotonic() + 20
        poll = select.poll()
        poll.register(self.side, select.POLLIN)
        while words not in self.text:
            assert poll.poll(max(give_up - time.monotonic(), 0) * 1000), f"only this came: {self.text}"
            self.text += os.read(self.side, 4096).decode()
        return self.text

    def type(self, keys: bytes) -> None:
        os.write(self.side, keys)

    def end(self) -> int:
        code = self.process.wait(20)
        os.close(self.side)
        return code


def test_a_terminal_is_asked_until_it_says_y_or_n(environ: dict[str, str]) -> None:
    terminal = Terminal(environ, *JOB)
    terminal.read_until("Confirm adding job to DB [y/n]: ")
    terminal.type(b"perhaps\n")
    terminal.read_until("perhaps\r\nConfirm adding job to DB [y/n]: ")
    terminal.type(b"y\n")
    terminal.read_until("Added job to database")
    assert terminal.end() == 0
    assert len(json.loads(balsam(environ, "ls", "--json")[1])) == 1


def test_the_end_of_the_input_on_a_terminal_aborts(environ: dict[str, str]) -> None:
    terminal = Terminal(environ, *JOB)
    terminal.read_until("[y/n]: ")
    terminal.type(b"\x04")
    terminal.read_until("Add job aborted")
    assert terminal.end() == 1
    assert balsam(environ, "ls", "--json")[1] == "[]\n"


def test_an_interrupt_while_asking_aborts_quietly(environ: dict[str, str]) -> None:
    terminal = Terminal(environ, *JOB)
    terminal.read_until("[y/n]: ")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130
    assert balsam(environ, "ls", "--json")[1] == "[]\n"


def test_make_dummies_shows_its_progress_on_a_terminal_only(environ: dict[str, str]) -> None:
    terminal = Terminal(environ, "make_dummies", "20")
    terminal.read_until("Added 20 dummy jobs to the DB")
    assert "100 %" in terminal.text
    assert terminal.end() == 0
    assert balsam(environ, "make_dummies", "20") == (0, "Added 20 dummy jobs to the DB\n", "")


def test_a_launcher_says_how_it_ended_in_a_line_of_its_own_on_any_terminal(environ: dict[str, str]) -> None:
    terminal = Terminal({**environ, "BALSAM_IDLE_TTL_S": "0"}, "launcher", "--consume-all", "--job-mode", "serial")
    terminal.read_until("Launcher ends")
    assert "\x1b" not in terminal.text
    assert terminal.end() == 0


@pytest.mark.parametrize("words", [("ls", "--json"), ("ls",)])
def test_a_reader_who_leaves_is_no_error(environ: dict[str, str], words: tuple[str, ...]) -> None:
    balsam(environ, "make_dummies", "3000")
    with subprocess.Popen([*BALSAM, *words], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_which_cannot_be_written_is_an_error(environ: dict[str, str], unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*BALSAM, "ls", "--json"],
            env={**environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == "Error: The output cannot be written: No space left on device\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_no_trouble(environ: dict[str, str], closed: str) -> None:
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *BALSAM]
    for words in (["ls"], ["make_dummies", "2"], ["modify", "zz", "name", "x"], ["--version"]):
        done = subprocess.run([*shell, *words], env=environ, capture_output=True, text=True)
        assert done.returncode == (3 if "zz" in words else 0), done.stderr
        assert "Traceback" not in done.stderr
    assert len(json.loads(balsam(environ, "ls", "--json")[1])) == 2


def test_a_terminal_without_unicode_gets_escapes(environ: dict[str, str]) -> None:
    balsam(environ, "job", "--name", "é🎉", "--workflow", "w", "--application", "say", "--yes")
    code, out, _ = balsam({**environ, "PYTHONIOENCODING": "ascii"}, "ls")
    assert code == 0
    assert "\\xe9\\U0001f389" in out


def test_the_db_of_a_subdirectory_is_found(environ: dict[str, str], tmp_path: Path) -> None:
    del environ["BALSAM_DB_PATH"]
    done = subprocess.run([*BALSAM, "which"], env=environ, cwd=tmp_path / "db" / "data", capture_output=True, text=True)
    assert done.stdout.startswith(f"Current Balsam DB: {tmp_path / 'db'}\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_there_for_every_shell(environ: dict[str, str], shell: str) -> None:
    if shell == "bash" and "version" not in subprocess.run(["bash", "--version"], capture_output=True, text=True).stdout:
        pytest.skip("no bash")
    code, out, err = balsam(environ, "completion", shell)
    assert (code, err) == (0, "")
    assert balsam({**environ, "_BALSAM_COMPLETE": f"{shell}_source"})[1].strip() == out.strip()
    words = {"COMP_WORDS": "balsam subm", "COMP_CWORD": "1" if shell != "fish" else "subm"}
    assert "submit-launch" in balsam({**environ, **words, "_BALSAM_COMPLETE": f"{shell}_complete"})[1]


def test_bash_completes_by_the_printed_script(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "balsam").write_text(f'#!/bin/sh\nexec {shlex.join(BALSAM)} "$@"\n')
    (tmp_path / "balsam").chmod(0o755)
    script = """eval "$(balsam completion bash)"; COMP_WORDS=(balsam subm); COMP_CWORD=1
        _balsam_completion balsam; echo "${COMPREPLY[@]}"; complete -p balsam"""
    path = {"PATH": f"{tmp_path}:{environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env={**environ, **path}, capture_output=True, text=True)
    assert done.stdout == "submit-launch\ncomplete -o nosort -F _balsam_completion balsam\n", done.stderr
    assert balsam(environ, "completion", "csh")[0] == 2


@pytest.mark.parametrize(
    ("typed", "offered"), [("jo", ["job"]), ("job cr", ["create"]), ("job create --pa", ["--parent", "--parent-id", "--param"])]
)
def test_each_word_of_a_command_is_completed_on_its_own(environ: dict[str, str], typed: str, offered: list[str]) -> None:
    words = f"balsam {typed}"
    completion = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), "_BALSAM_COMPLETE": "bash_complete"}
    assert balsam({**environ, **completion})[1].split() == [f"plain,{word}" for word in offered]


# --- balsam log -------------------------------------------------------------------------------------------------------


def test_log_prints_the_last_lines_of_each_file(environ: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "db" / "log"
    (folder / "b.log").write_text("".join(f"line {n}\n" for n in range(50)))
    (folder / "a.log").write_bytes(b"one \xff\x1b[31m line")
    (folder / "other.txt").write_text("not a log")
    code, out, err = balsam(environ, "log", "--no-follow", "-n", "2")
    assert (code, err) == (0, "")
    assert out == "==> a.log <==\none \ufffd\\x1b[31m line\n==> b.log <==\nline 48\nline 49\n"
    assert balsam(environ, "log", "--no-follow", "-n", "0") == (0, "", "")
    assert balsam(environ, "log", "-n", "-1")[0] == 2


def test_log_without_files_says_so(environ: dict[str, str]) -> None:
    code, out, err = balsam(environ, "log", "--no-follow")
    assert (code, out) == (0, "")
    assert "no logs" in err


def test_log_follows_files_that_come_later_until_it_is_interrupted(environ: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "db" / "log"
    (folder / "old.log").write_text("before\n")
    out = tmp_path / "out"
    with (
        open(out, "w") as file,
        subprocess.Popen([*BALSAM, "log"], env=environ, stdout=file, stderr=subprocess.PIPE) as process,
    ):
        wait_until(lambda: "before" in out.read_text())
        (folder / "new.log").write_text("after\n")
        wait_until(lambda: "==> new.log <==\nafter" in out.read_text())
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""


def append(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)


def test_a_log_that_was_rotated_is_shown_from_its_beginning(tmp_path: Path) -> None:
    shown: list[tuple[str, bytes]] = []

    def show(path: str, piece: bytes) -> None:
        shown.append((os.path.basename(path), piece))

    log = tmp_path / "x.log"
    places: dict[str, logs.Place] = {}
    for action in (
        lambda: log.write_text("one\n"),
        lambda: None,
        lambda: append(log, "two\n"),
        lambda: (log.rename(tmp_path / "x.log.1"), log.write_text("three\n")),
        lambda: log.write_text("4\n"),
        log.unlink,
    ):
        action()
        logs.follow_once(str(tmp_path), places, show)
    assert shown == [("x.log", b"one\n"), ("x.log", b"two\n"), ("x.log", b"three\n"), ("x.log", b"4\n")]
