"""The program of a job of a BalsamExecutor, started as `python_argv` says with CALL: it runs one Python call.

CALL is a file (see `Call`). Its outcome is written to `.balsam-result.pkl` in the working directory (see `Outcome`), in one
piece. The exit code is 1, and the traceback is printed, if the call raised. Nothing of Balsam is imported here
but the errors, so that starting costs little more than Python itself.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ..core.files import write_atomic
from .python_argv import RESULT

#: What the submitting script is called in the job, so that its `if __name__ == "__main__":` part does not run. Python's own
#: `multiprocessing` calls it so in processes that it spawns, which therefore find its functions too.
MAIN = "__mp_main__"


class Call(NamedTuple):
    """What is to be called; as a plain tuple in the file."""

    path: list[str]  # sys.path of the submitting process
    main: tuple[str, str] | None  # its __main__, if the call needs that: ("path" or "module", which)
    call: bytes  # (function, args, kwargs), pickled
    parents: dict[Any, str] = {}  # place in args, or name in kwargs -> the file with the result to be put there


class Outcome(NamedTuple):
    """What became of a call; likewise."""

    good: bool
    value: bytes | None  # the result or the exception, pickled; None for an exception that cannot be
    trace: str = ""


def write(path: str, value: tuple[Any, ...]) -> None:
    """Write it so that readers see the whole file or none."""
    write_atomic(path, pickle.dumps(tuple(value), protocol=4))


def read_outcome(path: str) -> Outcome:
    """Raises OSError, and whatever pickle does."""
    with open(path, "rb") as file:
        return Outcome(*pickle.load(file))


def value_of(what: str, outcome: Outcome) -> Any:
    """The result, or the exception that was raised; of `what` is said in messages.

    Raises:
        RemoteError: it cannot be unpickled here.
    """
    from ..core.errors import RemoteError

    if outcome.value is None:
        return RemoteError(outcome.trace)
    try:
        return pickle.loads(outcome.value)
    except Exception as exc:  # unpickling runs the code of any class
        kind = "result" if outcome.good else "exception"
        raise RemoteError(f"The {what}'s {kind} cannot be read here: {exc!r}\n{outcome.trace}".rstrip()) from exc


def each(function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Several calls in one job: the chunks of `map`."""
    return [function(*one) for one in arguments]


# --- in the job -------------------------------------------------------------------------------------------------------


def main() -> int:
    """Run the call that the command line names; the exit code."""
    path = os.path.abspath(RESULT)  # now: the call may change the directory
    try:
        os.unlink(path)  # of an earlier attempt
    except OSError:
        pass
    try:
        with open(sys.argv[1], "rb") as file:
            call = Call(*pickle.load(file))
    except OSError as exc:
        sys.exit(f"The call cannot be read; it is removed when its result was fetched: {exc}")
    pid = os.getpid()
    outcome = run(call)
    if os.getpid() == pid:  # else it was forked by the call, and what comes back from it is nobody's result
        write(path, outcome)
    tell(outcome.trace)
    return 0 if outcome.good else 1


def tell(text: str) -> None:
    """Print a traceback, if the call has left a stderr."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # AttributeError: it was None all along
        pass


def run(call: Call) -> Outcome:
    """Do it."""

    def do() -> Any:
        sys.path += [entry for entry in call.path if entry not in sys.path]
        stopped = call.main and _load_main(*call.main)
        try:
            function, args, kwargs = pickle.loads(call.call)
        except AttributeError as exc:
            if not stopped:
                raise
            raise _behind(f"{exc}. The script was imported only up to {stopped}, where it asks Balsam for more.") from exc
        return function(*_with_parents(args, kwargs, call.parents), **kwargs)

    return outcome_of(do)


def outcome_of(do: Callable[[], Any], largest_bytes: int | None = None) -> Outcome:
    """What becomes of a call. A result that pickle cannot write, or that is larger then, makes it a failure."""
    try:
        value = do()
    except BaseException as exc:  # noqa: BLE001  # SystemExit included, as in Python's own executors
        return failure(exc)
    what = f"The result of the call is of type {type(value).__qualname__}"
    try:
        pickled = pickle.dumps(value, protocol=4)
    except Exception as exc:  # noqa: BLE001  # pickling runs the code of any class
        return _no_result(f"{what} and cannot be serialised: {exc}", exc)
    if largest_bytes is not None and len(pickled) > largest_bytes:
        return _no_result(
            f"{what} and takes {len(pickled)} bytes; {largest_bytes} is the most. Write it to a file, and return its name."
        )
    return Outcome(True, pickled)


def _no_result(text: str, cause: Exception | None = None) -> Outcome:
    from ..core.errors import RemoteError

    error = RemoteError(text)
    error.__cause__ = cause
    return failure(error)


def _load_main(kind: str, which: str) -> str:
    """Import the submitting script under another name. Source: `multiprocessing.spawn`, which does the same.

    A script that has no `if __name__ == "__main__":` would make its jobs once more, and wait for them. So it is imported only
    up to there: what is called is mostly defined above. Returns where that is, "" if it has been imported whole.
    """
    import runpy
    import traceback
    import types

    from ..core import import_guard

    module = types.ModuleType(MAIN)
    run_it: Callable[..., Mapping[str, Any]] = runpy.run_path if kind == "path" else runpy.run_module
    stopped = ""
    try:
        with import_guard.importing():
            found = run_it(which, run_name=MAIN)
    except import_guard.StopImport as stop:
        frames = [(frame.f_globals, line) for frame, line in traceback.walk_tb(stop.__traceback__)]
        found, line = next((names, line) for names, line in frames if names.get("__name__") == MAIN)
        stopped = f"line {line}"
    module.__dict__.update(found)
    sys.modules["__main__"] = sys.modules[MAIN] = module
    return stopped


def _behind(text: str) -> Exception:
    from ..core.errors import RemoteError

    return RemoteError(f'{text} Define it above, or put that line under `if __name__ == "__main__":`.')


def _with_parents(args: tuple[Any, ...], kwargs: dict[str, Any], parents: Mapping[Any, str]) -> list[Any]:
    positional = list(args)
    for place, path in parents.items():
        outcome = read_outcome(path)
        assert outcome.value is not None
        target: Any = positional if isinstance(place, int) else kwargs
        target[place] = pickle.loads(outcome.value)
    return positional


def failure(exc: BaseException) -> Outcome:
    """The outcome of a call that raised this."""
    import traceback

    trace = "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
    try:
        value = pickle.dumps(exc, protocol=4)
        pickle.loads(value)  # there are exceptions that can only be written
    except Exception:  # noqa: BLE001
        return Outcome(False, None, trace)
    return Outcome(False, value, trace)


if __name__ == "__main__":  # so older DBs have it stored
    sys.exit(main())
