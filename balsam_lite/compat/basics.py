"""Small names of Balsam and of Django that programs for Balsam use: set-up, loggers, errors, connections."""

from __future__ import annotations

import logging
from typing import Any

from ..api.sites import SiteConfig
from ..core.errors import DatabaseError, InputError, InvalidSpec, NotFound, UnknownField

__all__ = [  # noqa: F822  (`__getattr__` finds what is not defined here)
    "DatabaseError", "FieldError", "IntegrityError", "MultipleObjectsReturned", "ObjectDoesNotExist", "OperationalError",
    "SiteConfig", "ValidationError", "close_old_connections", "config_logging", "config_root_logger", "connection",
    "connections", "setup", "site_config",
]  # fmt: skip

ObjectDoesNotExist, MultipleObjectsReturned = NotFound, InputError
FieldError, ValidationError = UnknownField, InvalidSpec
OperationalError, IntegrityError = DatabaseError, InputError


def setup(*_: Any, **__: Any) -> None:
    """Do nothing: the DB is opened when it is first used."""


def config_logging(*_: Any, **__: Any) -> None:
    """Do nothing: launchers and services write their own log files, and other programs choose for themselves."""


def config_root_logger(level: int | str | None = None) -> tuple[str, logging.Handler]:
    """Set the level of this package's loggers, which write to stderr. Return the level and the handler, as Balsam 0.7."""
    logger = logging.getLogger(__package__.rpartition(".")[0])
    handler = next(iter(logger.handlers), None)
    if handler is None:
        handler = logging.StreamHandler()
        logger.addHandler(handler)
    chosen = "WARNING" if level is None else level
    logger.setLevel(chosen)
    return str(chosen), handler


class _IdleConnection:
    """A connection that needs no care: each process opens and closes its own, and no connection crosses a fork."""

    def close(self) -> None:
        """Do nothing."""

    close_all = close_if_unusable_or_obsolete = ensure_connection = close


connection = connections = _IdleConnection()


def close_old_connections(**_: Any) -> None:
    """Do nothing."""


def __getattr__(name: str) -> Any:
    if name == "site_config":
        from .. import api

        return api.site_config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
