"""Diagnose why ssh returned no answer from a site, what to do about it, and whether a change may have been made there anyway.

The ssh(1) messages are those of OpenSSH 7.4 to 9.9 (sshconnect.c, sshconnect2.c, ssh.c), which are not translated. The exit
code of ssh is that of the remote command, or 255 for any failure of ssh itself.
"""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

from ...core.errors import SiteUnreachable
from ...core.subprocess_run import Completed
from ...db.engine.registry import SiteEntry
from .ssh import Host

_ON_THE_WAY = 255
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127  # of every shell but csh, which exits with 1

_UNKNOWN_END = "It is unknown whether it was done there: look before you do it again."


class _Reason(NamedTuple):
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


def _reason(entry: SiteEntry, host: Host, done: Completed) -> _Reason:
    if done.returncode is None:
        return _cut(host, done)
    if done.returncode == _ON_THE_WAY:
        return _on_the_way(host, done)
    return _no_balsam(entry, host, done) or _Reason(
        f"{entry.balsam} there did not answer; it ended with {done.returncode}{_words(done)}",
        f"`{host.by_hand}` by hand, and `{entry.balsam} --version` there, may tell more.",
    )


def _cut(host: Host, done: Completed) -> _Reason:
    what = _last(done.stderr)
    if not done.was_killed:
        return _Reason(what, "Sites on other hosts need the command ssh (OpenSSH) on PATH.", True)
    what = what.partition(", so it was killed")[0]
    if "printed more" in what:
        return _Reason(what, "Ask for fewer rows at once.")
    return _Reason(what, f"The host may be busy, or not be there: `{host.by_hand}` by hand tells more.")


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


def _on_the_way(host: Host, done: Completed) -> _Reason:
    for line in reversed(done.stderr.splitlines()):
        for pattern, advice in _EARLY:
            if re.search(pattern, line, re.IGNORECASE):
                return _Reason(line.strip().rstrip("."), advice.format(ssh=host.by_hand), True)
    what = _last(done.stderr) or "the connection ended"
    return _Reason(what, _IS_IT_THERE.format(ssh=host.by_hand))


# --- the command there ------------------------------------------------------------------------------------------------


def _no_balsam(entry: SiteEntry, host: Host, done: Completed) -> _Reason | None:
    """Return why `balsam answer` did not start; None if it may have started."""
    add = f"balsam site add {shlex.quote(entry.name)} {shlex.quote(entry.address)} --balsam /path/to/bin/balsam"
    if done.returncode == _NOT_FOUND or re.search(r"command not found", done.stderr, re.IGNORECASE):
        what = f"there is no command {entry.balsam} on {host.destination} ({_last(done.stderr) or 'not found'})"
        return _Reason(what, f"Where it is there must be said: {add}", True)
    if done.returncode == _NOT_EXECUTABLE:
        return _Reason(f"{entry.balsam} cannot be run on {host.destination} ({_last(done.stderr)})", add, True)
    if done.returncode == 2 and re.search(r"no such command|invalid choice|no such option", done.stderr, re.IGNORECASE):
        what = f"{entry.balsam} on {host.destination} is too old, or no balsam_lite ({_last(done.stderr)})"
        return _Reason(what, f"Install the version of this host there, or say where it is: {add}", True)
    return None


def _words(done: Completed) -> str:
    """Return the output of the command as the end of a sentence."""
    said = _last(done.stderr) or _last(done.stdout)
    return f" and said: {said}" if said else " and said nothing"


def _last(text: str, longest: int = 500) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".")[-longest:] if lines else ""
