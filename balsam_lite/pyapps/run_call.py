"""Calls of a BalsamExecutor: what is sent, and the program that makes one call, started by a command line of `payload`.

Most calls are made by a worker, which stays (see `worker`). This program makes a single call: one of several ranks, or one that
an earlier version has added. Its argument is a file, and the outcome goes to another one (see `result_file`). The exit code is
1, and the traceback is printed, if the code raised. This opens no DB, and imports as little of Balsam as possible.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..core import pickling
from . import result_file
from .result_file import Outcome, ResultHeader

#: A pickled call, or a result, that is larger goes by a file instead of the DB.
MAX_INLINE_BYTES = 64 * 1024


def concluded(do: Callable[[], Outcome], write: Callable[[Outcome], None]) -> int:
    """Run the user's code, write and print its outcome, and return the exit code."""
    pid = os.getpid()
    outcome = do()
    if os.getpid() == pid:  # else the code has forked this process and returned in it, too: that is no result
        write(outcome)
    print_trace(outcome)
    return 0 if outcome.good else 1


def print_trace(outcome: Outcome) -> None:
    """Print the traceback of a call that has raised."""
    try:
        sys.stderr.write(outcome.trace)
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # the code has closed it; AttributeError: it was None all along
        pass


# --- what is sent -----------------------------------------------------------------------------------------------------


class CallContext(NamedTuple):
    """What the calls of an executor have in common; a pickled tuple in the DB."""

    path: tuple[str, ...]  # sys.path of the submitting process
    main: tuple[str, str] | None = None  # its __main__, if the calls need that: ("path" or "module", which)
    cwd: str = ""  # where the functions are called; "": in the jobs' working directories
    initializer: bytes = b""  # (function, args), by `core.pickling`: to be called once in each process that makes calls
    max_calls: int = 0  # maximum number of calls in one process; 0: as in the settings
    ranks: int = 1  # of an MPI program, which all make the call


class CallPayload(NamedTuple):
    """One call; a pickled tuple in the DB."""

    call: bytes | str  # (function, args, kwargs), by `core.pickling`; or the file with that, below `data/`
    #: For each future in its arguments its place among the job's parents that are calls, or the output of an application.
    parents: tuple[int | str, ...] = ()


def dump(what: CallContext | CallPayload) -> bytes:
    """Return bytes for the DB, which any supported version of Python reads."""
    return pickle.dumps(tuple(what), protocol=4)


def write_call(path: str, context: bytes, payload: bytes, results: Sequence[bytes | str | None]) -> None:
    """Write the file that a program which makes one call reads. Raises OSError."""
    from ..core import files

    files.write_atomic(path, pickle.dumps((context, payload, tuple(results)), protocol=4), 0o600)


#: Of the call that is being unpickled: see `CallPayload.parents`, and the results of those that are calls.
_parents: Sequence[int | str] = ()
_results: Sequence[bytes | str | None] = ()


def result_of_parent(index: int) -> Any:
    """Return the result of a parent: what a BalsamFuture in the arguments of a call is unpickled as.

    Raises:
        RemoteError: it has none.
    """
    from ..core.errors import RemoteError

    parent = _parents[index]
    if isinstance(parent, str):
        with open(parent, encoding="utf-8", errors="replace") as file:
            return file.read()
    result = _results[parent]
    if result is None:
        raise RemoteError("A call whose result is an argument has left none.")
    outcome = outcome_in(result)
    if not outcome.good:
        raise RemoteError(f"A call whose result is an argument has failed: {outcome.trace}")
    assert outcome.value is not None
    return pickling.loads(outcome.value)


def in_data(path: str, db_directory: str = "") -> str:
    """Return the absolute path of a file below the `data/` of a DB; by default that of this job."""
    return os.path.join(db_directory or os.environ.get("BALSAM_DB_PATH", ""), "data", path)


def outcome_in(result: bytes | str, db_directory: str = "") -> Outcome:
    """Return the outcome that is in the DB, or in a file that it names. Raises OSError, RemoteError."""
    if isinstance(result, bytes):
        return result_file.unpickled(result)
    return result_file.read_outcome(in_data(result, db_directory))


# --- making a call ----------------------------------------------------------------------------------------------------


def outcome_of(
    context: CallContext,
    payload: bytes,
    results: Sequence[bytes | str | None],
    keeps_result: bool = True,
    note_setup: Callable[[], None] | None = None,
) -> Outcome:
    """Make a call, and return its outcome.

    Args:
        results: those of the parents that are calls, by the numbers of their jobs.
        note_setup: called before the function if the initializer was called or modules were imported for it.
    """

    def load() -> Any:
        global _parents, _results
        call = CallPayload(*pickle.loads(payload))
        _parents, _results = call.parents, results
        if isinstance(call.call, bytes):
            return pickling.loads(call.call)
        with open(in_data(call.call), "rb") as file:
            return pickling.loads(file.read())

    def make() -> Any:
        value = _made(context, load, note_setup)
        return value if keeps_result else None

    return result_file.outcome_of(make)


def _made(context: CallContext, load: Callable[[], Any], note_setup: Callable[[], None] | None = None) -> Any:
    """Return what the function returns that `load` returns with its arguments."""
    before = len(sys.modules), len(_initialized)
    if context.cwd:
        _change_directory(_initialized.get(context.initializer, context.cwd))
    sys.path += [entry for entry in context.path if entry not in sys.path]
    line = _line_of_main(context.main) if context.main else 0
    try:
        _initialize(context.initializer)
        function, args, kwargs = load()
    except AttributeError as exc:
        if not line:
            raise
        from ..core.errors import RemoteError

        raise RemoteError(
            f"{exc}. The script was imported only up to line {line}, where it asks Balsam for more. "
            'Define it above, or put that line under `if __name__ == "__main__":`.'
        ) from exc
    if note_setup is not None and before != (len(sys.modules), len(_initialized)):
        note_setup()
    return function(*args, **kwargs)


