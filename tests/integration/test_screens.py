"""What users see: `screens.txt` is a session of commands with all that they print, errors too, reviewed by a reader.

A line that begins with `$ ` is a command, typed in one DB after the other lines; what it prints to stdout follows, then what it
prints to stderr, each line after `! `, then its exit code unless it is 0. Ids, times, paths and sizes are always
written alike. After a change on purpose, `WRITE_SCREENS=1 pytest tests/integration/test_screens.py` writes the file; read the
difference before you commit it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import ROOT

from balsam_lite.cli.main import main
from balsam_lite.db.engine import directories
from balsam_lite.db.store import user_actions

SCREENS = Path(__file__).with_name("screens.txt")

#: What differs from run to run, and what is written for it.
PARTICULARS = (
    (r'"([0-9a-f]{8}-[0-9a-f-]{27})"(?=\n)', r"\1"),  # YAML quotes an id that looks like a number
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "01234567-89ab-cdef-0123-456789abcdef"),
    (r"(?<![0-9a-zA-Z-])(?=[a-f]*\d)[0-9a-f]{8}(?![0-9a-zA-Z-])", "01234567"),
    (r"\d\d-\d\d-\d{4} \d\d:\d\d:\d\d\.\d{6}", "11-30-2026 12:00:00.000000"),
    (r"\bby \w+ on \S+ (\(.*?\)) at \d\d-\d\d-\d{4} \d\d:\d\d:\d\d", r"by me on host \1 at 11-30-2026 12:00:00"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)?", "2026-11-30T12:00:00Z"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)?", "2026-11-30 12:00"),
    (r"\b\d+(\.\d+)? (bytes|KiB|MiB|kB|MB|GB|TB)", "N bytes"),
    (r"(\(|after |last )\d+(\.\d+)? (ms|s)\b", r"\1N s"),
    (r"\d+\.\d per (s|min|h)", "N per s"),
)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home directory with nothing in it, the current directory. Its path always has the same length, for tables."""
    home = Path(tempfile.mkdtemp(prefix="me", dir="/tmp"))
    for variable in [name for name in os.environ if name.startswith(("BALSAM_", "_BALSAM"))]:
        monkeypatch.delenv(variable)
    for variable, value in {"BALSAM_HOME": str(home / ".balsam"), "COLUMNS": "80", "NO_COLOR": "1", "USER": "me"}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("BALSAM_SCHEDULER_CLASS", "LocalScheduler")
    monkeypatch.chdir(home)
    yield home
    shutil.rmtree(home)


def without_particulars(text: str, place: Path) -> str:
    text = text.replace(str(place), "/home/me").replace(str(ROOT), "/opt/balsam_lite")
    for pattern, alike in PARTICULARS:
        text = re.sub(pattern, alike, text)
    return "\n".join(line.rstrip() for line in text.splitlines())


def set_state(place: Path, name: str, state: str, message: str) -> None:
    """Put the job into a state as a launcher would, with its message."""
    with_db = directories.open_database(str(place / "db"))
    try:
        with with_db.read() as cx:
            number = cx.execute("SELECT id FROM job WHERE name = ?", (name,)).fetchone()[0]
        user_actions.set_state(with_db, [number], state, message)
    finally:
        with_db.close()


def screen(line: str, place: Path, run: Callable[[list[str]], tuple[int, str, str]]) -> str:
    """The block of one command: its line, and what it printed."""
    words = shlex.split(line)
    if words[0] == "state":  # no command of ours: a launcher's part in this session
        set_state(place, *words[1:])
        return f"$ {line}\n"
    assert words[0] == "balsam", line
    code, out, err = run(words[1:])
    shown = [without_particulars(out, place)] if out.strip() else []
    shown += ["! " + each for each in without_particulars(err, place).splitlines()]
    shown += [f"(exit code {code})"] if code else []
    return "\n".join([f"$ {line}", *shown]).rstrip() + "\n"


def test_each_command_prints_what_a_reader_has_reviewed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(words: list[str]) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main(words)
        except SystemExit as ended:
            code = int(ended.code or 0)
        return (code, *capsys.readouterr())

    expected = SCREENS.read_text(encoding="utf-8")
    lines = [line[2:] for line in expected.splitlines() if line.startswith("$ ")]
    assert len(lines) > 80
    seen = "\n".join(screen(line, place, run) for line in lines)
    if os.environ.get("WRITE_SCREENS"):
        SCREENS.write_text(seen, encoding="utf-8")
    assert seen == expected
