"""The launcher's log: a separate file for each, rotated when it grows; and what the user sees of it."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
import time

from ..core import daemon
from ..core.errors import BalsamError
from ..core.settings import Settings
from ..db.engine import directories
from ..db.engine.filesystem import failure

_FORMAT = "%(asctime)s|%(process)d|%(levelname)8s|%(name)s:%(lineno)s] %(message)s"
_DATE = "%d-%b-%Y %H:%M:%S"


def set_up(db_directory: str, settings: Settings, kind: str = "launcher", echo: bool | None = None) -> str:
    """Open a log file for this process and return its path.

    With `echo` the same lines appear on stderr; by default they do where that is no terminal.

    Raises:
        BalsamError: the file cannot be written.
    """
    stamp = time.strftime("%Y-%m-%d_%H%M%S")
    path = os.path.join(db_directory, directories.LOG, f"{kind}_{stamp}_{os.getpid()}.log")
    formatter = logging.Formatter(_FORMAT, _DATE)
    root = logging.getLogger("balsam_lite")
    level = logging.getLevelName(settings.LOG_HANDLER_LEVEL.upper())
    root.setLevel(level if isinstance(level, int) else logging.INFO)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        file = logging.handlers.RotatingFileHandler(
            path, maxBytes=settings.LOG_FILE_SIZE_LIMIT, backupCount=max(settings.LOG_BACKUP_COUNT, 1), encoding="utf-8"
        )
    except OSError as exc:
        raise BalsamError(f"The log {path} cannot be written: {failure(exc, path)}") from exc
    handlers: list[logging.Handler] = [file]
    if not sys.stderr.isatty() if echo is None else echo:
        handlers.append(_ToStderr())
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    logging.raiseExceptions = False  # a full disk under the log must not stop the launcher
    return path


class _ToStderr(logging.Handler):
    """A handler for a stderr that may be lost: a terminal that is closed, a pipe whose reader ends."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            daemon.write_stderr(self.format(record) + "\n")
        except Exception:  # noqa: BLE001  # as logging's own handlers do
            self.handleError(record)
