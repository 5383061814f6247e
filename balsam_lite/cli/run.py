"""Run one command line: from its words to its exit code.

Every error ends here: as text on stderr and an exit code, unexpected ones with the traceback in a file. No module below this
one exits or prints an error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from ..core.errors import BalsamError, DatabaseError
from ..core.settings import SettingsWarning, home

_PACKAGE = __name__.partition(".")[0]
TRACEBACK_VARIABLE = "BALSAM_TRACEBACK"
#: The exit code that a shell reports for a program that SIGPIPE ended.
_BROKEN_PIPE = 141
_INTERRUPTED = 130
#: Errors of writing to stdout; an error with a file has a `filename`.
_OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF, errno.EFBIG)
#: Modules that few commands use, though click, logging and this package import them: loading them takes 8 to 15 ms.
_POSTPONED = ("inspect", "pickle", "selectors", "shutil", "socket", "subprocess", "tempfile")


def run(words: Sequence[str]) -> int:
    """Run `balsam` followed by `words` and return the exit code. Raises nothing but SystemExit."""
    _replace_closed_streams()
    for name in _POSTPONED:
        _postpone(name)
    with warnings.catch_warnings():
        warnings.simplefilter("default", SettingsWarning)
        warnings.showwarning = _shower(warnings.showwarning)
        code = _guarded(list(words))
    return _flushed(code)


def _replace_closed_streams() -> None:
    """Open /dev/null in place of closed standard streams; else the next file that is opened would take their place."""
    if None not in (sys.stdin, sys.stdout, sys.stderr):
        return
    number = 0
    while number <= 2:
        number = os.open(os.devnull, os.O_RDWR)
    os.close(number)
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")


def _guarded(words: list[str]) -> int:
    import click

    commits = _commits()
    try:
        return _invoke(words)
    except (BalsamError, click.ClickException, click.exceptions.Exit) as exc:
        if isinstance(exc, BalsamError):
            _tell(exc)
            if isinstance(exc, DatabaseError) and _commits() > commits:
                _say("Before that, this command has written to the DB, and that stays: look there before you try again.")
        elif isinstance(exc, click.ClickException):
            exc.show()
        return exc.exit_code
    except (KeyboardInterrupt, click.Abort) as exc:
        if exc.args:  # what is left of a large write
            click.echo(str(exc), err=True)
        return _INTERRUPTED
    except BrokenPipeError:
        return _cannot_write(_BROKEN_PIPE)
    except Exception as exc:  # noqa: BLE001  # the last resort: a traceback is for a file, not for a user's terminal
        if isinstance(exc, MemoryError) or (isinstance(exc, ImportError) and "failed to map" in str(exc)):
            _say("Error: There is not enough memory (`ulimit -v` shows this process's limit).")
            return 1
        return _unexpected(exc, words)


def _commits() -> int:
    """Return how many transactions this process has committed."""
    connection = sys.modules.get(f"{_PACKAGE}.db.engine.connection")
    return connection.commits if connection is not None else 0


def _invoke(words: list[str]) -> int:
    from .completion import COMPLETION_VARIABLE
    from .group import balsam

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if COMPLETION_VARIABLE in os.environ:
        with contextlib.suppress(Exception):  # a shell would show it in the middle of the user's line
            balsam.main(words, prog_name="balsam")
        return 0
    with balsam.make_context("balsam", words or ["--help"]) as context:
        result = balsam.invoke(context)
    sys.stdout.flush()
    return result if isinstance(result, int) else 0


def _flushed(code: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _cannot_write(_BROKEN_PIPE)
    except OSError as exc:
        return _cannot_write(1, exc)
    return code


def _cannot_write(code: int, exc: OSError | None = None) -> int:
    """Send the rest of the output to /dev/null; Python flushes again when it ends, and would complain."""
    if exc:
        _say(f"Error: The output cannot be written: {exc.strerror}")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    except (OSError, ValueError):  # a stream without a file, in tests
        pass
    finally:
        os.close(nowhere)
    return code


# --- telling the user -------------------------------------------------------------------------------------------------


def _say(text: str) -> None:
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):  # stderr is closed
        pass


def _shower(otherwise: Callable[..., None]) -> Callable[..., None]:
    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, SettingsWarning):
            _say(f"Warning: {message}")
        else:
            otherwise(message, category, *rest, **more)

    return show


def _tell(exc: BalsamError) -> None:
    _say(f"Error: {exc}")
    if os.environ.get(TRACEBACK_VARIABLE):
        import traceback

        _say("".join(traceback.format_exception(type(exc), exc, exc.__traceback__)))


#: Errors for which a limit of the user is the reason, and how to see it (bash(1), ulimit).
_LIMITS = {
    errno.EMFILE: "This process may not have more files open (`ulimit -n` shows the limit).",
    errno.ENFILE: "This host has too many files open.",
    errno.EAGAIN: "No more processes or threads can be started (`ulimit -u` shows the limit).",
    errno.ENOMEM: "There is not enough memory (`ulimit -v` shows this process's limit).",
}


def _unexpected(exc: Exception, words: Sequence[str]) -> int:
    if isinstance(exc, OSError) and exc.errno in _LIMITS and not os.environ.get(TRACEBACK_VARIABLE):
        _say(f"Error: {_LIMITS[exc.errno]}")
        return 1
    import shlex
    import traceback

    if isinstance(exc, OSError) and exc.errno in _OUTPUT_ERRORS and exc.filename is None:
        return _cannot_write(1, exc)
    if isinstance(exc, FileNotFoundError) and exc.filename is None and _is_nowhere():
        _say("Error: The current directory does not exist any more.\nGo to another one: `cd`.")
        return 1
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        from ..db.engine.filesystem import failure

        path = os.fsdecode(exc.filename) if isinstance(exc.filename, (str, bytes)) else os.getcwd()
        _say(f"Error: {path} cannot be written: {failure(exc, path)}\nFree some space, try again.")
        return 1
    text = f"balsam {shlex.join(words)}\n{''.join(traceback.format_exception(type(exc), exc, exc.__traceback__))}"
    path = _keep(text, words)
    summary = f"Error: unexpected {type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else '(no message)'}"
    if os.environ.get(TRACEBACK_VARIABLE) or not path:
        _say(text)
        _say(summary)
    else:
        _say(f"{summary}  (traceback in {path}; {TRACEBACK_VARIABLE}=1 shows it)")
    return 1


def _is_nowhere() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _keep(text: str, words: Sequence[str]) -> str:
    """Write a traceback into the log directory of the DB, or of the user if there is none; "" where neither can be written."""
    import time

    name = time.strftime(f"command-%Y%m%d-%H%M%S-{os.getpid()}.log", time.gmtime())
    for folder in (_db_log(words), os.path.join(home(), "log")):
        if not folder:
            continue
        path = os.path.join(folder, name)
        try:
            os.makedirs(folder, exist_ok=True)
            with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError:
            continue
        return path
    return ""


def _db_log(words: Sequence[str]) -> str:
    from ..db.engine import directories

    first, *rest = words or [""]
    named = rest[0] if first == "--db" and rest else first[5:] if first.startswith("--db=") else None
    try:
        return os.path.join(directories.find(named), directories.LOG)
    except Exception:  # noqa: BLE001  # the first error may happen here again, and must still be reported
        return ""


# --- speed ------------------------------------------------------------------------------------------------------------


def leave(code: int) -> int:
    """End the process at once: destroying every object would take a tenth of the time of `balsam ls`.

    Returns `code` instead if a launcher or another thread has run, which may depend on an orderly end.
    """
    if f"{_PACKAGE}.launcher" in sys.modules or threading.active_count() > 1:
        return code
    sys.stderr.flush()
    connection = sys.modules.get(f"{_PACKAGE}.db.engine.connection")
    if connection is not None:
        connection.close_all()
    os._exit(code)


#: Two threads of a launcher may need the same module first; it may itself need another postponed one.
_LOADING = threading.RLock()


class _Postponed(ModuleType):
    """A placeholder for a module of the standard library, which is imported at the first access to an attribute."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":  # which `from … import *` reads
            raise AttributeError(name)
        with _LOADING:
            if sys.modules.get(self.__name__) is self:
                del sys.modules[self.__name__]
            __import__(self.__name__)
        self.__dict__.update(vars(sys.modules[self.__name__]))
        return getattr(sys.modules[self.__name__], name)


def _postpone(name: str) -> None:
    """Import this module only when it is used. (importlib's LazyLoader loads at the second `import` already.)"""
    if name not in sys.modules:
        sys.modules[name] = _Postponed(name)
