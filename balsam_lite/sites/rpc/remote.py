"""A site on another host: each request runs `balsam answer` there through the user's own ssh."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, TypeVar, cast

from ... import __version__
from ...core import field_specs, import_guard, subprocess_run
from ...core.errors import BalsamError, InvalidSpec, NotABalsamDB, RemoteError, SiteUnreachable
from ...db.engine.registry import SiteEntry
from ..interface import Row, SiteInterface
from . import protocol, ssh

#: Maximum number of seconds for connecting.
CONNECT_S = 4
#: Maximum seconds of a whole call: one made to all sites, one that only reads, and one that changes.
ABOUT_S, READING_S, CHANGING_S = 4.5, 300.0, 900.0
#: Jobs that one request adds.
MAX_SENT_JOBS = 100_000
#: A hundred thousand jobs with long descriptions take a tenth of this.
MAX_ANSWER_BYTES = 2 * 1024**3

#: Fields of jobs and applications that hold a path.
_PATHS = frozenset({"stage_in_url", "stage_out_url", "user_workdir", "envscript"})

_CHANGING = (
    "create", "add_jobs", "update", "update_where", "delete", "undo", "rerun", "kill",
    "add_remote_parents", "watch_jobs", "note_parents", "add_dependency",
)  # fmt: skip

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _forwarded(method: _Method) -> _Method:
    """Return a method of the interface that the other host carries out. Defaults are filled in there."""
    code, name = method.__code__, method.__name__
    names = code.co_varnames[1 : code.co_argcount]

    @functools.wraps(method)
    def forwarded(self: RemoteSite, *values: Any, **arguments: Any) -> Any:
        return self._ask(name, {**dict(zip(names, values)), **arguments})

    return cast(_Method, forwarded)


class RemoteSite:
    """A `interface.SiteInterface` of a site that ssh reaches.

    Errors raised there are raised here as the same class with the same message; their cause names the site. Any other failure
    raises SiteUnreachable, which reports whether a change may have been made anyway. Both hosts must have exactly the same
    version of balsam_lite: otherwise nothing is done.
    """

    def __init__(self, entry: SiteEntry, timeout_s: float | None = None) -> None:
        """Create a client for the site. `timeout_s` limits each request, connecting included; None: a default for each method.

        Raises:
            InvalidSpec, InputError: the entry's host or command is invalid.
        """
        self.entry = entry
        self.progress: Callable[[int], None] | None = None
        self._timeout_s = timeout_s
        self._host = ssh.parse_host(entry.host)
        self._line = ssh.shell_line(entry.balsam)

    about = _forwarded(SiteInterface.about)
    select = _forwarded(SiteInterface.select)
    count = _forwarded(SiteInterface.count)
    count_states = _forwarded(SiteInterface.count_states)
    count_downstream = _forwarded(SiteInterface.count_downstream)
    overview = _forwarded(SiteInterface.overview)
    event_tuples = _forwarded(SiteInterface.event_tuples)
    runs = _forwarded(SiteInterface.runs)
    changes = _forwarded(SiteInterface.changes)
    parents = _forwarded(SiteInterface.parents)
    launchers = _forwarded(SiteInterface.launchers)
    edits = _forwarded(SiteInterface.edits)
    page = _forwarded(SiteInterface.page)
    results = _forwarded(SiteInterface.results)
    create = _forwarded(SiteInterface.create)
    check_jobs = _forwarded(SiteInterface.check_jobs)

    def add_jobs(
        self, rows: Iterable[Row], on_duplicate: str = "refuse", dry_run: bool = False, new_app: Row | None = None
    ) -> Row:
        """Send the jobs in one request. Raises InvalidSpec: these are too many for one."""
        sent = list(islice(rows, MAX_SENT_JOBS + 1))
        if len(sent) > MAX_SENT_JOBS:
            raise InvalidSpec(
                f"More than {MAX_SENT_JOBS} jobs cannot be added at {self.entry.address} at once; nothing was added.",
                hint="Copy the file to that host and add them there, where no number is too large.",
            )
        added: Row = self._ask("add_jobs", {"rows": sent, "on_duplicate": on_duplicate, "dry_run": dry_run, "new_app": new_app})
        return added

    update = _forwarded(SiteInterface.update)
    update_where = _forwarded(SiteInterface.update_where)
    delete = _forwarded(SiteInterface.delete)
    actions = _forwarded(SiteInterface.actions)
    undo = _forwarded(SiteInterface.undo)
    rerun = _forwarded(SiteInterface.rerun)
    kill = _forwarded(SiteInterface.kill)
    details = _forwarded(SiteInterface.details)
    news = _forwarded(SiteInterface.news)
    result = _forwarded(SiteInterface.result)
    status = _forwarded(SiteInterface.status)
    parent_records = _forwarded(SiteInterface.parent_records)
    add_remote_parents = _forwarded(SiteInterface.add_remote_parents)
    watch_jobs = _forwarded(SiteInterface.watch_jobs)
    note_parents = _forwarded(SiteInterface.note_parents)
    ancestors = _forwarded(SiteInterface.ancestors)
    add_dependency = _forwarded(SiteInterface.add_dependency)
    outputs = _forwarded(SiteInterface.outputs)
    explain = _forwarded(SiteInterface.explain)
    service = _forwarded(SiteInterface.service)

    def at_one_moment(self) -> AbstractContextManager[object]:
        """Return a context without effect: each call reads what is there then."""
        return nullcontext()

    # --- asking -------------------------------------------------------------------------------------------------------

    def _ask(self, method: str, arguments: Mapping[str, Any]) -> Any:
        """Call a method there, and return its result.

        Raises:
            the errors of that method; SiteUnreachable: there is no answer.
        """
        for name in ("rows", "changes"):
            given = arguments.get(name, ())
            for row in [given] if isinstance(given, Mapping) else given:
                self._refuse_relative(row)
        marker = protocol.new_marker()
        db = ssh.path_there(self.entry.path)
        request = protocol.write_request(protocol.RpcRequest(method, arguments, db, marker=marker))
        changing = method in _CHANGING or arguments.get("verb") in ("start", "stop")
        if changing:
            import_guard.check_writable()
        limit_s = CHANGING_S if changing else ABOUT_S if method == "about" else READING_S
        done = self._run(request, self._timeout_s or limit_s)
        reply = protocol.find_answer(done.stdout, marker)
        if reply is None:
            if done.was_killed:
                ssh.drop(self._host)
            raise ssh.diagnose(self.entry, self._host, done, changing)
        if reply.version != __version__:
            raise self._other_version(reply.version)
        if reply.error is not None:
            raise self._own(reply.error) from RemoteError(
                f"raised by balsam_lite at {self.entry.address}\n{done.stderr}".strip()
            )
        return reply.answer

    def _refuse_relative(self, row: Mapping[str, Any]) -> None:
        """Raise InvalidSpec for a relative path to a file of this host, which would name another file there."""
        for name in _PATHS & row.keys():
            value = row[name]
            if isinstance(value, str) and field_specs.relative_path_of(value):
                raise InvalidSpec(
                    f"{name} {value!r} is a relative path, which means nothing at {self.entry.address}, another host.",
                    hint="Give an absolute path there, or copy from this host: scp:HOST:PATH.",
                )

    def _run(self, request: bytes, timeout_s: float) -> subprocess_run.Completed:
        # Leave ssh some time to report why it could not connect.
        connect_s = max(int(min(CONNECT_S, timeout_s - 0.5)), 1)
        return subprocess_run.run(
            ssh.command(self._host, self._line, connect_s),
            timeout_s=timeout_s,
            environ=ssh.environ(),
            stdin=request,
            largest_bytes=MAX_ANSWER_BYTES,
            leaves_some=True,  # the shared connection
        )

    # --- what came back -----------------------------------------------------------------------------------------------

    def _other_version(self, theirs: str) -> SiteUnreachable:
        return SiteUnreachable(
            f"{self.entry.address}: balsam_lite is {theirs} there and {__version__} here; both must be the same.",
            hint="Install the same version on both, or name another command there: "
            f"balsam site add {shlex.quote(self.entry.name)} {shlex.quote(self.entry.address)} --balsam /path/to/bin/balsam",
        )

    def _own(self, error: BalsamError) -> BalsamError:
        """Return the error to raise here for one raised on the remote host."""
        if not isinstance(error, NotABalsamDB):
            return error
        hint = f"`balsam init {shlex.quote(ssh.path_there(self.entry.path))}` on that host makes one."
        if self.entry.number:
            hint += f" `balsam site forget {shlex.quote(self.entry.name)}` forgets the site."
        return SiteUnreachable(f"{self.entry.address}: {error.message}", hint=hint)
