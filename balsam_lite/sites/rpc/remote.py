"""A site on another host: each request runs `balsam answer` there through the user's own ssh."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ... import __version__
from ...core import field_specs, import_guard, subprocess_run
from ...core.errors import BalsamError, InvalidSpec, NotABalsamDB, RemoteError, SiteUnreachable
from ...db.engine.registry import SiteEntry
from ..interface import Row
from . import protocol, ssh

#: Maximum number of seconds for connecting.
CONNECT_S = 4
#: Maximum seconds of a whole call: one made to all sites, one that only reads, and one that changes.
ABOUT_S, READING_S, CHANGING_S = 4.5, 300.0, 900.0
#: A hundred thousand jobs with long descriptions take a tenth of this.
MAX_ANSWER_BYTES = 2 * 1024**3

#: Fields of jobs and applications that hold a path.
_PATHS = frozenset({"stage_in_url", "stage_out_url", "envscript"})

_CHANGING = ("create", "update", "update_where", "delete", "rerun", "kill")


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

    # --- the protocol -------------------------------------------------------------------------------------------------

    def about(self) -> Row:
        """Return version, path, whether a service is active, and so on."""
        return self._row("about")

    def select(
        self, kind: str, where: Mapping[str, Any] = {}, order: str = "", start: int = 0, stop: int | None = None
    ) -> list[Row]:
        """Return the rows that match."""
        return self._rows("select", kind=kind, where=where, order=order, start=start, stop=stop)

    def count(self, kind: str, where: Mapping[str, Any] = {}) -> int:
        """Return the number of rows that match."""
        return int(self._ask("count", kind=kind, where=where))

    def count_states(self, where: Mapping[str, Any] = {}) -> dict[str, int]:
        """Return state -> number of the jobs that match."""
        return self._row("count_states", where=where)

    def count_downstream(self, where: Mapping[str, Any] = {}) -> int:
        """Return the number of other jobs that depend on a matching one."""
        return int(self._ask("count_downstream", where=where))

    def event_tuples(self, where: Mapping[str, Any] = {}, after: int = 0, touching: Sequence[str] = ()) -> list[Sequence[Any]]:
        """Return a page of events as short lists."""
        return list(self._ask("event_tuples", where=where, after=after, touching=list(touching)))

    def page(
        self, where: Mapping[str, Any], fields: Sequence[str] = (), after: int = 0, size: int = 5000, order: str = ""
    ) -> list[Row]:
        """Return the first jobs with a number above `after`, or the first ones in an order."""
        return self._rows("page", where=where, fields=list(fields), after=after, size=size, order=order)

    def create(self, kind: str, rows: Sequence[Row]) -> list[Row]:
        """Add rows; all or none."""
        self._refuse_relative(rows)
        return self._rows("create", kind=kind, rows=list(rows))

    def check_jobs(self, rows: Sequence[Row]) -> None:
        """Raise the errors that creating these jobs would."""
        self._refuse_relative(rows)
        self._ask("check_jobs", rows=list(rows))

    def update(self, kind: str, changes: Sequence[Row]) -> int:
        """Change rows one by one; all or none."""
        self._refuse_relative(changes)
        return int(self._ask("update", kind=kind, changes=list(changes)))

    def update_where(self, kind: str, where: Mapping[str, Any], changes: Mapping[str, Any]) -> int:
        """Apply the same changes to all rows that match."""
        self._refuse_relative([changes])
        return int(self._ask("update_where", kind=kind, where=where, changes=changes))

    def delete(
        self, kind: str, where: Mapping[str, Any], force: bool = False, running: bool = False, keep_jobs: bool = False
    ) -> Row:
        """Remove all rows that match."""
        return self._row("delete", kind=kind, where=where, force=force, running=running, keep_jobs=keep_jobs)

    def rerun(
        self, where: Mapping[str, Any], to: str | None = None, changes: Mapping[str, Any] = {}, downstream: bool = False
    ) -> Row:
        """Put all matching jobs back to be run again."""
        self._refuse_relative([changes])
        return self._row("rerun", where=where, to=to, changes=changes, downstream=downstream)

    def kill(self, where: Mapping[str, Any], recursive: bool = False) -> Row:
        """Make all matching jobs USER_KILLED."""
        return self._row("kill", where=where, recursive=recursive)

    def result(self, job: int) -> Row:
        """Return the outcome of a job."""
        return self._row("result", job=job)

    def service(self, verb: str) -> Row:
        """Run `start`, `stop`, `status` or `check` for the site's service."""
        return self._row("service", verb=verb)

    def _refuse_relative(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Raise InvalidSpec for a relative path to a file of this host, which would name another file there."""
        for row in rows:
            for name in _PATHS & row.keys():
                value = row[name]
                if isinstance(value, str) and field_specs.relative_path_of(value):
                    raise InvalidSpec(
                        f"{name} {value!r} is a relative path, which means nothing at {self.entry.address}, another host.",
                        hint="Give an absolute path there, or copy from this host: scp:HOST:PATH.",
                    )

    # --- asking -------------------------------------------------------------------------------------------------------

    def _row(self, method: str, **arguments: Any) -> Row:
        return dict(self._ask(method, **arguments))

    def _rows(self, method: str, **arguments: Any) -> list[Row]:
        return list(self._ask(method, **arguments))

    def _ask(self, method: str, **arguments: Any) -> Any:
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
