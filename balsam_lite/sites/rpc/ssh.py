"""The user's own `ssh` (OpenSSH), without prompts: where a site is, the command line, one connection for many commands."""

from __future__ import annotations

import functools
import os
import re
import shlex
import stat
import tempfile
from typing import NamedTuple

from ...core import subprocess_run
from ...core.errors import InputError, InvalidSpec
from ...core.process_table import JOB_VARIABLES

#: Seconds for which an unused connection is kept for the next command.
KEPT_S = 60

_SCHEME = "ssh://"
# Nothing that a shell or ssh's own %-expansion could take for something else: both may stand in a ProxyCommand.
_HOST = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.+@-]*)@)?"
    r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_][A-Za-z0-9_.-]*)"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
_FORM = "A site on another host is ssh://[USER@]HOST[:PORT]/PATH, or …/~/PATH for one below your home there."


class Host(NamedTuple):
    """Where ssh is to go."""

    destination: str  # user@name as ssh takes it
    port: str  # "" is the one of ssh's own configuration

    @property
    def by_hand(self) -> str:
        """The command with which a person would go there."""
        return shlex.join(["ssh", *self.options, self.destination])

    @property
    def options(self) -> list[str]:
        """What `destination` does not say."""
        return ["-p", self.port] if self.port else []


# --- addresses --------------------------------------------------------------------------------------------------------


def parse_address(text: str) -> tuple[str, str]:
    """The (host, path) of ssh://[user@]host[:port]/path, as a `registry.SiteEntry` has them.

    The path is taken as it is written, without %-codes; /~/path and /~user/path are below a home there.

    Raises:
        InvalidSpec: it cannot be such an address.
    """
    if not text.startswith(_SCHEME):
        raise InvalidSpec(f"{text!r} does not begin with {_SCHEME}", hint=_FORM)
    host, slash, path = text[len(_SCHEME) :].partition("/")
    path = slash + path.strip("/")
    if path in ("", "/"):
        raise InvalidSpec(f"{text!r} does not say in which directory the DB is.", hint=_FORM)
    if not path.isprintable():
        raise InvalidSpec(f"The path in {text!r} has characters that cannot be seen.", hint=_FORM)
    parse_host(host)
    return host, path


def parse_host(text: str) -> Host:
    """What ssh is told of `user@host:port`.

    Raises:
        InvalidSpec: it is nothing of the kind, or ssh could take it for something else.
    """
    found = _HOST.fullmatch(text)
    if not found or not 0 < int(found["port"] or 22) < 65536:
        raise InvalidSpec(f"{text!r} cannot be a host for ssh.", hint=_FORM)
    user = f"{found['user']}@" if found["user"] else ""
    return Host(user + found["name"].strip("[]"), found["port"] or "")


def path_there(path: str) -> str:
    """The path of an address as the balsam there takes it, which knows what ~ is."""
    return path[1:] if path.startswith("/~") else path


# --- command lines ----------------------------------------------------------------------------------------------------


def command(host: Host, words: str, connect_s: int) -> list[str]:
    """The command that runs `words`, a line for the shell there, and gives up connecting after `connect_s` seconds.

    ssh(1) and ssh_config(5). What is set here must be so for a program; all else is the user's configuration.
    """
    settings = ["BatchMode=yes", f"ConnectTimeout={connect_s}", "ClearAllForwardings=yes", *_sharing(host)]
    options = [word for setting in settings for word in ("-o", setting)]
    return ["ssh", "-T", "-x", *options, *host.options, "--", host.destination, words]


def environ() -> dict[str, str]:
    """The environment for ssh: the connection that is kept must not be taken for a part of the job that asks."""
    return {name: value for name, value in os.environ.items() if name not in JOB_VARIABLES}


def shell_line(balsam: str) -> str:
    """`exec BALSAM answer` for whatever shell the user has there: sh, csh or fish. Only a ~/ in front is left to it.

    Nothing else goes through that shell: the path and all data are in the request.

    Raises:
        InputError: that cannot be the name of a command.
    """
    if not balsam.isprintable() or not balsam or balsam.startswith("-"):
        raise InputError(f"{balsam!r} cannot be the command balsam on another host.", hint="Give its path there.")
    home, rest = ("~/", balsam[2:]) if balsam.startswith("~/") else ("", balsam)
    return f"exec {home}{shlex.quote(rest)} answer"


def drop(host: Host) -> None:
    """Use the connection to this host for no further command: it may be dead. What it is doing goes on."""
    sharing = _sharing(host)
    if sharing:
        path = [word for word in sharing if word.startswith("ControlPath=")]
        options = ["-o", path[0], *host.options]
        subprocess_run.run(["ssh", "-O", "stop", *options, "--", host.destination], timeout_s=0.5)


# --- one connection for many commands ---------------------------------------------------------------------------------


def _sharing(host: Host) -> list[str]:
    """Settings for a connection that the next commands use as well; [] where the user has settled that, or it cannot be.

    Who must type a one-time password keeps a connection of his own open in this way, and that one must be used then.
    """
    directory = _control_directory()
    if not directory or _has_own_control_path(host):
        return []
    return [
        "ControlMaster=auto",
        f"ControlPath={directory}/%C",
        f"ControlPersist={KEPT_S}",
        "ServerAliveInterval=5",  # a connection that died while it was kept is noticed after 15 s
    ]


@functools.lru_cache(maxsize=1000)
def _has_own_control_path(host: Host) -> bool:
    """Whether the user's configuration has a ControlPath for the host. `ssh -G` (OpenSSH 6.8) prints what holds for it."""
    done = subprocess_run.run(["ssh", "-G", *host.options, "--", host.destination], timeout_s=0.5)
    lines = (line.split(None, 1) for line in done.stdout.splitlines())
    return any(line[0].lower() == "controlpath" and line[1:] not in ([], ["none"]) for line in lines if line)


#: A socket's path may have 103 bytes (sockaddr_un of BSD); %C is 40, and ssh first binds it with 17 more behind it.
_MAX_PATH_BYTES = 103 - len("/") - 40 - 17


def _control_directory() -> str:
    """A directory for sockets that only this user can enter; "" if there is none.

    Not below the home, which may lie on a file system that has no sockets: ssh would give up.
    """
    for above in dict.fromkeys((tempfile.gettempdir(), "/tmp")):
        directory = os.path.join(above, f"balsam-ssh-{os.getuid()}")
        if len(os.fsencode(directory)) <= _MAX_PATH_BYTES and "%" not in directory and _is_private(directory):
            return directory
    return ""


def _is_private(directory: str) -> bool:
    """Make the directory if need be; return whether it is this user's alone, as another user may have made something there."""
    try:
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            pass
        found = os.lstat(directory)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
