"""Run the user's own `ssh` (OpenSSH) without prompts: site addresses, command lines, and connections shared by commands."""

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
# No character that a shell or ssh's own %-expansion could interpret: both may be part of a ProxyCommand.
_HOST = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.+@-]*)@)?"
    r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_][A-Za-z0-9_.-]*)"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
_FORM = "A site on another host is ssh://[USER@]HOST[:PORT]/PATH, or …/~/PATH for one below your home there."


class Host(NamedTuple):
    """A host to which ssh connects."""

    destination: str  # user@name as ssh accepts it
    port: str  # "" means the one of ssh's own configuration

    @property
    def by_hand(self) -> str:
        """The command with which a person would log in there."""
        return shlex.join(["ssh", *self.options, self.destination])

    @property
    def options(self) -> list[str]:
        """The ssh options that `destination` does not include."""
        return ["-p", self.port] if self.port else []


# --- addresses --------------------------------------------------------------------------------------------------------


def parse_address(text: str) -> tuple[str, str]:
    """Parse ssh://[user@]host[:port]/path into (host, path), as in a `registry.SiteEntry`.

    The path is taken literally, without decoding %-codes; /~/path and /~user/path are relative to a home directory there.

    Raises:
        InvalidSpec: the text is not a valid address.
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
    """Parse `user@host:port` into the arguments for ssh.

    Raises:
        InvalidSpec: it is not a valid host, or ssh could interpret it differently.
    """
    found = _HOST.fullmatch(text)
    if not found or not 0 < int(found["port"] or 22) < 65536:
        raise InvalidSpec(f"{text!r} cannot be a host for ssh.", hint=_FORM)
    user = f"{found['user']}@" if found["user"] else ""
    return Host(user + found["name"].strip("[]"), found["port"] or "")


def path_there(path: str) -> str:
    """Return the path of an address in the form for the remote balsam, which expands ~."""
    return path[1:] if path.startswith("/~") else path


# --- command lines ----------------------------------------------------------------------------------------------------


def command(host: Host, words: str, connect_s: int) -> list[str]:
    """Return the command that runs `words`, a line for the remote shell, and stops connecting after `connect_s` seconds.

    See ssh(1) and ssh_config(5). Options set here are required for unattended use; the user's configuration sets all others.
    """
    settings = ["BatchMode=yes", f"ConnectTimeout={connect_s}", "ClearAllForwardings=yes", *_sharing(host)]
    options = [word for setting in settings for word in ("-o", setting)]
    return ["ssh", "-T", "-x", *options, *host.options, "--", host.destination, words]


def environ() -> dict[str, str]:
    """Return the environment for ssh, in which the shared connection does not count as part of the requesting job."""
    return {name: value for name, value in os.environ.items() if name not in JOB_VARIABLES}


def shell_line(balsam: str) -> str:
    """Return `exec BALSAM answer` for any shell of the user there: sh, csh or fish. The shell expands only a leading ~/.

    Nothing else passes through that shell: the path and all data are in the request.

    Raises:
        InputError: this cannot be the name of a command.
    """
    if not balsam.isprintable() or not balsam or balsam.startswith("-"):
        raise InputError(f"{balsam!r} cannot be the command balsam on another host.", hint="Give its path there.")
    home, rest = ("~/", balsam[2:]) if balsam.startswith("~/") else ("", balsam)
    return f"exec {home}{shlex.quote(rest)} answer"


def drop(host: Host) -> None:
    """Stop using the connection to this host for new commands, because it may be dead. Running commands continue."""
    sharing = _sharing(host)
    if sharing:
        path = [word for word in sharing if word.startswith("ControlPath=")]
        options = ["-o", path[0], *host.options]
        subprocess_run.run(["ssh", "-O", "stop", *options, "--", host.destination], timeout_s=0.5)


# --- one connection for many commands ---------------------------------------------------------------------------------


def _sharing(host: Host) -> list[str]:
    """Return the ssh options for sharing a connection with later commands; [] if the user configures this, or it is impossible.

    Users who must type a one-time password configure a shared connection in this way, and that one must be used then.
    """
    directory = _control_directory()
    if not directory or _has_own_control_path(host):
        return []
    return [
        "ControlMaster=auto",
        f"ControlPath={directory}/%C",
        f"ControlPersist={KEPT_S}",
        "ServerAliveInterval=5",  # detect within 15 s that an idle connection has died
    ]


@functools.lru_cache(maxsize=1000)
def _has_own_control_path(host: Host) -> bool:
    """Return whether the user's configuration sets a ControlPath for the host. Asks `ssh -G` (OpenSSH 6.8)."""
    done = subprocess_run.run(["ssh", "-G", *host.options, "--", host.destination], timeout_s=0.5)
    lines = (line.split(None, 1) for line in done.stdout.splitlines())
    return any(line[0].lower() == "controlpath" and line[1:] not in ([], ["none"]) for line in lines if line)


#: A socket's path may have 103 bytes (sockaddr_un of BSD); %C is 40, and ssh first binds it with a suffix of 17 more.
_MAX_PATH_BYTES = 103 - len("/") - 40 - 17


def _control_directory() -> str:
    """Return a directory for sockets that only this user can enter; "" if there is none.

    Avoids the home directory, whose file system may not support sockets, in which case ssh would fail.
    """
    for above in dict.fromkeys((tempfile.gettempdir(), "/tmp")):
        directory = os.path.join(above, f"balsam-ssh-{os.getuid()}")
        if len(os.fsencode(directory)) <= _MAX_PATH_BYTES and "%" not in directory and _is_private(directory):
            return directory
    return ""


def _is_private(directory: str) -> bool:
    """Create the directory if needed; return whether only this user can access it, as another user may have created it."""
    try:
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            pass
        found = os.lstat(directory)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
