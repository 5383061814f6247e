"""Show long output on a terminal with the user's pager, as git does. Knows neither click nor the DB.

The output is kept until it is longer than the screen; then the pager named by PAGER gets it, `less` unless set. Without LESS,
less ends by itself on a short text, shows colours and leaves the text on the screen (-FRX, as in git).
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from ..core.subprocess_run import Pager

_DEFAULT = "less"
#: Values of PAGER that mean none.
_NONE = ("", "cat")
#: Lines of a screen whose size is unknown.
_LINES, _COLUMNS = 24, 80


class PagerLeft(Exception):
    """The user has left the pager before the end of the output."""


class _Screen(io.RawIOBase):
    """A terminal that keeps what is written, until it is more than a screen; then it starts the pager."""

    def __init__(self, terminal: IO[str], encoding: str) -> None:
        self._terminal, self._encoding = terminal, encoding
        self._kept: list[bytes] = []
        self._lines = 0
        self.is_direct = False
        self.pager: Pager | None = None
        self.warning = ""
        try:
            self._columns, self._height = os.get_terminal_size(terminal.fileno())
        except OSError:
            self._columns, self._height = _COLUMNS, _LINES

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._terminal.fileno()

    def write(self, data: bytes) -> int:  # type: ignore[override]
        piece = bytes(data)
        if self.is_direct or self.pager:
            self._pass_on(piece)
        else:
            self._kept.append(piece)
            self._lines += sum(1 + max(len(line) - 1, 0) // max(self._columns, 1) for line in piece.split(b"\n")) - 1
            if self._lines >= max(self._height, 2):
                self._start()
        return len(piece)

    def _start(self) -> None:
        from shlex import split
        from shutil import which

        from ..core import subprocess_run

        command = os.environ.get("PAGER", _DEFAULT)
        with suppress(ValueError):  # quotes that do not match
            word = (split(command) or [""])[0]
            if which(word):
                self.pager = subprocess_run.start_pager(command)
        if self.pager is None and "PAGER" in os.environ:
            self.warning = f"Warning: The pager {command!r}, which PAGER names, cannot be run.\n"
        self.show()

    def show(self) -> None:
        """Pass on what is kept, and all that follows, to the pager or without one to the terminal."""
        self.is_direct = self.pager is None
        kept, self._kept = b"".join(self._kept), []
        self._pass_on(kept)

    def _pass_on(self, piece: bytes) -> None:
        if self.pager:
            self.pager.stdin.write(piece)
        elif piece:
            self._terminal.write(piece.decode(self._encoding, "backslashreplace"))


class _Words(io.StringIO):
    """The place of stderr: words for the user come after the output, which the pager may have."""

    def __init__(self, screen: _Screen, stderr: IO[str]) -> None:
        super().__init__()
        self._screen, self._stderr = screen, stderr

    def write(self, text: str) -> int:
        return self._stderr.write(text) if self._screen.is_direct else super().write(text)

    def flush(self) -> None:
        self._stderr.flush()

    def isatty(self) -> bool:
        return self._stderr.isatty()

    def fileno(self) -> int:
        return self._stderr.fileno()


@contextmanager
def paged() -> Iterator[None]:
    """Within the block, let the pager show what is written to stdout, a terminal, if it is more than a screen.

    Words on stderr follow at the end.

    Raises:
        PagerLeft: the user has left the pager, so that what follows is not wanted.
    """
    if os.environ.get("TERM", "dumb") == "dumb" or os.environ.get("PAGER", _DEFAULT).strip() in _NONE:
        yield
        return
    stdout, stderr = sys.stdout, sys.stderr
    screen = _Screen(stdout, stdout.encoding)
    words = _Words(screen, stderr)
    sys.stdout = io.TextIOWrapper(screen, stdout.encoding, "backslashreplace", newline="\n", write_through=True)
    sys.stderr = words
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError as exc:
        if screen.pager is None:
            raise
        raise PagerLeft from exc
    finally:
        sys.stdout, sys.stderr = stdout, stderr
        if screen.pager:
            screen.pager.finish()
        else:
            screen.show()
            stdout.flush()
        stderr.write(screen.warning + words.getvalue())
        stderr.flush()
