"""Encode requests to another host and their answers as JSON, one line each. Both ends run the same version of balsam_lite.

request
    {"version", "marker", "db", "method", "arguments": {…}}: a method of `interface.SiteInterface` and its arguments by name.
answer
    {"marker", "version", "answer": …} or {"marker", "version", "error": {"type", "message", "hint"}}.

Each request has a new random marker, which its answer repeats, so that the answer is found among the output of login scripts.
A request without a marker gets an answer without one. All text is ASCII, so the locale does not matter.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from ... import __version__
from ...core import errors, field_specs
from ...core.errors import BalsamError, InvalidSpec, SiteUnreachable
from ...db.engine import directories, registry
from ..interface import SiteInterface

#: The methods that may be called, and no others: those that return data.
METHODS = tuple(name for name in vars(SiteInterface) if not name.startswith("_") and name != "at_one_moment")


class RpcRequest(NamedTuple):
    """A method call on a site."""

    method: str
    arguments: Mapping[str, Any]
    db: str = ""  # the directory of the DB there; "" is the active one
    version: str = __version__  # of balsam_lite on the requesting host
    marker: str = ""


class Reply(NamedTuple):
    """The answer to a request."""

    version: str  # of balsam_lite there
    answer: Any = None
    error: BalsamError | None = None


# --- requests ---------------------------------------------------------------------------------------------------------


def new_marker() -> str:
    """Return a random word that no program prints by chance."""
    return os.urandom(12).hex()


def write_request(request: RpcRequest) -> bytes:
    """Return the line to send to the remote stdin.

    Raises:
        InvalidSpec: an argument has no JSON form.
    """
    plain = {**request._asdict(), "arguments": dict(request.arguments)}
    try:
        return f"{json.dumps(plain, default=_plain)}\n".encode("ascii")
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidSpec(f"This cannot be sent to another host: {exc}") from exc


def _plain(value: Any) -> Any:
    """Convert values that a local site also accepts to JSON types."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset, range)):
        return list(value)
    return field_specs.to_json(value)


def read_request(line: bytes) -> RpcRequest:
    """Undo `write_request`. Raise InvalidSpec if the line is not a request."""
    try:
        found = json.loads(line)
        request = RpcRequest(**{field: found[field] for field in RpcRequest._fields if field in found})
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidSpec(f"This is no request: {exc}") from exc
    words = (request.method, request.db, request.version, request.marker)
    if not all(isinstance(word, str) for word in words) or not isinstance(request.arguments, dict):
        raise InvalidSpec("This is no request: the arguments must be an object, everything else in it text")
    if "version" not in found:
        raise InvalidSpec("This is no request: it does not have the version of balsam_lite")
    return request


# --- answers ----------------------------------------------------------------------------------------------------------


def write_answer(marker: str, answer: Any) -> str:
    """Return the line to print to stdout. Raise TypeError or ValueError if the answer has no JSON form."""
    return json.dumps({**_beginning(marker), "answer": answer})


def write_error(marker: str, exc: BalsamError) -> str:
    """Return the line to print to stdout after an error."""
    plain = {"type": _known_class(exc), "message": str(exc.message), "hint": str(exc.hint)}
    return json.dumps({**_beginning(marker), "error": plain})


def _beginning(marker: str) -> dict[str, str]:
    return {**({"marker": marker} if marker else {}), "version": __version__}


def _known_class(exc: BalsamError) -> str:
    """Return the name of the error's class in `errors`, or of its nearest base class there."""
    names = (one.__name__ for one in type(exc).__mro__ if vars(errors).get(one.__name__) is one)
    return next(names, BalsamError.__name__)


def find_answer(text: str, marker: str) -> Reply | None:
    """Return the answer with that marker, ignoring all other output; None if it is missing or incomplete."""
    begins = text.rfind(f'{{"marker": {json.dumps(marker)}')
    if begins < 0:
        return None
    try:
        found, _ = json.JSONDecoder().raw_decode(text, begins)
        if "error" in found:
            return Reply(found["version"], error=_error(found["error"]))
        return Reply(found["version"], found["answer"])
    except (TypeError, ValueError, LookupError, RecursionError):
        return None


def _error(plain: Mapping[str, str]) -> BalsamError:
    """Return an error like the one raised on the remote host; a class unknown here becomes a BalsamError."""
    found = getattr(errors, plain["type"], None)
    known = found if isinstance(found, type) and issubclass(found, BalsamError) else BalsamError
    return known(plain["message"], hint=plain["hint"])


# --- answering requests -----------------------------------------------------------------------------------------------


def respond(line: bytes, db: str | None = None) -> str:
    """Execute a request and return the answer, one line of JSON; never raises.

    Args:
        db: the DB's directory if the request names none. None is the active one.
    """
    marker = ""
    try:
        request = read_request(line)
        marker = request.marker
        return write_answer(marker, _carried_out(request, db))
    except BalsamError as exc:
        return write_error(marker, exc)
    except Exception as exc:  # noqa: BLE001  # the caller must get an answer; a traceback would be lost
        return write_error(marker, _unexpected(exc))


def _carried_out(request: RpcRequest, db: str | None) -> Any:
    if request.version != __version__:  # before anything is done: a method's meaning may have changed
        raise SiteUnreachable(f"This is balsam_lite {__version__}; it was asked by balsam_lite {request.version}.")
    if request.method not in METHODS:
        raise InvalidSpec(f"There is no method {request.method!r}.", hint=f"There are: {', '.join(METHODS)}")
    from ..local import LocalSite

    database = directories.open_database(directories.absolute(request.db) if request.db else directories.find(db))
    try:
        site: SiteInterface = LocalSite(registry.at(database.directory), database)
        return getattr(site, request.method)(**request.arguments)
    finally:
        database.close()


def _unexpected(exc: Exception) -> BalsamError:
    import traceback

    place = traceback.extract_tb(exc.__traceback__)[-1]
    return BalsamError(
        f"unexpected {type(exc).__name__}: {exc}  ({place.filename}, line {place.lineno}, in {place.name})",
        hint="This is a fault of balsam_lite on the site's host.",
    )
