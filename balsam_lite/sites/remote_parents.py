"""Dependencies between sites: add them, and exchange the states of parents.

    python -m balsam_lite.sites.remote_parents DIRECTORY SITE

exchanges the states of the DB in DIRECTORY with one other site, the one with that number in its table `remote_site`. Launchers
and the service start it (`launcher.parents_exchange`), since it waits for ssh and copies files; each wait is limited. It asks
the other site about the parents of jobs here, and tells it about the parents here of jobs there: one way of ssh is enough.

Files that children ask for (`input_files`) are copied by rsync before the end of a parent counts: once for all children, by a
process on a host that reaches the other site, which compute nodes rarely do. rsync resumes a copy that was cut. Where both DBs
are on one host, the children link to the files of their parents.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from ..core import files, subprocess_run
from ..core.clock import SystemClock
from ..core.errors import BalsamError, DependencyCycle, InvalidSpec, NotABalsamDB, SiteUnreachable, UnknownJob
from ..core.settings import Settings
from ..db.engine import directories, registry
from ..db.engine.connection import Database
from ..db.engine.registry import SiteEntry
from ..db.store import remote_parents
from ..db.store.remote_parents import REMOVED, MissingFiles, OtherSite
from ..launcher.staging.files import MAGIC, PART, globs
from . import fanout
from .interface import Row, SiteInterface
from .local import LocalSite, with_path

#: Seconds for each answer of the other site.
_ANSWER_TIMEOUT_S = 60.0
#: Seconds for connecting, and without any progress of a copy, after which it is given up until the next exchange.
_CONNECT_S, _STALLED_S = 10, 120
#: Seconds of one run of rsync.
_COPY_TIMEOUT_S = 12 * 3600.0
#: Jobs in one message.
_PAGE = 5000


# --- adding dependencies ----------------------------------------------------------------------------------------------


def numbers_for(child: SiteInterface, parent: SiteInterface, jobs: Sequence[int], dry_run: bool = False) -> list[int]:
    """Return the numbers by which `parent_ids` of new jobs at one site name these jobs of another site.

    Both sites know of the dependency then. Neither has a transaction open meanwhile. With `dry_run` nothing is written, and
    numbers below 0 name no job.

    Raises:
        UnknownJob: the other site has no such job. InvalidSpec: a DB has no identity. BalsamError: a site does not answer.
    """
    there, here = parent.parent_records(jobs), child.parent_records([])
    gone = [job["id"] for job in there["jobs"] if job["state"] == REMOVED]
    if gone:
        raise UnknownJob(f"There is no job #{gone[0]} at the site {parent.entry.name} (any more).")
    if there["db_id"] == here["db_id"]:
        return list(jobs)
    for site, about in ((parent, there), (child, here)):
        if not about["db_id"]:
            raise InvalidSpec(f"The DB of the site {site.entry.name} is too old for dependencies between sites.")
    if dry_run:
        return [-job for job in jobs]
    from_child, from_parent = _as_seen(parent.entry, there, child.entry), _as_seen(child.entry, here, parent.entry)
    if from_parent["path"]:
        with suppress(*([BalsamError] if from_child["path"] else [])):  # a DB that others only read: the other site asks
            parent.watch_jobs(from_parent, jobs)
    return child.add_remote_parents(from_child, there["jobs"])


def _as_seen(site: SiteEntry, about: Row, viewer: SiteEntry) -> Row:
    """Return the address of a site as the host of another one sees it; without a path where it is not known."""
    if site.host == viewer.host:
        host, path = "", about["path"]
    else:
        host, path = site.host, site.path if site.host else ""
    return {"db_id": about["db_id"], "name": site.name, "host": host, "path": path, "balsam": site.balsam}


def add_dependency(child: SiteInterface, job: int, parent: SiteInterface, parent_job: int) -> None:
    """Let a job wait for one of another site.

    Raises:
        DependencyCycle: that one waits for the first, through jobs of the two sites; and as `SiteInterface.add_dependency`.
    """
    (number,) = numbers_for(child, parent, [parent_job])
    _refuse_cycle(child, job, parent, parent_job)
    child.add_dependency(number, job)


def _refuse_cycle(child: SiteInterface, job: int, parent: SiteInterface, parent_job: int) -> None:
    """Raise DependencyCycle if the parent waits for the child. Walks up from site to site until nothing new is found."""
    sites = (parent, child)
    identities = [site.parent_records([])["db_id"] for site in sites]
    if identities[0] == identities[1]:
        return  # one DB, which checks it itself
    seen: tuple[set[int], set[int]] = (set(), set())
    at, jobs = 0, {parent_job}
    while jobs:
        found = sites[at].ancestors(sorted(jobs), identities[1 - at])
        seen[at].update(found["here"])
        if job in seen[1]:
            raise DependencyCycle(
                "Detected circular dependency; not creating link",
                hint=f"Job #{parent_job} of {parent.entry.name} waits for job #{job} of {child.entry.name} in the end.",
            )
        at = 1 - at
        jobs = set(found["there"]) - seen[at]


# --- exchanging states ------------------------------------------------------------------------------------------------


def exchange(directory: str, number: int) -> None:
    """Exchange states with one other site, unless another process does. Records why that failed, and raises nothing then."""
    db = directories.open_database(directory, Settings.load(directory))
    try:
        with files.locked(os.path.join(directory, directories.LOG, f".exchange-{number}.lock")):
            _exchange(db, number)
    except TimeoutError:
        return
    except files.LocksUnsupported:
        _exchange(db, number)
    finally:
        db.close()


def _exchange(db: Database, number: int) -> None:
    now_us = SystemClock.now_us()
    with db.write() as cx:
        site = remote_parents.begin(cx, number, now_us)
        if site is None:
            return
        wanted, news = remote_parents.followed(cx, number), remote_parents.unreported(cx, number, now_us)
    try:
        there = _reach(db, site)
        for start in range(0, len(wanted), _PAGE):
            _ask(db, site, there, wanted[start : start + _PAGE])
        for start in range(0, len(news), _PAGE):
            _tell(db, number, there, [with_path(db, job) for job in news[start : start + _PAGE]])
    except BalsamError as exc:
        with db.write() as cx:
            remote_parents.failed(cx, number, fanout.reason(exc))


def _reach(db: Database, site: OtherSite) -> SiteInterface:
    """Return the interface of that site, whose name or place may have changed: the identity of its DB counts.

    Raises:
        SiteUnreachable.
    """
    first = SiteEntry(0, site.name, site.path, site.host, site.balsam)
    known = registry.known(gone=True)
    others = [entry for entry in known if entry.name == site.name]
    others += [entry for entry in known if not entry.is_remote and directories.identity(entry.path) == site.db_id]
    trouble: BalsamError | None = None
    for entry in dict.fromkeys([first, *others]):
        try:
            there = fanout.open_site(entry, _ANSWER_TIMEOUT_S)
            if there.parent_records([])["db_id"] != site.db_id:
                raise SiteUnreachable(f"{entry.address} is another DB now")
        except (SiteUnreachable, NotABalsamDB) as exc:
            trouble = trouble or exc
            continue
        with db.write() as cx:
            remote_parents.answered(cx, site.id, SystemClock.now_us(), (entry.host, entry.path))
        return there
    assert trouble is not None
    raise trouble


def _ask(db: Database, site: OtherSite, there: SiteInterface, wanted: Sequence[int]) -> None:
    """Ask the other site about parents of jobs here, and copy the files that these need."""
    found = _with_directories(there.parent_records(wanted)["jobs"], there.entry)
    here = LocalSite(registry.at(db.directory), db)
    missing = here.note_parents(site.db_id, found)["missing"]
    copied = _copied(found, missing, there.entry, is_upload=False)
    if copied:
        here.note_parents(site.db_id, copied)


def _tell(db: Database, number: int, there: SiteInterface, news: Sequence[Row]) -> None:
    """Tell the other site about parents here of jobs there, and copy the files that these need."""
    own = directories.identity(db.directory)
    news = _with_directories(news, there.entry)
    answer = there.note_parents(own, news)
    copied = _copied(news, answer["missing"], there.entry, is_upload=True)
    if copied:
        answer = there.note_parents(own, copied)
    failed = {job["id"] for job in copied if "trouble" in job}
    with db.write() as cx:
        told = [job for job in news if job["id"] not in failed]
        remote_parents.reported(cx, number, told, answer["needed"], SystemClock.now_us())
        remote_parents.answered(cx, number, SystemClock.now_us())


def _with_directories(jobs: Iterable[Row], entry: SiteEntry) -> list[Row]:
    """Add to each job the directory of its files, if both sites are on this host."""
    return [job if entry.is_remote else {**job, "directory": job["workdir"]} for job in jobs]


# --- copying files ----------------------------------------------------------------------------------------------------


def _copied(jobs: Iterable[Row], missing: Iterable[Sequence[object]], entry: SiteEntry, is_upload: bool) -> list[Row]:
    """Copy the missing files. Return the jobs whose files they are, with `copied`, or with `trouble` where that failed."""
    by_number = {job["id"]: job for job in jobs}
    found = []
    for one in (MissingFiles(*values) for values in missing):  # type: ignore[arg-type]
        trouble = _copy(one, entry, is_upload)
        result = {"trouble": trouble} if trouble else {"copied": list(one.patterns)}
        found.append({**by_number[one.number], **result})
    return found


def _copy(missing: MissingFiles, entry: SiteEntry, is_upload: bool) -> str:
    """Run rsync. Return why it failed, or ""; files whose copy was cut are continued by the next call."""
    from .rpc import ssh

    host = ssh.parse_host(entry.host)
    there = f"[{host.destination}]" if ":" in host.destination else host.destination
    source, target = os.path.join(missing.source, ""), os.path.join(missing.target, "")
    ends = [source, f"{there}:{target}"] if is_upload else [f"{there}:{source}", target]
    done = subprocess_run.run(
        [
            # -L: the files that links lead to. -s: the path bypasses the remote shell.
            "rsync", "-a", "-L", "-s", "--prune-empty-dirs", "--delete", f"--partial-dir={PART}rsync",
            f"--timeout={_STALLED_S}", "-e", shlex.join(ssh.program(host, _CONNECT_S)), *_rules(missing.patterns), "--", *ends,
        ],
        timeout_s=_COPY_TIMEOUT_S, environ=ssh.environ(), leaves_some=True,
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if line.strip() and not _DANGLING.search(line)]
    if done.ok or (done.returncode == _SOME_FAILED and (not lines or _NO_DIRECTORY.search(done.stderr))):
        return ""
    return lines[0].strip() if lines else f"rsync ended with exit code {done.returncode}"


#: Exit code of rsync if some files could not be copied, and its messages about links that lead nowhere, which no child can use,
#: and about a directory that is not there, as a job may have made none. Tried with rsync 3.5.
_SOME_FAILED = 23
_DANGLING = re.compile(r"symlink has no referent|skipping file deletion|some files/attrs were not transferred")
_NO_DIRECTORY = re.compile(r"change_dir .* failed: No such file or directory")


def _rules(patterns: Iterable[str]) -> Iterator[str]:
    """Yield the options by which rsync copies what `input_files` names, or more: the links are made by its exact meaning."""
    yield f"--exclude={PART}*"
    for glob in (glob for words in patterns for glob in globs(words)):
        ways = {glob.parts, tuple(part for part in glob.parts if part != "**"), tuple(map(_literal, glob.parts))}
        for parts in sorted(ways):
            for end in range(1, len(parts)):
                yield f"--include=/{'/'.join(parts[:end])}/"
            yield from (f"--include=/{'/'.join(parts)}{below}" for below in ("", "/**"))
    yield "--exclude=*"


def _literal(part: str) -> str:
    """Return a component that names a path exactly: `res[T=300]` may be the name of a file."""
    return re.sub(r"[*?[\\]", r"\\\g<0>", part) if MAGIC.search(part) and part not in ("*", "**") else part


def main(argv: Sequence[str]) -> int:
    """Exchange states once. Print errors that are no answers of the other site."""
    try:
        exchange(argv[0], int(argv[1]))
    except BalsamError as exc:
        sys.stderr.write(f"{exc.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
