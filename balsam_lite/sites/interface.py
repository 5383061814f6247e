"""The interface of a site, in plain data: one protocol, whether its DB is on this host or reached through ssh.

`local.LocalSite` uses the DB, `remote.RemoteSite` runs `balsam answer` on the site's host. Rows are dicts of JSON values:
numbers are those of that DB, times are microseconds since the epoch (UTC), state names are text. Field names are those of
Balsam 0.7, not of the columns of our tables.

Kinds of rows and their fields:

job
    id, job_id (UUID), name, workflow, workdir (below `data/`), app_id (None: gone), app (its name), tags, parameters, data,
    return_code, num_nodes, ranks_per_node, threads_per_rank, threads_per_core, gpus_per_rank, node_packing_count,
    wall_time_min, launch_params, parent_ids (sorted list), remote_parents (those at other sites: dicts of site, id, job_id,
    name, state and address), state, last_update, batch_job_id (in which it last ran), and under the
    names of `field_specs.JOB_FIELDS` the fields that Balsam 0.7 lacks: description, args, environ_vars, priority,
    restart_limit, max_retries, retry_codes, attempt, cpu_affinity, mpi_flags, input_files, stage_in_url, …
app
    id, name, description, parameters, kind ("command", "template", "function"), executable, command_template, definition,
    environ_vars, preprocess, postprocess, envscript, handle_error, handle_timeout
batch_job
    id, scheduler_id, project, queue, num_nodes, wall_time_min, job_mode, filter_tags, partitions, optional_params, state,
    status_info ({"error", "submit_script", "log", …}), start_time, end_time
event
    id, job_id (the job's number), timestamp, from_state, to_state, data

Conditions (all given conditions must hold; None is none; an empty list matches nothing, tags {} is no constraint):

job
    id, parent_id, app_id, batch_job_id (a number or a list); state, state__ne, app, name, workflow, workdir (a text or a list);
    uuid (the UUID or a prefix of it, or a list); which (a word as commands accept it: "#37", a number, a prefix of the UUID
    or a name; or a list, of which one must match); workdir__contains; tags (a mapping, "k:v", or a list of such);
    last_update_before (<=), last_update_after (>=)
app
    id, name (one or a list)
batch_job
    id, scheduler_id, state, queue (one or a list), filter_tags, start_time_before, …_after, end_time_before, …_after
event
    id, job_id, batch_job_id, scheduler_id (one or a list), tags, data (a mapping, "k:v", or a list of such),
    timestamp_before (<=), timestamp_after (>=), from_state, to_state (one or a list), after (see below)

Events are read in pages by the position of the last row, not by `start`: `after` is [timestamp, id] of the last row of the
previous page, in the orders "" (newest first), "timestamp" and "-timestamp". Each page costs the same, wherever it is; a page
of 10 000 rows or more costs little beyond its rows. Code that needs only the fields used by analytics uses `event_tuples`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from ..db.engine.registry import SiteEntry

Row = dict[str, Any]

#: Maximum number of jobs that `SiteInterface.explain` explains one by one.
MAX_EXPLAINED = 100

KINDS = ("job", "app", "batch_job", "event")


class SiteInterface(Protocol):
    """One site. Every method opens its own transactions; every error is a BalsamError."""

    entry: SiteEntry
    #: Called with the number of jobs changed since the last call, by large writes on this host.
    progress: Callable[[int], None] | None

    def about(self) -> Row:
        """Return version (of balsam_lite there), path, jobs (their number), and

        is_active: whether a service runs; None: it is on another host, and by the clocks its last heartbeat is more than two
            minutes old;
        db_id: a text that identifies this DB under all its addresses, shared only with copies of it; "" if the DB is too old;
        python: the interpreter there, which has balsam_lite;
        last_refresh: the time of the last heartbeat of a service; None if there was none.
        """

    def at_one_moment(self) -> AbstractContextManager[object]:
        """Return a context in which all that is read is of one moment, if the site's DB is on a local file system of this host.

        Elsewhere each method reads what is there when it is called, since a DB must not be held for as long.
        """

    def select(
        self, kind: str, where: Mapping[str, Any] = {}, order: str = "", start: int = 0, stop: int | None = None
    ) -> list[Row]:
        """Return the rows that match, in order (a field, with a prefix `-` descending; "" is by id, for events newest first).

        Conditions are those of `db.query.filters`; all must hold.

        Raises:
            UnknownField, InvalidSpec, InvalidStateError.
        """

    def count(self, kind: str, where: Mapping[str, Any] = {}) -> int:
        """Return the number of rows that match."""

    def count_states(self, where: Mapping[str, Any] = {}) -> dict[str, int]:
        """Return state -> number of matching jobs in it, for the states that have any."""

    def overview(self, where: Mapping[str, Any] = {}, size: int = 100) -> Row:
        """Return what goes on at this moment: see `db.query.overview`. `size` is the maximum number of running jobs."""

    def event_tuples(self, where: Mapping[str, Any] = {}, after: int = 0, touching: Sequence[str] = ()) -> list[Sequence[Any]]:
        """Return a page of events as short rows: [timestamp, from_state, to_state, job, nodes, started, id].

        `nodes` is set for an event to RUNNING, else None. `started` is when the program of a run that ends was started, 0 if it
        never was, or None.

        Events are in the order in which they were recorded, which is nearly that of time. For the next page, pass as `after`
        the id in the last row; an empty page is the end. With `touching`, only events that leave or enter one of these states.
        """

    def runs(self, where: Mapping[str, Any] = {}, after: int = 0) -> list[Sequence[Any]]:
        """Return a page of jobs with their runs, in the columns of `db.query.campaign.RUN_COLUMNS`.

        For the next page, pass as `after` the number of the last job; an empty page is the end.
        """

    def changes(
        self, where: Mapping[str, Any] = {}, after: int = 0, shift: int = 0, first: int = 0, last: int = 2**62
    ) -> Sequence[Any]:
        """Return the last event read, 0 at the end, and the changes of state in a page of events, counted by time.

        See `db.query.campaign.changes`.
        """

    def parents(self, where: Mapping[str, Any] = {}, after: int = 0) -> Sequence[Any]:
        """Return the last job read, 0 at the end, and a page of dependencies [parent, child]."""

    def launchers(self) -> list[Row]:
        """Return the newest launchers, at most 500: see `db.query.runs.launcher_records`."""

    def results(
        self, where: Mapping[str, Any], fields: Sequence[str] = (), after: int = 0, size: int = 5000, order: str = ""
    ) -> list[Sequence[Any]]:
        """Return the numbers of matching jobs with these columns of their results, as stored: see `db.query.results.page`.

        Raises:
            UnknownField, InvalidSpec.
        """

    def edits(self, jobs: Sequence[int]) -> list[Row]:
        """Return what users and scripts changed in the fields of these jobs; see `db.query.edits`."""

    def page(
        self, where: Mapping[str, Any], fields: Sequence[str] = (), after: int = 0, size: int = 5000, order: str = ""
    ) -> list[Row]:
        """Return by number the first `size` matching jobs with a number above `after`, with these fields, or () for all.

        A page costs the same wherever it is, so that a list of a million jobs can be printed as it is read. With `order` (see
        `select`) return the first ones in that order; `after` must be 0. Fields are those of `select`, `parents` and `children`
        (lists of UUIDs) and `stale`. With all fields, there is also `waits_for`: why a launcher did not take a waiting job.

        Raises:
            UnknownField, InvalidSpec, InvalidStateError.
        """

    def create(self, kind: str, rows: Sequence[Row], on_duplicate: str = "refuse") -> list[Row]:
        """Add jobs, applications or batch jobs; all or none. Return them as stored, in order.

        The row of a job may omit fields that none of the jobs sets and that therefore keep their defaults. A batch job is
        submitted at once. An existing app of that name is changed. With `on_duplicate="skip"` the job that has the unique_key
        of a row already is returned in its place.

        Raises:
            UnknownField, InvalidSpec, DuplicateKey (with the number of the row), UnknownApp, UnknownJob, SubmitFailed.
        """

    def add_jobs(
        self, rows: Iterable[Row], on_duplicate: str = "refuse", dry_run: bool = False, new_app: Row | None = None
    ) -> Row:
        """Add very many jobs; all or none. Return {"first": id of the first new one, "jobs": number of new ones, "skipped":
        number of those not added because another job has their unique_key, "existing": ids of the first of those jobs}.

        Rows are those of `create`, and may have `parents`: a text is the name of a job in `rows`, or else names a job at the
        site; a number is a position in `rows`, counted from 0. At a site of this host memory is constant; to another host at
        most `rpc.remote.MAX_SENT_JOBS` are sent.

        Args:
            on_duplicate: "skip" leaves out jobs whose unique_key exists; "refuse" raises DuplicateKey.
            dry_run: only raise what would be raised, and count.
            new_app: an application to register together with the jobs, unless it is there.

        Raises:
            as `create`, with the number of the row.
        """

    def check_jobs(self, rows: Sequence[Row]) -> None:
        """Raise the errors that `create` would for these jobs, and write nothing. For adding jobs to several sites at once."""

    def update(self, kind: str, changes: Sequence[Row]) -> int:
        """Change rows one by one: each change has the `id` and the new values; for a job also `state`, with `state_data`.

        `before` of a job holds dicts as they were read, by name; each is merged key by key with what others have written since.
        All or none. Return the number of changes.

        Raises:
            UnknownField, InvalidSpec, InvalidStateError, StateError, NotFound.
        """

    def update_where(self, kind: str, where: Mapping[str, Any], changes: Mapping[str, Any]) -> int:
        """Apply the same changes to all rows that match. Return their number."""

    def delete(
        self,
        kind: str,
        where: Mapping[str, Any],
        force: bool = False,
        running: bool = False,
        keep_jobs: bool = False,
        no_trash: bool = False,
        workdirs: bool = False,
        dry_run: bool = False,
    ) -> Row:
        """Remove all rows that match: {"deleted": n, "held": number of jobs left alone because a launcher holds them}.

        An app is removed with its jobs ("jobs": n); a batch job is cancelled, and its row stays. For jobs and apps "is_kept"
        tells whether `undo` can restore them. With `workdirs`, "workdirs" is what `sites.workdirs.remove` returns.

        Args:
            force: also remove jobs that others wait for.
            running: also remove jobs that a launcher holds; the launcher stops them.
            keep_jobs: keep the jobs of an app.
            no_trash: remove jobs and apps for good.
            workdirs: also remove the working directories of the jobs.
            dry_run: of jobs; only raise what the removal would raise, and count.

        Raises:
            ParentInUse: jobs wait for one of these, and `force` is not set.
        """

    def actions(self) -> list[Row]:
        """Return the last actions of the user who asks, newest first: the fields of `db.store.undo.Action`."""

    def undo(self, number: int | None = None, dry_run: bool = False) -> Row:
        """Take back the user's action with this number, or the last command that can be taken back.

        Return {"action": as in `actions`, "taken": number of jobs restored, "left": reason -> number of jobs that were not}.
        With `dry_run`, only tell what would be done.

        Raises:
            NotFound: there is no such action, or it was taken back already.
        """

    def count_downstream(self, where: Mapping[str, Any] = {}) -> int:
        """Return the number of jobs that do not match and depend on a matching one: children, their children, and so on."""

    def rerun(
        self, where: Mapping[str, Any], to: str | None = None, changes: Mapping[str, Any] = {}, downstream: bool = False
    ) -> Row:
        """Put all jobs that match back to be run again, with `changes` of their fields. Return the numbers of jobs:

        {"jobs": put back, "held": left alone because a launcher holds them, "waiting": of those put back, wait for parents,
        "failed": failed again at once because their run_when cannot hold, "parent": a failed parent of these, in words}.

        Args:
            to: RESTART_READY or CREATED; None selects the first for jobs that have run, the second for the others.
            downstream: also put back the jobs that `count_downstream` counts, without `changes`.

        Raises:
            UnknownField, InvalidSpec, InvalidStateError, UnknownApp.
        """

    def kill(self, where: Mapping[str, Any], recursive: bool = False) -> Row:
        """Make all jobs that match USER_KILLED, with `recursive` also those that depend on them.

        Return {"killed": n, "running": how many of these their launchers have yet to stop}.
        """

    def details(self, jobs: Sequence[int]) -> list[Row]:
        """Return what a person wants to know of these jobs; those that are gone are left out:

        the fields of `page` but for the lists of relatives; directory and output (absolute paths); command (the command line,
        None without an application); reasons (as `explain` returns them);
        parent_jobs and child_jobs ({"states": numbers by state, "some": [{id, job_id, name, state}, …]}); edits; attempts (see
        `db.query.runs.Run.as_row`); launchers (of the attempts: see `db.query.runs.launcher_records`); source (of an imported
        job: see `db.query.queries.sources_of`).
        """

    def news(self, since: Sequence[int] = ()) -> Row:
        """Return which states jobs have entered since the `mark` of earlier news; without `since` none, with the present mark:

        mark; entered: [[job, state], …] in order, at most some ten thousand; has_removed: whether jobs were deleted, in which
        case states are to be read anew; has_more: whether to ask again at once.
        """

    def result(self, job: int) -> Row:
        """Return the outcome of a job: state, message, is_function, and for a function `outcome`.

        `outcome` is the `call.Outcome` of its last attempt, pickled, as base64; None if the attempt has stored none.
        """

    def explain(
        self, where: Mapping[str, Any], each: bool = False, refresh: bool = False, budget_s: float | None = None
    ) -> Row:
        """Return why the matching jobs do not run or have failed; without conditions all that wait or failed.

        With `each` {"jobs": …}, by number, at most `MAX_EXPLAINED`: id, job_id, name, workflow, state, reasons; of each reason
        code (of the catalogue), reason (a sentence), of (the launchers or launches of which it is true), remedy, is_note (it
        keeps no job from running). Else {"groups": …}, the largest first: code, reason, of, remedy, jobs (their number),
        example (the UUID of one), example_name.

        Args:
            refresh: ask the scheduler about queued launches first. A warning tells that it does not answer.
            budget_s: stop reading jobs after this number of seconds; the group `unexamined` has the others.
        """

    def status(self, where: Mapping[str, Any] = {}, refresh: bool = False) -> Row:
        """Return how it goes with the matching jobs, in at most a few dozen rows; `docs/json.rst` describes the keys.

        Of workflows, nodes, causes, reasons and launches the largest are named, and the others counted. Reasons are those that
        are found in a fraction of a second.

        Args:
            refresh: ask the scheduler about launches first. A warning tells that it does not answer.
        """

    def parent_records(self, jobs: Sequence[int]) -> Row:
        """Return what sites need to know of jobs here for which jobs there wait: db_id, path (the DB's), and

        jobs: of each id, job_id, name, state ("REMOVED": it is gone), is_held (by a launcher) and workdir (absolute).
        """

    def add_remote_parents(self, site: Row, jobs: Sequence[Row]) -> list[int]:
        """Store jobs of another site, from its `parent_records`, and return the numbers by which `parent_ids` can name them.

        `site` has db_id, name, and the address as this site's host sees it: host, path ("": it cannot be reached), balsam.
        """

    def watch_jobs(self, site: Row, jobs: Sequence[int]) -> None:
        """Have this site report the states of these jobs to another one, given as to `add_remote_parents`."""

    def note_parents(self, db_id: str, jobs: Sequence[Row]) -> Row:
        """Take over the states of parents at the site with that identity; see `db.store.remote_parents.store`. Return

        needed: the numbers there of the parents that jobs here still need; missing: files to be copied from there before an end
        counts, each as `db.store.remote_parents.MissingFiles` with absolute paths.
        """

    def ancestors(self, jobs: Sequence[int], db_id: str) -> Row:
        """Return here: these jobs and their ancestors; there: their ancestors at the site with that identity, by number."""

    def add_dependency(self, parent: int, child: int) -> None:
        """Let a job wait for another one; a number below 0 is one of `add_remote_parents`.

        Raises:
            UnknownJob, DuplicateDependency, DependencyCycle, StateError.
        """

    def outputs(self, places: Sequence[Sequence[int]], file: str = "", lines: int = 10) -> list[Row]:
        """Return a piece of the output of each of these jobs, or of another file in its working directory:

        id, job_id, name, state, attempt, has_ended (it is over, and writes no more), path, data (as base64), error (why it
        cannot be read, else ""), place ([job, attempt, inode, offset]): pass it to get the next piece, of an earlier attempt
        first. Jobs that are gone are left out.

        Args:
            places: a list for each job: its `place`, or [job] alone for the last `lines` lines.

        Raises:
            InputError: `file` is not in the working directory.
        """

    def service(self, verb: str) -> Row:
        """Run `start`, `stop` or `status` of the site's service: {"said": lines for people, …}.

        `check` raises the errors that `start` would about its settings and its queue policy, and does nothing else.
        """
