"""The server side of `remote.RemoteSite`: answer requests that balsam on another host sends through ssh."""

from __future__ import annotations

from typing import Any

from ... import __version__
from ...core.errors import BalsamError, InvalidSpec, SiteUnreachable
from ...db.engine import directories, registry
from ..interface import SiteInterface
from . import protocol


def respond(line: bytes, db: str | None = None) -> str:
    """Execute a request and return the answer, one line of JSON; never raises.

    Args:
        db: the DB's directory if the request names none. None is the active one.
    """
    marker = ""
    try:
        request = protocol.read_request(line)
        marker = request.marker
        return protocol.write_answer(marker, _carried_out(request, db))
    except BalsamError as exc:
        return protocol.write_error(marker, exc)
    except Exception as exc:  # noqa: BLE001  # the caller must get an answer; a traceback would be lost
        return protocol.write_error(marker, _unexpected(exc))


def _carried_out(request: protocol.RpcRequest, db: str | None) -> Any:
    if request.version != __version__:  # before anything is done: a method's meaning may have changed
        raise SiteUnreachable(f"This is balsam_lite {__version__}; it was asked by balsam_lite {request.version}.")
    if request.method not in protocol.METHODS:
        raise InvalidSpec(f"There is no method {request.method!r}.", hint=f"There are: {', '.join(protocol.METHODS)}")
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
