"""Start the testers of `db.selftest`, here and on other hosts, and say what came out."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .. import programs, spec
from ..db import checkup, selftest
from ..db.checkup import Finding
from ..db.connection import Database
from ..db.selftest import Tally
from ..errors import InputError

#: ssh(1): its words go through the shell of the other host, and it must not ask for a password.
PEER_COMMAND = "ssh -o BatchMode=yes -o ConnectTimeout=15 {host} {command}"
_MODULE = "balsam_lite.cli"
_TOPIC = "locks"
#: Seconds for the command that starts a tester elsewhere, and for ending.
_SLACK_S = 15.0


def run(db: Database, peers: Sequence[str], peer_command: str, seconds: float) -> list[Finding]:
    """Let two testers here, or one here and one on each peer, count for this number of seconds. Compares their clocks, too.

    Args:
        peer_command: starts a command on a peer. {host} is the peer; {command} is the command as one word for a shell, and
            where it does not occur, the words of the command follow, behind ssh as that shell must get them.

    Raises:
        InputError: `peer_command` cannot be split into words.
    """
    prefix = _split(peer_command)
    places = ["", *peers] if peers else ["", ""]
    with selftest.scratch(db) as scratch:
        jobs: list[Callable[[], programs.Completed]] = []
        for number, peer in enumerate(places):
            words = ["db", "count", scratch, f"tester{number + 1}", str(len(places)), str(seconds)]
            jobs.append(_elsewhere(prefix, peer, words, seconds) if peer else _here(words))
        done = _at_once(jobs, scratch)
        if isinstance(done, _Failed):
            place = places[done.number] or "this host"
            return [Finding(_TOPIC, checkup.WRONG, f"the tester on {place} failed: {_why(done.answer)}")]
        return [_judged(scratch, done, bool(peers)), *_clocks(done)]


def _split(peer_command: str) -> list[str]:
    try:
        words = spec.split_command(peer_command)
    except ValueError as exc:
        raise InputError(f"--peer-command {peer_command!r} cannot be read: {exc}") from exc
    if not words:
        raise InputError("--peer-command is empty")
    return words


def _here(words: list[str]) -> Callable[[], programs.Completed]:
    return lambda: programs.run_module(_MODULE, *words)


def _elsewhere(prefix: list[str], peer: str, words: list[str], seconds: float) -> Callable[[], programs.Completed]:
    command = ["env", f"PYTHONPATH={programs.python_path()}", *programs.module_words(_MODULE, *words)]
    argv = [word.replace("{host}", peer).replace("{command}", shlex.join(command)) for word in prefix]
    if not any("{command}" in word for word in prefix):
        argv += [shlex.join(command)] if os.path.basename(prefix[0]) == "ssh" else command
    return lambda: programs.run(argv, timeout_s=selftest.GATHERING_S + seconds + _SLACK_S)


class _Failed(NamedTuple):
    """The first tester that did not do its part."""

    number: int
    answer: programs.Completed


def _at_once(jobs: Sequence[Callable[[], programs.Completed]], scratch: str) -> list[Tally] | _Failed:
    """What the testers say, in order. Where one fails, the others need not wait for it."""
    from concurrent.futures import ThreadPoolExecutor

    failed: list[_Failed] = []

    def tally(number: int) -> Tally | None:
        answer = jobs[number]()
        found = Tally.parsed(answer.stdout) if answer.ok else None
        if found is None:
            failed.append(_Failed(number, answer))
            selftest.call_off(scratch)
        return found

    with ThreadPoolExecutor(len(jobs)) as pool:
        tallies = list(pool.map(tally, range(len(jobs))))
    return failed[0] if failed else [found for found in tallies if found is not None]


def _judged(scratch: str, tallies: list[Tally], has_peers: bool) -> Finding:
    faults = selftest.faults(scratch, tallies)
    if faults:
        return Finding(_TOPIC, checkup.WRONG, f"the locks of this file system do not hold: {'; '.join(faults)}")
    hosts = {(tally.host, tally.pid_namespace) for tally in tallies}
    total, slowest_s = sum(tally.commits for tally in tallies), max(tally.slowest_s for tally in tallies)
    did = f"{len(tallies)} processes on {len(hosts)} host(s) made {total} transactions"
    text = f"{did}, the slowest in {slowest_s} s; none was lost"
    if has_peers and len(hosts) < 2:
        return Finding(_TOPIC, checkup.NOTE, f"{text}. But all of them are this very host, so it says nothing about others")
    return Finding(_TOPIC, checkup.OK, text)


def _clocks(tallies: list[Tally]) -> list[Finding]:
    """Compare the clocks of the peers with this host's, by the moment at which the testers met."""
    here, peers = tallies[0], [tally for tally in tallies if tally.host != tallies[0].host]
    return [checkup.compared_clock(tally.host, tally.met_s - here.met_s, tally.slowest_s + here.slowest_s) for tally in peers]


def _why(answer: programs.Completed) -> str:
    said = answer.stderr.strip().splitlines() or answer.stdout.strip().splitlines()
    return f"exit code {answer.returncode}, {said[-1][:300]}" if said else f"exit code {answer.returncode}"
