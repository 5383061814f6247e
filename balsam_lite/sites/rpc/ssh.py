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
from ...core.errors import InputError, InvalidSpec, SiteUnreachable
from ...core.process_table import JOB_VARIABLES
from ...core.subprocess_run import Completed
from ...db.engine.registry import SiteEntry

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
        raise InvalidSpec(f"{text!r} does not name the directory of the DB.", hint=_FORM)
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
    return [*program(host, connect_s), "--", host.destination, words]


def program(host: Host, connect_s: int) -> list[str]:
    """Return ssh with its options for that host, to which `--`, the destination and a command are appended."""
    settings = ["BatchMode=yes", f"ConnectTimeout={connect_s}", "ClearAllForwardings=yes", *_sharing(host)]
    options = [word for setting in settings for word in ("-o", setting)]
    return ["ssh", "-T", "-x", *options, *host.options]


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


# --- why there is no answer -------------------------------------------------------------------------------------------
# The ssh(1) messages are those of OpenSSH 7.4 to 9.9 (sshconnect.c, sshconnect2.c, ssh.c), which are not translated. The exit
# code of ssh is that of the remote command, or 255 for any failure of ssh itself.


_ON_THE_WAY = 255
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127  # of every shell but csh, which exits with 1

_UNKNOWN_END = "It is unknown whether it was done there: look before you do it again."


class _SshFault(NamedTuple):
    what: str
    advice: str
    is_early: bool = False  # nothing can have been executed there


def diagnose(entry: SiteEntry, host: Host, done: Completed, changing: bool) -> SiteUnreachable:
    """Return the error to raise when `done` contains no answer.

    Args:
        changing: whether the request changes the site.
    """
    reason = _reason(entry, host, done)
    doubt = f" {_UNKNOWN_END}" if changing and not reason.is_early else ""
    return SiteUnreachable(f"{entry.address}: {reason.what}.{doubt}", hint=reason.advice)


def _reason(entry: SiteEntry, host: Host, done: Completed) -> _SshFault:
    if done.returncode is None:
        return _cut(host, done)
    if done.returncode == _ON_THE_WAY:
        return _on_the_way(host, done)
    return _no_balsam(entry, host, done) or _SshFault(
        f"{entry.balsam} there did not answer; it ended with {done.returncode}{_words(done)}",
        f"`{host.by_hand}` by hand, and `{entry.balsam} --version` there, may tell more.",
    )


def _cut(host: Host, done: Completed) -> _SshFault:
    what = _last(done.stderr)
    if not done.was_killed:
        return _SshFault(what, "Sites on other hosts need the command ssh (OpenSSH) on PATH.", True)
    what = what.partition(", so it was killed")[0]
    if "printed more" in what:
        return _SshFault(what, "Ask for fewer rows at once.")
    return _SshFault(what, f"The host may be busy, or not be there: `{host.by_hand}` by hand tells more.")


# --- ssh --------------------------------------------------------------------------------------------------------------

_LOG_IN = (
    "`{ssh} true` must work without a question: put a key into your ssh agent (ssh-add), or name it in ~/.ssh/config. "
    "Where only passwords will do, keep a connection open (ControlMaster and ControlPath in ~/.ssh/config) and log in by hand."
)
_IS_IT_THERE = "Is the host up, and can it be reached from here? `{ssh}` by hand tells more."
_IS_IT_RIGHT = "`{ssh}` by hand shows the key of the host, and asks whether it is the right one."

#: Messages of ssh before anything is run there, and what to do about each.
_EARLY = (
    (r"permission denied \(|too many authentication failures|no more authentication methods", _LOG_IN),
    (r"host key verification failed|host identification has changed|host key is known for", _IS_IT_RIGHT),
    (r"could not resolve hostname", "Is the name right, or in ~/.ssh/config? `balsam site ls` shows the sites."),
    (r"connect to host|connect to address|banner exchange|kex_exchange_identification|no matching ", _IS_IT_THERE),
    (r"bad configuration option|bad owner or permissions|terminating, \d+ bad", "Fix ~/.ssh/config."),
)


def _on_the_way(host: Host, done: Completed) -> _SshFault:
    for line in reversed(done.stderr.splitlines()):
        for pattern, advice in _EARLY:
            if re.search(pattern, line, re.IGNORECASE):
                return _SshFault(line.strip().rstrip("."), advice.format(ssh=host.by_hand), True)
    what = _last(done.stderr) or "the connection ended"
    return _SshFault(what, _IS_IT_THERE.format(ssh=host.by_hand))


# --- the command there ------------------------------------------------------------------------------------------------


def _no_balsam(entry: SiteEntry, host: Host, done: Completed) -> _SshFault | None:
    """Return why `balsam answer` did not start; None if it may have started."""
    add = f"balsam site add {shlex.quote(entry.name)} {shlex.quote(entry.address)} --balsam /path/to/bin/balsam"
    if done.returncode == _NOT_FOUND or re.search(r"command not found", done.stderr, re.IGNORECASE):
        what = f"there is no command {entry.balsam} on {host.destination} ({_last(done.stderr) or 'not found'})"
        return _SshFault(what, f"Give its path there: {add}", True)
    if done.returncode == _NOT_EXECUTABLE:
        return _SshFault(f"{entry.balsam} cannot be run on {host.destination} ({_last(done.stderr)})", add, True)
    if done.returncode == 2 and re.search(r"no such command|invalid choice|no such option", done.stderr, re.IGNORECASE):
        what = f"{entry.balsam} on {host.destination} is too old, or no balsam_lite ({_last(done.stderr)})"
        return _SshFault(what, f"Install the version of this host there, or say where it is: {add}", True)
    return None


def _words(done: Completed) -> str:
    """Return the output of the command as the end of a sentence."""
    said = _last(done.stderr) or _last(done.stdout)
    return f" and printed: {said}" if said else " and printed nothing"


def _last(text: str, longest: int = 500) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".")[-longest:] if lines else ""
