"""Bring a DB to what a campaign file describes: add the applications, jobs and dependencies that it has not yet.

The unique_key of a job, CAMPAIGN/GROUP/VALUES, tells whether it is there. Nothing is ever removed, and a job that exists is not
changed. All that is new is one large write.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from ..core import field_specs
from ..core.errors import BalsamError, DuplicateKey, InvalidSpec, StateError, did_you_mean
from ..core.settings import Settings
from ..db.engine import directories
from ..db.engine.connection import Database
from ..db.query import keys, queries, select
from ..db.store import graph, insert, unique_keys
from ..db.store.apps import AppChange
from ..db.store.large_writes import Progress
from ..sites import jobs as site_jobs
from . import campaign_file, job_rows, sweep
from .campaign_file import SAME, CampaignFile, JobGroup
from .yaml_document import PlainText, scalar

#: Dependencies of one campaign; they are kept in memory.
MAX_DEPENDENCIES = 5_000_000
#: Rows that are looked up together.
_CHUNK = 1000
#: Attempts while other processes add or start jobs of the same campaign.
_ATTEMPTS = 3
#: Fields that the job itself may change, which tell nothing about the file.
_CHANGED_BY_JOBS = ("data", "tags")

#: Kinds of applications whose parameters become words of a command line: what is spelled otherwise than a number is text.
_SPELLED_KINDS = ("command", "template")

SAME_APP, NEW_APP, CHANGED_APP = "same", "new", "changed"


class AppStatus(NamedTuple):
    """An application of the file, compared with that of the DB."""

    name: str
    status: str  # SAME_APP, NEW_APP or CHANGED_APP
    changes: dict[str, tuple[Any, Any]]  # field -> value in the DB, value in the file


class GroupStatus(NamedTuple):
    """A group of jobs of the file, compared with the jobs of the DB."""

    name: str
    jobs: int
    new: int
    existing: int
    only_in_db: int  # jobs of the group that the file no longer has
    differing: dict[str, int]  # field -> existing jobs whose value differs from the file
    late: int  # jobs that have started, and so cannot wait for new parents


class Applied(NamedTuple):
    """What applying a campaign file has added, or would add."""

    campaign: str
    applications: list[AppStatus]
    groups: list[GroupStatus]
    gone: dict[str, int]  # groups that only the DB has -> their jobs
    dependencies: int  # that are new

    @property
    def new_jobs(self) -> int:
        """Return the number of jobs that are new."""
        return sum(group.new for group in self.groups)


def apply_campaign(
    path: str,
    db: Database | None = None,
    *,
    dry_run: bool = False,
    update_apps: bool = False,
) -> Applied:
    """Add to a DB what the campaign file at `path` has and the DB has not. Opens write transactions, unless `dry_run`.

    Other processes see all of it or nothing.

    Args:
        db: the DB; by default the active one.
        update_apps: also change applications that differ from the file; without it they are an error.

    Raises:
        InvalidSpec: the file has errors, of which all are listed; or an application differs.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as exc:
        raise InvalidSpec(f"The campaign file {path} cannot be read: {exc.strerror}") from None
    campaign = campaign_file.read(content, path, os.path.dirname(os.path.abspath(path)))
    return bring(db or directories.open_database(directories.find(None)), campaign, dry_run=dry_run, update_apps=update_apps)


def bring(
    db: Database, campaign: CampaignFile, *, dry_run: bool = False, update_apps: bool = False, progress: Progress | None = None
) -> Applied:
    """Do what `apply_campaign` does for a file that was read. `progress` is called as by `insert.add_jobs`."""
    for attempt in range(_ATTEMPTS):
        comparison = _Comparison(db, campaign)
        changed = [f"{app.name} ({', '.join(app.changes)})" for app in comparison.apps if app.status == CHANGED_APP]
        if changed and not (update_apps or dry_run):
            listed = ", ".join(changed)
            raise InvalidSpec(
                f"{campaign.problems.name}: applications of the DB differ from the file: {listed}. Nothing was changed.",
                hint="`--dry-run` shows the difference. `--update-apps` changes it, also for its jobs that have not run yet; "
                "to keep both, give the one in the file another name.",
            )
        try:
            if dry_run:
                insert.check_jobs(db, comparison.new_jobs())
            else:
                insert.add_jobs(db, comparison.new_jobs(), progress, comparison.late_parents, apps=comparison.app_changes())
            return comparison.result()
        except (DuplicateKey, StateError):
            if not comparison.is_outdated() or attempt == _ATTEMPTS - 1:
                raise
        except BalsamError as exc:
            raise comparison.with_place(exc) from exc
    raise AssertionError("unreachable")


class _GroupCounts:
    """Counts of a group."""

    def __init__(self) -> None:
        self.new = self.existing = self.late = 0
        self.differing: Counter[str] = Counter()


#: A job that others may wait for: its number, or -1 - its position among the new jobs.
_Ref = int
#: Groups of jobs that have the same values of some variables.
_Index = dict[tuple[str, ...], "array[int]"]


