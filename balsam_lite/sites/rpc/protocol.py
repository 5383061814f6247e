"""How a question goes to another host and the answer comes back: as JSON, one line each, of one version of balsam_lite.

request
    {"version", "marker", "db", "method", "arguments": {…}}: a method of `interface.SiteInterface` and its arguments by name.
answer
    {"marker", "version", "answer": …} or {"marker", "version", "error": {"type", "message", "hint"}}.

The marker is drawn anew for each request and repeated in its answer. By it the answer is found among whatever login scripts
print; a request without one gets an answer without one. All is ASCII, so that no locale matters.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from ... import __version__
from ...core import errors, field_specs
from ...core.errors import BalsamError, InvalidSpec
from ..interface import SiteInterface

#: What may be asked, and nothing else.
METHODS = tuple(name for name in vars(SiteInterface) if not name.startswith("_"))


class RpcRequest(NamedTuple):
    """What is asked of a site."""

    method: str
    arguments: Mapping[str, Any]
    db: str = ""  # the directory of the DB there; "" is the one that is active
    version: str = __version__  # of balsam_lite where it is asked
    marker: str = ""


class Reply(NamedTuple):
    """What came back."""

    version: str  # of balsam_lite there
    answer: Any = None
    error: BalsamError | None = None


# --- requests ---------------------------------------------------------------------------------------------------------


def new_marker() -> str:
    """Return a random word that no program prints by chance."""
    return os.urandom(12).hex()


def write_request(request: RpcRequest) -> bytes:
    """The line for stdin over there.

    Raises:
        InvalidSpec: an argument is nothing that JSON knows.
    """
    plain = {**request._asdict(), "arguments": dict(request.arguments)}
    try:
        return f"{json.dumps(plain, default=_plain)}\n".encode("ascii")
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidSpec(f"This cannot be sent to another host: {exc}") from exc


def _plain(value: Any) -> Any:
    """What a site on this host takes as well, in a form that JSON has."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset, range)):
        return list(value)
    return field_specs.to_json(value)


def read_request(line: bytes) -> RpcRequest:
    """Undo `write_request`. Raises InvalidSpec: this is no request."""
    try:
        found = json.loads(line)
        request = RpcRequest(**{field: found[field] for field in RpcRequest._fields if field in found})
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidSpec(f"This is no request: {exc}") from exc
    words = (request.method, request.db, request.version, request.marker)
    if not all(isinstance(word, str) for word in words) or not isinstance(request.arguments, dict):
        raise InvalidSpec("This is no request: the arguments must be an object, everything else in it text")
    if "version" not in found:
        raise InvalidSpec("This is no request: it does not say of which version of balsam_lite it is")
    return request


# --- answers ----------------------------------------------------------------------------------------------------------


def write_answer(marker: str, answer: Any) -> str:
    """The line for stdout. Raises TypeError and ValueError where the answer is nothing that JSON knows."""
    return json.dumps({**_beginning(marker), "answer": answer})


def write_error(marker: str, exc: BalsamError) -> str:
    """The line for stdout when something went wrong."""
    plain = {"type": _known_class(exc), "message": str(exc.message), "hint": str(exc.hint)}
    return json.dumps({**_beginning(marker), "error": plain})


def _beginning(marker: str) -> dict[str, str]:
    return {**({"marker": marker} if marker else {}), "version": __version__}


def _known_class(exc: BalsamError) -> str:
    """The name of its class in `errors`, or of the nearest above it that is there."""
    names = (one.__name__ for one in type(exc).__mro__ if vars(errors).get(one.__name__) is one)
    return next(names, BalsamError.__name__)


def find_answer(text: str, marker: str) -> Reply | None:
    """The answer to the request with that marker, whatever else was printed; None if there is none, or not all of it."""
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
    """An error like the one that was raised there; a class that is not known here becomes a BalsamError."""
    found = getattr(errors, plain["type"], None)
    known = found if isinstance(found, type) and issubclass(found, BalsamError) else BalsamError
    return known(plain["message"], hint=plain["hint"])
