"""The result file of a job's Python code, with what it returned or raised, in the job's working directory.

Its name contains the job's id. Its first line is JSON and names the attempt that wrote it; the pickled `Outcome` follows. Only
the process that requested the result unpickles it.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from ..core import pickling

if TYPE_CHECKING:
    from ..core.errors import RemoteError

#: A ResultHeader as JSON; importing `json` would take longer than everything else in a call.
_FIRST_LINE = b'{"job_id": "%b", "attempt": %d, "good": %b}\n'
_MAX_HEADER_BYTES = 1000
#: Maximum size of a result that may have to go through ssh.
MAX_BYTES = 16 * 1024 * 1024
#: Maximum size of the pickled value in it.
MAX_VALUE_BYTES = MAX_BYTES - _MAX_HEADER_BYTES


class Outcome(NamedTuple):
    """The outcome of a call; a plain tuple in the file."""

    good: bool
    value: bytes | None  # the result or the exception, by `core.pickling`; None for an exception that cannot be
    trace: str = ""


class ResultHeader(NamedTuple):
    """Which attempt has written a result, and whether its function returned."""

    job_id: str
    attempt: int
    good: bool


def file_name(job_id: str) -> str:
    """Return the name of a job's result file."""
    return f".balsam-{job_id[:8]}.pkl"


# --- outcomes ---------------------------------------------------------------------------------------------------------


def outcome_of(do: Callable[[], Any], max_bytes: int | None = None) -> Outcome:
    """Call `do` and return its outcome: a failure also if pickle cannot write the result, or if it exceeds `max_bytes`."""
    try:
        value = do()
    except BaseException as exc:  # noqa: BLE001  # SystemExit included, as in Python's own executors
        return failure(exc)
    what = f"The result of the call is of type {type(value).__qualname__}"
    try:
        pickled = pickling.dumps(value)
    except Exception as exc:  # noqa: BLE001  # pickling runs the code of any class
        error = _remote_error(f"{what} and cannot be serialised: {exc}")
        error.__cause__ = exc
        return failure(error)
    if max_bytes is not None and len(pickled) > max_bytes:
        hint = "Write it to a file, and return its name."
        return failure(_remote_error(f"{what} and takes {len(pickled)} bytes; {max_bytes} is the most. {hint}"))
    return Outcome(True, pickled)


def _remote_error(text: str, hint: str = "") -> RemoteError:
    from ..core.errors import RemoteError

    return RemoteError(text, hint=hint)


def failure(exc: BaseException) -> Outcome:
    """Return the outcome of a call that raised this."""
    import traceback

    trace = "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
    try:
        value = pickling.dumps(exc)
        pickling.loads(value)  # there are exceptions that can only be written
    except Exception:  # noqa: BLE001
        return Outcome(False, None, trace)
    return Outcome(False, value, trace)


def value_of(what: str, outcome: Outcome) -> Any:
    """Return the result, or the exception that was raised; `what` names the call in messages.

    Raises:
        RemoteError: it cannot be unpickled here.
    """
    if outcome.value is None:
        return _remote_error(outcome.trace)
    try:
        return pickling.loads(outcome.value)
    except Exception as exc:  # unpickling runs the code of any class
        kind = "result" if outcome.good else "exception"
        raise _remote_error(f"The {what}'s {kind} cannot be read here: {exc!r}\n{outcome.trace}".rstrip()) from exc


def result_of(what: str, outcome: Outcome) -> Any:
    """Return the result, or raise the exception that was raised, with the traceback as its cause. Raises as `value_of`."""
    value = value_of(what, outcome)
    if outcome.good:
        return value
    raise value from _remote_error(outcome.trace)


def unpickled(content: bytes) -> Outcome:
    """Return the outcome in what `read` has returned. Raises RemoteError."""
    try:
        return Outcome(*pickle.loads(content))
    except Exception as exc:
        raise _remote_error(f"The file with the job's result cannot be read: {exc!r}") from exc


# --- files ------------------------------------------------------------------------------------------------------------


def write(path: str, header: ResultHeader, outcome: Outcome) -> None:
    """Write a result, whole or not at all, unless another rank of that attempt has written a failure. Raises OSError.

    The first failure of an attempt is the one to report, and counts more than what rank 0 has returned meanwhile.
    """
    temporary = f"{path}.{os.uname().nodename}.{os.getpid()}"  # ranks on two hosts may have the same pid
    with open(temporary, "wb") as file:
        file.write(_FIRST_LINE % (header.job_id.encode(), header.attempt, b"true" if header.good else b"false"))
        file.write(pickle.dumps(tuple(outcome), protocol=4))
        file.flush()
        os.fsync(file.fileno())  # a finished job survives a power cut, so its result has to
    try:
        if not _linked(temporary, path):
            before = _header_of(path)
            if before is None or before[:2] != header[:2] or (before.good and not header.good):
                os.replace(temporary, path)
    finally:
        if os.path.lexists(temporary):
            os.unlink(temporary)


def _linked(temporary: str, path: str) -> bool:
    """Link the file to that name; return whether the name was free."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            return False
        os.replace(temporary, path)
    return True


def _header_of(path: str) -> ResultHeader | None:
    try:
        with open(path, "rb") as file:
            return _read_header(file)
    except OSError:
        return None


def _read_header(file: BinaryIO) -> ResultHeader | None:
    """Return the first line; None if it is not a result file."""
    import json

    try:
        return ResultHeader(**json.loads(file.readline(_MAX_HEADER_BYTES)))
    except (ValueError, TypeError):
        return None


def read(path: str, job_id: str, attempt: int) -> bytes | None:
    """Return the pickled outcome of that attempt; None if it has left none.

    Raises:
        RemoteError: it is larger than MAX_BYTES, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            header = _read_header(file)
            if header is None or header[:2] != (job_id, attempt):
                return None
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise _remote_error(
                    f"The result of the job has {size} bytes; the most that is sent is {MAX_BYTES}.",
                    hint=f"It is in {path}. Let the function write a file and return its path.",
                )
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise _remote_error(f"The result of the job cannot be read: {exc}") from exc


def read_small(path: str, job_id: str, attempt: int, max_bytes: int) -> bytes | None:
    """Return the pickled outcome of that attempt; b"" if it has left none, None if it has more than `max_bytes`."""
    try:
        with open(path, "rb") as file:
            header = _read_header(file)
            if header is None or header[:2] != (job_id, attempt):
                return b""
            content = file.read(max_bytes + 1)
            return content if len(content) <= max_bytes else None
    except OSError:
        return b""


def read_outcome(path: str) -> Outcome:
    """Return the outcome in that file of this host, of any attempt and size. Raises OSError, RemoteError.

    Calls that earlier versions have added leave a file without the first line.
    """
    with open(path, "rb") as file:
        if _read_header(file) is None:
            file.seek(0)
        return unpickled(file.read())
