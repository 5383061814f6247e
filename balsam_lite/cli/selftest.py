"""Start the testers of `db.engine.doctor`, here and on other hosts, and report the result."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..core import field_specs, subprocess_run
from ..core.errors import InputError
from ..db.engine import doctor
from ..db.engine.connection import Database
from ..db.engine.doctor import Finding, TesterReport

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
            where it does not occur, the words of the command are appended, after ssh as one word for its shell.

    Raises:
        InputError: `peer_command` cannot be split into words.
    """
    prefix = _split(peer_command)
    places = ["", *peers] if peers else ["", ""]
    with doctor.scratch(db) as scratch:
        jobs: list[Callable[[], subprocess_run.Completed]] = []
        for number, peer in enumerate(places):
            words = ["db", "count", scratch, f"tester{number + 1}", str(len(places)), str(seconds)]
            jobs.append(_elsewhere(prefix, peer, words, seconds) if peer else _here(words))
        done = _at_once(jobs, scratch)
        if isinstance(done, _Failed):
            place = places[done.number] or "this host"
            return [Finding(_TOPIC, doctor.WRONG, f"the tester on {place} failed: {_why(done.answer)}")]
        return [_judged(scratch, done, bool(peers)), *_clocks(done)]


def _split(peer_command: str) -> list[str]:
    try:
        words = field_specs.split_command(peer_command)
    except ValueError as exc:
        raise InputError(f"--peer-command {peer_command!r} cannot be read: {exc}") from exc
    if not words:
        raise InputError("--peer-command is empty")
    return words


def _here(words: list[str]) -> Callable[[], subprocess_run.Completed]:
    return lambda: subprocess_run.run_module(_MODULE, *words)


def _elsewhere(prefix: list[str], peer: str, words: list[str], seconds: float) -> Callable[[], subprocess_run.Completed]:
    command = ["env", f"PYTHONPATH={subprocess_run.python_path()}", *subprocess_run.module_words(_MODULE, *words)]
    argv = [word.replace("{host}", peer).replace("{command}", shlex.join(command)) for word in prefix]
    if not any("{command}" in word for word in prefix):
        argv += [shlex.join(command)] if os.path.basename(prefix[0]) == "ssh" else command
    return lambda: subprocess_run.run(argv, timeout_s=doctor.GATHERING_S + seconds + _SLACK_S)


class _Failed(NamedTuple):
    """The first tester that did not do its part."""

    number: int
    answer: subprocess_run.Completed


def _at_once(jobs: Sequence[Callable[[], subprocess_run.Completed]], scratch: str) -> list[TesterReport] | _Failed:
    """Run the testers at once and return their reports in order; if one fails, the others stop waiting for it."""
    from concurrent.futures import ThreadPoolExecutor

    failed: list[_Failed] = []

    def tally(number: int) -> TesterReport | None:
        answer = jobs[number]()
        found = TesterReport.parsed(answer.stdout) if answer.ok else None
        if found is None:
            failed.append(_Failed(number, answer))
            doctor.call_off(scratch)
        return found

    with ThreadPoolExecutor(len(jobs)) as pool:
        tallies = list(pool.map(tally, range(len(jobs))))
    return failed[0] if failed else [found for found in tallies if found is not None]


def _judged(scratch: str, tallies: list[TesterReport], has_peers: bool) -> Finding:
    faults = doctor.faults(scratch, tallies)
    if faults:
        return Finding(_TOPIC, doctor.WRONG, f"the locks of this file system do not hold: {'; '.join(faults)}")
    hosts = {(tally.host, tally.pid_namespace) for tally in tallies}
    total, slowest_s = sum(tally.commits for tally in tallies), max(tally.slowest_s for tally in tallies)
    did = f"{len(tallies)} processes on {len(hosts)} host(s) made {total} transactions"
    text = f"{did}, the slowest in {slowest_s} s; none was lost"
    if has_peers and len(hosts) < 2:
        return Finding(_TOPIC, doctor.NOTE, f"{text}. But all of them ran on this host, so other hosts are not tested")
    return Finding(_TOPIC, doctor.OK, text)


def _clocks(tallies: list[TesterReport]) -> list[Finding]:
    """Compare the clocks of the peers with this host's, by the moment at which the testers met."""
    here, peers = tallies[0], [tally for tally in tallies if tally.host != tallies[0].host]
    return [doctor.compared_clock(tally.host, tally.met_s - here.met_s, tally.slowest_s + here.slowest_s) for tally in peers]


def _why(answer: subprocess_run.Completed) -> str:
    said = answer.stderr.strip().splitlines() or answer.stdout.strip().splitlines()
    return f"exit code {answer.returncode}, {said[-1][:300]}" if said else f"exit code {answer.returncode}"
