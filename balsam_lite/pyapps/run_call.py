"""The program that makes a call of a BalsamExecutor, started by a command line of `payload`: CALL PAYLOAD.

PAYLOAD is a file with a CallPayload, the outcome goes to another one (see `result_file`). The exit code is 1, and the traceback
is printed, if the code raised. This opens no DB, and imports as little of Balsam as possible.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ..core import pickling
from . import result_file
from .result_file import Outcome, ResultHeader


def concluded(do: Callable[[], Outcome], write: Callable[[Outcome], None]) -> int:
    """Run the user's code, write and print its outcome, and return the exit code."""
    pid = os.getpid()
    outcome = do()
    if os.getpid() == pid:  # else the code has forked this process and returned in it, too: that is no result
        write(outcome)
    try:
        sys.stderr.write(outcome.trace)
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # the code has closed it; AttributeError: it was None all along
        pass
    return 0 if outcome.good else 1


# --- calls of an executor ---------------------------------------------------------------------------------------------


class CallPayload(NamedTuple):
    """A call of a BalsamExecutor, which writes it when it adds the job; a pickled tuple in the file."""

    path: list[str]  # sys.path of the submitting process
    main: tuple[str, str] | None  # its __main__, if the call needs that: ("path" or "module", which)
    call: bytes  # (function, args, kwargs), by `core.pickling`
    parents: list[str] | dict[Any, str] = []  # the files with their results; a dict: of an earlier version, by place or name
    cwd: str = ""  # where to run it; "": in the job's directory
    initializer: bytes = b""  # (function, args), by `core.pickling`: to be called once in each process that makes calls
    max_calls: int = 0  # maximum number of calls in one process; 0: as in the settings


def write_payload(path: str, payload: CallPayload) -> None:
    """Write a payload, which only this user can read, so that readers see the whole file or none. Raises OSError."""
    from ..core import files

    files.write_atomic(path, pickle.dumps(tuple(payload), protocol=4), 0o600)


def run_call() -> int:
    """Run the call whose payload the command line names; return the exit code."""
    job_id, attempt = os.environ.get("BALSAM_JOB_ID", ""), os.environ.get("BALSAM_ATTEMPT", "")
    if not job_id or not attempt.isdecimal():
        sys.exit("A call is run by the launcher, for one of its jobs: BALSAM_JOB_ID and BALSAM_ATTEMPT are not set.")
    path = os.path.abspath(result_file.file_name(job_id))  # now: the call may change the directory
    given = _read_call(path)
    header = ResultHeader(job_id, int(attempt), True)
    return concluded(
        lambda: outcome_of_call(given),
        lambda outcome: result_file.write(path, header._replace(good=outcome.good), outcome),
    )


def run_old_call() -> int:
    """Run a call that an earlier version has added: its result is only the pickled outcome, in a file with another name."""
    from ..core import files
    from .payload import OLD_RESULT

    path = os.path.abspath(OLD_RESULT)
    given = _read_call(path)
    return concluded(
        lambda: outcome_of_call(given), lambda outcome: files.write_atomic(path, pickle.dumps(tuple(outcome), protocol=4))
    )


def _read_call(result_path: str) -> CallPayload:
    try:
        os.unlink(result_path)  # of an earlier attempt
    except OSError:
        pass
    try:
        with open(sys.argv[1], "rb") as file:
            return CallPayload(*pickle.load(file))
    except OSError as exc:
        sys.exit(f"The call cannot be read; it is removed when its result was fetched: {exc}")


def outcome_of_call(given: CallPayload) -> Outcome:
    """Make the call, and return its outcome."""

    def do() -> Any:
        if given.cwd:
            _change_directory(given.cwd)
        sys.path += [entry for entry in given.path if entry not in sys.path]
        line = 0
        if given.main:
            from . import class_loader

            line = class_loader.stopped_at(class_loader.load_main(*given.main))
        try:
            _initialize(given.initializer)
            function, args, kwargs = _read(given)
        except AttributeError as exc:
            if not line:
                raise
            from ..core.errors import RemoteError

            raise RemoteError(
                f"{exc}. The script was imported only up to line {line}, where it asks Balsam for more. "
                'Define it above, or put that line under `if __name__ == "__main__":`.'
            ) from exc
        return function(*args, **kwargs)

    return result_file.outcome_of(do)


def _change_directory(path: str) -> None:
    try:
        os.chdir(path)
    except OSError as exc:
        from ..core.errors import RemoteError

        raise RemoteError(
            f"The directory from which the call was submitted cannot be entered on {os.uname().nodename}: {exc}",
            hint='With BalsamExecutor(cwd="job") calls run in the directories of their jobs.',
        ) from exc


_initialized: set[bytes] = set()


def _initialize(initializer: bytes) -> None:
    """Call the executor's initializer, unless this process has done so. Raises BrokenExecutor: it has raised."""
    if not initializer or initializer in _initialized:
        return
    function, args = pickling.loads(initializer)
    try:
        function(*args)
    except Exception as exc:
        from concurrent.futures import BrokenExecutor

        raise BrokenExecutor(f"The initializer of the executor has raised {type(exc).__name__}: {exc}") from exc
    _initialized.add(initializer)


#: The results of the parents of the call that is being unpickled.
_parents: list[Any] = []


def result_of_parent(index: int) -> Any:
    """Return the result of a parent: what a BalsamFuture in the arguments of a call is unpickled as."""
    return _parents[index]


def _read(given: CallPayload) -> tuple[Callable[..., Any], list[Any], dict[str, Any]]:
    """Return the function and its arguments, with the results of its parents in place of their futures."""
    are_placed = isinstance(given.parents, dict)
    paths = given.parents.values() if isinstance(given.parents, dict) else given.parents
    _parents[:] = [pickling.loads(result_file.read_outcome(path).value or b"") for path in paths]
    try:
        function, args, kwargs = pickling.loads(given.call)
        positional = list(args)
        for place, value in zip(given.parents if are_placed else (), _parents):
            target: Any = positional if isinstance(place, int) else kwargs
            target[place] = value
        return function, positional, kwargs
    finally:
        _parents.clear()


def each(function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Make several calls in one job: the chunks of `map`."""
    return [function(*one) for one in arguments]
