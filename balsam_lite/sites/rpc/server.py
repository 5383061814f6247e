"""The other end of `remote.RemoteSite`: what the balsam of another host asks through ssh is asked of the DB here."""

from __future__ import annotations

from typing import Any

from ... import __version__
from ...core.errors import BalsamError, InvalidSpec, SiteUnreachable
from ...db.engine import directories, registry
from ..interface import SiteInterface
from . import protocol


def respond(line: bytes, db: str | None = None) -> str:
    """Carry out a request and return the answer, one line of JSON; raises nothing.

    Args:
        db: the DB's directory where the request names none. None is the active one.
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
    if request.version != __version__:  # before anything is done: a method may have got another meaning
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