def _change_directory(path: str) -> None:
    try:
        os.chdir(path)
    except OSError as exc:
        from ..core.errors import RemoteError

        raise RemoteError(
            f"The directory from which the call was submitted cannot be entered on {os.uname().nodename}: {exc}",
            hint='With BalsamExecutor(cwd="job") calls run in the directories of their jobs.',
        ) from exc


_mains: dict[tuple[str, str], int] = {}


def _line_of_main(main: tuple[str, str]) -> int:
    """Import a script, once in a process; return the line at which that was stopped, or 0."""
    if main not in _mains:
        from . import class_loader

        _mains[main] = class_loader.stopped_at(class_loader.load_main(*main))
    return _mains[main]


#: The directory in which each initializer has left this process.
_initialized: dict[bytes, str] = {}
#: How the exception begins with which all calls of an executor fail then.
INITIALIZER_FAILED = "The initializer of the executor has raised"


def _initialize(initializer: bytes) -> None:
    """Call the executor's initializer, unless this process has done so. Raises BrokenExecutor: it has raised."""
    if not initializer or initializer in _initialized:
        return
    function, args = pickling.loads(initializer)
    try:
        function(*args)
    except Exception as exc:
        from concurrent.futures import BrokenExecutor

        raise BrokenExecutor(f"{INITIALIZER_FAILED} {type(exc).__name__}: {exc}") from exc
    _initialized[initializer] = os.getcwd()


def each(function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Make several calls in one job: the chunks of `map`."""
    return [function(*one) for one in arguments]


# --- the program ------------------------------------------------------------------------------------------------------


def run_call() -> int:
    """Run the call in the file that the command line names; return the exit code."""
    job_id, attempt = os.environ.get("BALSAM_JOB_ID", ""), os.environ.get("BALSAM_ATTEMPT", "")
    if not job_id or not attempt.isdecimal():
        sys.exit("A call is run by the launcher, for one of its jobs: BALSAM_JOB_ID and BALSAM_ATTEMPT are not set.")
    path = os.path.abspath(result_file.file_name(job_id))  # now: the call may change the directory
    context, make = _read_call(path)
    rank = 0 if context.ranks == 1 else _rank(context.ranks)
    header = ResultHeader(job_id, int(attempt), True)

    def write(outcome: Outcome) -> None:
        if rank == 0 or not outcome.good:
            result_file.write(path, header._replace(good=outcome.good), outcome)

    code = concluded(make, write)
    if code and context.ranks > 1:
        from .ranks import end_all_ranks

        end_all_ranks()
    return code


def _rank(ranks: int) -> int:
    from .ranks import rank_of

    return rank_of(ranks, os.environ)


def run_old_call() -> int:
    """Run a call that an earlier version has added: its result is only the pickled outcome, in a file with another name."""
    from ..core import files
    from .payload import OLD_RESULT

    path = os.path.abspath(OLD_RESULT)
    _, make = _read_call(path)
    return concluded(make, lambda outcome: files.write_atomic(path, pickle.dumps(tuple(outcome), protocol=4)))


def _read_call(result_path: str) -> tuple[CallContext, Callable[[], Outcome]]:
    """Return the call's context and the function that makes it; remove the result of an earlier attempt.

    That of one of several ranks stays: another rank of this attempt may have left it.
    """
    if len(sys.argv) < 2:
        sys.exit("The call cannot be read: its row in the DB is gone.")
    try:
        with open(sys.argv[1], "rb") as file:
            given = pickle.load(file)
    except OSError as exc:
        _remove(result_path)
        sys.exit(f"The call cannot be read; it is removed when its result was fetched: {exc}")
    if isinstance(given[0], bytes):
        content, payload, results = given
        context = CallContext(*pickle.loads(content))
        if context.ranks == 1:
            _remove(result_path)
        keeps_result = context.ranks == 1 or _rank(context.ranks) == 0
        return context, lambda: outcome_of(context, payload, results, keeps_result)
    _remove(result_path)
    return CallContext(()), lambda: outcome_of_file(CallFile(*given))


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


# --- calls that earlier versions have added ---------------------------------------------------------------------------


class CallFile(NamedTuple):
    """A call in a file, as earlier versions have written it; a pickled tuple."""

    path: list[str]  # sys.path of the submitting process
    main: tuple[str, str] | None  # its __main__, if the call needs that: ("path" or "module", which)
    call: bytes  # (function, args, kwargs), by `core.pickling`
    parents: dict[Any, str] = {}  # place in args, or name in kwargs -> the file whose result is to be put there


def outcome_of_file(given: CallFile) -> Outcome:
    """Make a call that an earlier version has added, and return its outcome."""

    def load() -> Any:
        function, args, kwargs = pickling.loads(given.call)
        return function, _with_parents(args, kwargs, given.parents), kwargs

    return result_file.outcome_of(lambda: _made(CallContext(tuple(given.path), given.main), load))


def _with_parents(args: tuple[Any, ...], kwargs: dict[str, Any], parents: Mapping[Any, str]) -> list[Any]:
    """Put the results of its parents into the arguments of a call; return those by position."""
    positional = list(args)
    for place, path in parents.items():
        outcome = result_file.read_outcome(path)
        assert outcome.value is not None
        target: Any = positional if isinstance(place, int) else kwargs
        target[place] = pickling.loads(outcome.value)
    return positional
