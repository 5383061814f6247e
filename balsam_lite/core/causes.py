"""Causes of failures: short texts, few of them distinct, by which failed jobs are counted and grouped.

A cause holds no path, id or name of a job, so that a million jobs that failed alike share one. The history of a job has the
details: the message of the event by which it failed.
"""

from __future__ import annotations

import errno
import os
import re
import signal

PARENT_FAILED = "parent failed"
PARENT_REMOVED = "parent removed"
PARENT_LOST = "parent lost with a damaged DB"
RESTART_LIMIT = "restart limit"
TOLD_TO_STOP = "told to stop"
LAUNCHER_DIED = "its launcher died while it ran alone"
NO_RESULT = "exit code 0, but no result"
NOT_STARTED = "could not start"
SET_BY_USER = "set by a user"
REPEATED = "a hook set the same state again"
UNKNOWN = "unknown"
#: Counts the jobs of all further causes once a DB holds `MAX_CAUSES` different ones.
OTHER = "other"
MAX_CAUSES = 500

_MAX_LENGTH = 70
#: Errors of the operating system that a message may name; the other words of the message differ from job to job.
_SYSTEM_ERRORS = tuple(
    os.strerror(code)
    for code in (
        errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.E2BIG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
        errno.EPERM, errno.ETXTBSY, errno.EIO, errno.EROFS, errno.ESTALE, errno.EEXIST,
    )
)  # fmt: skip
_VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\S*[/\d]\S*")


def of_exit(return_code: int | None) -> str:
    """Return the cause of the failure of a program with that return code; negative: the signal that ended it.

    >>> of_exit(2), of_exit(-9), of_exit(0), of_exit(None)
    ('exit code 2', 'signal 9 (SIGKILL)', 'exit code 0, but no result', 'could not start')
    """
    if return_code is None:
        return NOT_STARTED
    if return_code == 0:
        return NO_RESULT
    if return_code > 0:
        return f"exit code {return_code}"
    try:
        return f"signal {-return_code} ({signal.Signals(-return_code).name})"
    except ValueError:
        return f"signal {-return_code}"


def of_message(what: str, message: str) -> str:
    """Return the cause from what has failed and a message about it, without the words that differ from job to job.

    >>> of_message("could not start", "The job could not be started: /bin/nothing: No such file or directory")
    'could not start: No such file or directory'
    >>> of_message("preprocess", "it did not end within 300 s and was stopped")
    'preprocess: it did not end within … s and was stopped'
    """
    first = message.strip().partition("\n")[0].removeprefix("The job could not be started: ")
    for words in _SYSTEM_ERRORS:
        if words in first:
            return f"{what}: {words}"
    words = re.sub(r"…( …)+", "…", _VARIABLE.sub("…", first)).rstrip(" .:")
    return f"{what}: {words}"[:_MAX_LENGTH].rstrip()
