"""What can be asked of a site, in plain data: one protocol, whether its DB lies here or behind ssh.

`local.LocalSite` asks the DB, `remote.RemoteSite` has `balsam answer` do that on the site's host. Rows are dicts that JSON
knows: numbers are those of that DB, times are microseconds since the epoch (UTC), state names are text. The words are those
of the workshop's interface (Balsam 0.7), whatever the columns of our tables are called.

Kinds of rows and their fields:

job
    id, job_id (UUID), name, workflow, workdir (below `data/`), app_id (None: gone), app (its name), tags, parameters, data,
    return_code, num_nodes, ranks_per_node, threads_per_rank, threads_per_core, gpus_per_rank, node_packing_count,
    wall_time_min, launch_params, parent_ids (sorted list), state, last_update, batch_job_id (in which it last ran), and
    under the names of `field_specs.JOB_FIELDS` what the workshop does not know: description, args, environ_vars, priority,
    restart_limit, max_retries, retry_codes, attempt, cpu_affinity, mpi_flags, input_files, stage_in_url, …
app
    id, name, description, parameters, kind ("command", "template", "function"), executable, command_template, definition,
    environ_vars, preprocess, postprocess, envscript, handle_error, handle_timeout
batch_job
    id, scheduler_id, project, queue, num_nodes, wall_time_min, job_mode, filter_tags, partitions, optional_params, state,
    status_info ({"error", "submit_script", "log", …}), start_time, end_time
event
    id, job_id (the job's number), timestamp, from_state, to_state, data

Conditions (all that are given must hold; None is none; an empty list matches nothing, tags {} is no constraint):

job
    id, parent_id, app_id, batch_job_id (a number or a list); state, state__ne, app, name, workflow, workdir (a text or a list);
    uuid (the UUID or its beginning, or a list); which (a word as commands take it: "#37", a number, a prefix of the UUID or
    a name; or a list, of which one must fit); workdir__contains; tags (a mapping, "k:v", or a list of such);
    last_update_before (<=), last_update_after (>=)
app
    id, name (one or a list)
batch_job
    id, scheduler_id, state, queue (one or a list), filter_tags, start_time_before, …_after, end_time_before, …_after
event
    id, job_id, batch_job_id, scheduler_id (one or a list), tags, data (a mapping, "k:v", or a list of such),
    timestamp_before (<=), timestamp_after (>=), from_state, to_state (one or a list), after (see below)

Events are read in pages by the place of the last row, not by `start`: `after` is [timestamp, id] of the last row of the page
before, in the orders "" (newest first), "timestamp" and "-timestamp". Each page costs the same, wherever it is; of 10 000 rows
and more it costs little but its rows. Code that needs no more of them than analytics does takes `event_tuples`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..db.engine.registry import SiteEntry

Row = dict[str, Any]

KINDS = ("job", "app", "batch_job", "event")


class SiteInterface(Protocol):
    """One site. Every method opens its own transactions; every error is a BalsamError."""

    entry: SiteEntry

    def about(self) -> Row:
        """version (of balsam_lite there), path, is_active (whether a service runs; None: it is on another host, and by the
        clocks it was last heard of more than two minutes ago), jobs, and

        db_id: a text that this DB has under all its addresses, and that only copies of it have, too; "" if it is an old one;
        python: the interpreter there, which has balsam_lite;
        last_refresh: the time of the last heartbeat of a service; None if there never was one.
        """

    def select(
        self, kind: str, where: Mapping[str, Any] = {}, order: str = "", start: int = 0, stop: int | None = None
    ) -> list[Row]:
        """The rows that match, in order (a field, `-` before it the other way round; "" is by id, of events newest first).

        Conditions are `db.query.filters`'s; all must hold.

        Raises:
            UnknownField, InvalidSpec, InvalidStateError.
        """

    def count(self, kind: str, where: Mapping[str, Any] = {}) -> int:
        """How many match."""

    def count_states(self, where: Mapping[str, Any] = {}) -> dict[str, int]:
        """State -> number of the jobs that match and are in it; of the states that have any."""

    def event_tuples(self, where: Mapping[str, Any] = {}, after: int = 0, touching: Sequence[str] = ()) -> list[Sequence[Any]]:
        """A page of events as short rows: [timestamp, from_state, to_state, job, nodes of an event to RUNNING else None, when
        the program of a run that ends was started, 0 if it never was, or None, id].

        They come in the order in which they were noted, which is nearly that of time. The next page is that `after` the id in
        the last row; an empty one is the end. With `touching` those that leave or enter one of these states.
        """

    def page(
        self, where: Mapping[str, Any], fields: Sequence[str] = (), after: int = 0, size: int = 5000, order: str = ""
    ) -> list[Row]:
        """By number the first `size` of the jobs that match and have a number above `after`, with these fields, or () for all.

        A page costs the same wherever it is, so that a list of a million jobs can be printed as it comes. With `order` (see
        `select`) the first ones in that order, and `after` must be 0. Fields are those of `select`, `parents` and `children`
        (lists of UUIDs) and `stale`. With all fields, one more, `waits_for`: why a launcher did not take a job that waits.

        Raises:
            UnknownField, InvalidSpec, InvalidStateError.
        """

    def create(self, kind: str, rows: Sequence[Row]) -> list[Row]:
        """Add jobs, applications or batch jobs; all or none. Returns them as they are in the DB then, in order.

        The row of a job may leave out what none of the jobs was given, and what has its default therefore. A batch job is
        submitted at once. An app that exists under that name is changed.

        Raises:
            UnknownField, InvalidSpec (with the number of the row), UnknownApp, UnknownJob, SubmitFailed.
        """

    def check_jobs(self, rows: Sequence[Row]) -> None:
        """Raise what `create` would for these jobs, and write nothing. For adding jobs to several sites at once."""

    def update(self, kind: str, changes: Sequence[Row]) -> int:
        """Change rows one by one: each change has the `id` and the new values. Of a job `state`, with `state_data`, too.

        `before` of a job holds dicts as they were read, by name; each is merged key by key with what others have written.
        All or none. Returns how many there were.

        Raises:
            UnknownField, InvalidSpec, InvalidStateError, StateError, NotFound.
        """

    def update_where(self, kind: str, where: Mapping[str, Any], changes: Mapping[str, Any]) -> int:
        """The same changes for all that match. Returns how many."""

    def delete(
        self, kind: str, where: Mapping[str, Any], force: bool = False, running: bool = False, keep_jobs: bool = False
    ) -> Row:
        """Remove all that match: {"deleted": n, "held": jobs that were left alone because a launcher holds them}.

        An app goes with its jobs ("jobs": n); a batch job is cancelled, and its row stays.

        Args:
            force: remove jobs that others wait for, too.
            running: remove jobs that a launcher holds, too; it stops them.
            keep_jobs: leave the jobs of an app.

        Raises:
            ParentInUse: jobs wait for one of these, and `force` is not set.
        """

    def result(self, job: int) -> Row:
        """What became of a job: state, message, is_function, and of a function `outcome`: what `call.Outcome` says of its last
        attempt, pickled, as base64; None if that has left nothing."""

    def service(self, verb: str) -> Row:
        """`start`, `stop` or `status` of the site's service: {"said": lines for people, …}.

        `check` raises what `start` would about its settings and its queue policy, and does nothing.
        """
