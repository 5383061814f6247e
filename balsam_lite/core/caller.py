"""Who calls: the user, the host, and the command or script, as the record of changes names them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import NamedTuple

#: The command of this process, such as `balsam rerun`, which the command line sets; "": a script.
command = ""


class Caller(NamedTuple):
    user: str
    host: str
    command: str

    @property
    def is_job(self) -> bool:
        """Whether this is a job's program or hook, which a launcher runs."""
        return self.command.startswith(_JOB)


_JOB = "a job's "


def current(environ: Mapping[str, str] = os.environ) -> Caller:
    """Return who calls. A script goes by its file's name; its arguments may hold secrets."""
    import pwd
    import socket

    from .process_table import HOOK_VARIABLE, RUN_VARIABLE

    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container without this user
        user = str(os.getuid())
    if environ.get(RUN_VARIABLE):
        name = f"{_JOB}{environ.get(HOOK_VARIABLE) or 'program'}"
    else:
        name = command or os.path.basename(sys.argv[0] if sys.argv else "") or "python"
    return Caller(user, socket.gethostname(), name)