class _Comparison:
    """Compares a campaign file with a DB; its new jobs can be iterated once."""

    def __init__(self, db: Database, campaign: CampaignFile) -> None:
        self._db, self._campaign = db, campaign
        problems = campaign.problems
        with db.read() as cx:
            known = {row["name"]: row for row in queries.apps(cx)}
            self._in_db = keys.count_below(cx, campaign.name) if campaign.name else {}
            rows = {row["name"]: row for row in select.apps(cx)}
        self.apps = [_compared(name, fields, known.get(name)) for name, (fields, _) in campaign.applications.items()]
        rows.update((name, _as_row(name, fields)) for name, (fields, _) in campaign.applications.items())
        for group in campaign.groups:
            name = group.fields.get("application")
            if name and name not in rows:
                place = group.places["application"]
                problems.add(place, f"there is no application {name!r} in the file or the DB.{did_you_mean(name, rows)}")
        problems.raise_if_any()
        self._make = site_jobs.JobMaker(site_jobs.Apps(rows.values()), Settings.load(db.directory).GPUS_PER_NODE)
        self._apps = rows
        self.late_parents: list[tuple[insert.Ref, int]] = []  # new dependencies of jobs that exist
        self._tallies = {group.name: _GroupCounts() for group in campaign.groups}
        self._indexes: dict[tuple[str, tuple[str, ...]], _Index] = {
            (parent, self._common(group, parent, mode)): {}
            for group in campaign.groups
            for parent, (mode, _) in group.parents.items()
        }
        self._by_name = {group.name: group for group in campaign.groups}
        self._keys_so_far = unique_keys.KeysSoFar()
        self._dependencies = 0
        self._yielded = 0
        self._now: tuple[JobGroup, campaign_file.Row | None] | None = None

    def _common(self, group: JobGroup, parent: str, mode: str) -> tuple[str, ...]:
        """Return the variables in which a job of `group` and its parents are the same."""
        theirs = next(one for one in self._campaign.groups if one.name == parent).variables
        return tuple(name for name in group.variables if name in theirs) if mode == SAME else ()

    def app_changes(self) -> list[AppChange]:
        """Return the applications to add or change."""
        applications = self._campaign.applications
        return [
            AppChange({**applications[app.name][0], "name": app.name}, app.status == NEW_APP)
            for app in self.apps
            if app.status != SAME_APP
        ]

    # --- jobs ---

    def new_jobs(self) -> Iterator[dict[str, Any]]:
        """Yield the fields of the jobs that the DB has not, as `insert.add_jobs` takes them; count all."""
        for group in self._campaign.groups:
            self._now = (group, None)
            app = self._apps.get(group.fields["application"])
            rows = group.jobs(app["parameters"] if app else ())
            while some := list(islice(rows, _CHUNK)):
                yield from self._new_of(group, some)
                self._now = (group, None)
        self._now = None

    def _new_of(self, group: JobGroup, some: Sequence[tuple[campaign_file.Row, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
        tally = self._tallies[group.name]
        start = f"{self._campaign.name}/{group.name}"
        names = [f"{start}/{row.key}" if row.key else start for row, _ in some]
        present, parents = self._present(names) if self._in_db.get(group.name) else ({}, {})
        count = tally.new + tally.existing
        seen = self._keys_so_far.add(list(enumerate(names, count))) if group.may_repeat else {}
        for place, (key, (row, fields)) in enumerate(zip(names, some), count):
            self._now = (group, row)
            if place in seen:
                text = f"the job is the same as job {-seen[place]} of the group"
                raise InvalidSpec(f"{text}; leave it out, or in a table give one another name or unique_key.")
            self._set_values(group, row, fields)
            job = self._make(fields)
            wanted = self._parents_of(group, row)
            found = present.get(key)
            if found is None:
                tally.new += 1
                self._dependencies += len(wanted)
                self._enter(group, row, -1 - self._yielded)
                self._yielded += 1
                origin = f"campaign {self._campaign.name}"
                yield {**job, "unique_key": key, "origin": origin, "parents": [_ref(one) for one in wanted]}
            else:
                tally.existing += 1
                tally.differing.update(_differences(job, found))
                self._enter(group, row, found["id"])
                missing = [_ref(one) for one in wanted if one not in parents.get(found["id"], ())]
                if missing and graph.is_unstarted(found):
                    self.late_parents += [(one, found["id"]) for one in missing]
                    self._dependencies += len(missing)
                elif missing:
                    tally.late += 1
            self._check_size(group)

    def _set_values(self, group: JobGroup, row: campaign_file.Row, fields: dict[str, Any]) -> None:
        """Give the swept values to parameters of their names, or to data; and texts without quotes the values they mean.

        This is what `job_rows.SweepRows` does.
        """
        app = self._apps.get(fields.get("application"))
        if app is None:
            return
        parameters = dict(fields.get("parameters", {}))
        takes_all = app["kind"] == "command" or bool(app["definition"].get("open"))
        others: dict[str, Any] = {}
        for name in group.variables if group.is_swept else ():
            if name not in parameters:
                taken = parameters if takes_all or name in app["parameters"] else others
                taken[name] = sweep.as_value(row.values[name])
        if parameters:
            meant = sweep.as_value if app["kind"] in _SPELLED_KINDS else scalar
            fields["parameters"] = _with_values(parameters, meant)
        if others:
            fields["data"] = {**fields.get("data", {}), job_rows.SWEPT_ELSEWHERE: others}

    def _present(self, names: Iterable[str]) -> tuple[dict[str, dict[str, Any]], dict[int, set[int]]]:
        """Return the jobs that have one of these keys, by key, and their parents, by number."""
        with self._db.read() as cx:
            found = keys.jobs_with(cx, list(names), queries.JOB_COLUMNS)
            rows = {key: dict(zip(queries.JOB_COLUMNS, values)) for key, values in found.items()}
            parents: dict[int, set[int]] = {}
            for parent, child in queries.edges_to(cx, [row["id"] for row in rows.values()]) if rows else ():
                parents.setdefault(child, set()).add(parent)
        return rows, parents

    def _enter(self, group: JobGroup, row: campaign_file.Row, ref: _Ref) -> None:
        """Note a job in the indexes of its group, for its children."""
        for (name, variables), index in self._indexes.items():
            if name == group.name:
                index.setdefault(tuple(row.values[one] for one in variables), array("q")).append(ref)

    def _parents_of(self, group: JobGroup, row: campaign_file.Row) -> list[_Ref]:
        found: list[_Ref] = []
        for name, (mode, node) in group.parents.items():
            variables = self._common(group, name, mode)
            values = tuple(row.values[one] for one in variables)
            parents = self._indexes[name, variables].get(values)
            if parents is None:
                which = f" with {_listed(zip(variables, values))}" if variables else ""
                raise InvalidSpec(f"There is no job of group {name}{which} to wait for (see `parents` in line {node.line}).")
            found += parents
        return found

    def _check_size(self, group: JobGroup) -> None:
        if self._dependencies > MAX_DEPENDENCIES:
            raise InvalidSpec(
                f"The jobs of group {group.name} and those before it would have more than {MAX_DEPENDENCIES} dependencies.",
                hint="Let a group of one job wait for all parents, and all children wait for that job.",
            )

    # --- afterwards ---

    def is_outdated(self) -> bool:
        """Return whether jobs of the campaign were added or started since they were read, so that a second attempt helps."""
        with self._db.read() as cx:
            return keys.count_below(cx, self._campaign.name) != self._in_db or bool(self.late_parents)

    def with_place(self, exc: BalsamError) -> BalsamError:
        """Return an error about a job with its place in the file."""
        if self._now is None:
            return exc
        group, row = self._now
        cause = exc.__cause__ if isinstance(exc.__cause__, BalsamError) else exc
        where = f"{self._campaign.problems.name}, line {group.node.line}: group {group.name}"
        return type(exc)(f"{where}{f', {row.where}' if row and row.where else ''}: {cause.message}", hint=cause.hint)

    def result(self) -> Applied:
        """Return the counts, after all new jobs were yielded."""
        groups = []
        for name, tally in self._tallies.items():
            only_in_db = max(0, self._in_db.get(name, 0) - tally.existing)
            jobs = tally.new + tally.existing
            groups.append(GroupStatus(name, jobs, tally.new, tally.existing, only_in_db, dict(tally.differing), tally.late))
        gone = {name: jobs for name, jobs in self._in_db.items() if name not in self._tallies}
        return Applied(self._campaign.name, self.apps, groups, gone, self._dependencies)


def _with_values(value: Any, meant: Callable[[str], Any]) -> Any:
    """Return parameters in which `meant` gives the values of texts without quotes."""
    if isinstance(value, dict):
        return {name: _with_values(one, meant) for name, one in value.items()}
    if isinstance(value, list):
        return [_with_values(one, meant) for one in value]
    return meant(str(value)) if isinstance(value, PlainText) else value


def _ref(one: _Ref) -> insert.Ref:
    return one if one > 0 else insert.Position(-1 - one)


def _listed(pairs: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{name}={value}" for name, value in pairs)


def _compared(name: str, fields: Mapping[str, Any], found: Mapping[str, Any] | None) -> AppStatus:
    if found is None:
        return AppStatus(name, NEW_APP, {})
    changes = {field: (found[field], value) for field, value in fields.items() if found[field] != value}
    return AppStatus(name, CHANGED_APP if changes else SAME_APP, changes)


def _as_row(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `site_jobs.Apps` reads of an application."""
    import json

    kind = "template" if fields["command_template"] else "command"
    objects = {field: json.loads(fields[field]) for field in ("parameters", "definition")}
    return {**fields, **objects, "id": name, "name": name, "kind": kind}


def _differences(job: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return the fields in which a job of the DB differs from the file."""
    given = {name: value for name, value in job.items() if name in field_specs.JOB_FIELD and name not in _CHANGED_BY_JOBS}
    return [name for name, value in field_specs.check_job(given).items() if found[name] != value]
