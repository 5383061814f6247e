"""Export jobs to an archive; see `archive`."""

from __future__ import annotations

import io
import json
import os
import shlex
import socket
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from fnmatch import fnmatch
from typing import Any, NamedTuple

from .. import __version__
from ..core import caller, field_specs, job_files
from ..core.clock import SystemClock, iso_us
from ..core.errors import NotFound
from ..core.plain_values import json_of_result
from ..db.engine import directories
from ..db.engine.connection import Database
from ..db.engine.filesystem import failure
from ..db.query import full_records, queries
from ..db.query.full_records import FullRecord
from ..db.query.runs import Run
from ..db.query.select import Given
from . import containers
from .archive import COMMANDS, FORMAT, TABLES, VERSION, Hashing, Lines, is_below
from .containers import ArchiveError, ContainerWriter
from .crate import FILE_NAME, Crate

_FLAGS = frozenset(field.name for field in field_specs.JOB_FIELDS if field.kind == "flag")
_OBJECTS = frozenset(field.name for field in field_specs.JOB_FIELDS if field.kind in field_specs.JSON_KINDS)
_DEFAULTS = {field.name: field.default for field in field_specs.JOB_FIELDS}
_TIMES = ("created", "start_after", "told_to_stop")

Progress = Callable[[int], None]


class Exported(NamedTuple):
    """What an archive holds, and what it does not."""

    path: str
    counts: dict[str, int]  # jobs, apps, events, runs, edits, files
    file_bytes: int
    absent_parents: int  # parents that are not among the jobs
    secrets: dict[str, int]  # environment variable -> jobs and applications whose value was dropped
    outside: list[str]  # files outside of the DB that applications name, which did not come along
    unmatched: list[str]  # patterns that no file matches
    states: dict[str, int]


def export(
    db: Database,
    path: str,
    where: Given,
    *,
    patterns: Sequence[str] = (),
    conditions: str = "",
    force: bool = False,
    is_crate: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write the matching jobs, as of one moment, to a new archive; return what is in it. Opens a read transaction.

    Args:
        patterns: which files of the working directories to add, by their paths below these; `*` matches `/`, too.
        conditions: the conditions in words, for the manifest.
        is_crate: add the metadata that make the archive a Workflow Run RO-Crate; see `crate`.
        progress: called with the number of jobs read since the last call.

    Raises:
        InputError: `path` exists. NotFound: no job matches. DatabaseFull, ArchiveError: the archive cannot be written.
    """
    try:
        with containers.create(path, force) as output, ExitStack() as stack:
            spools = {name: stack.enter_context(Lines()) for name in TABLES}
            folders = stack.enter_context(Lines())
            found = _Findings(db, patterns)
            crate = Crate() if is_crate else None
            with full_records.snapshot(db) as cx:
                numbers = full_records.numbers_of(cx, where)
                if not numbers:
                    raise NotFound("No job matches; nothing was exported.", hint="`balsam ls` shows the jobs.")
                for page in full_records.read(cx, numbers, os.path.join(db.directory, directories.DATA)):
                    for record in page:
                        found.write(record, spools, folders)
                    if crate:
                        crate.add(page)
                    if progress:
                        progress(len(page))
                apps = [app for app in queries.apps(cx) if app["name"] in found.used_apps]
            scripts = found.write_apps(apps, spools["apps"])
            manifest = found.manifest(conditions, {name: spools[name] for name in TABLES})
            _add_bytes(output, containers.MARK, json.dumps(manifest, indent=1).encode() + b"\n")
            for name in TABLES:
                output.add(f"{name}.jsonl", spools[name].rewound(), spools[name].size)
            with Lines() as listed:
                for name, file in scripts.items():
                    _add_file(output, f"scripts/{name}", file, listed)
                found.add_files(output, folders, listed)
                if crate:
                    _add_bytes(output, FILE_NAME, crate.metadata(manifest, apps, listed))
                output.add("files.jsonl", listed.rewound(), listed.size)
                files = listed.lines - len(scripts)
    except OSError as exc:
        raise ArchiveError(f"The archive {path} cannot be written: {failure(exc, os.path.abspath(path))}") from exc
    counts = {**{name: spools[name].lines for name in TABLES}, "files": files}
    return Exported(
        os.path.abspath(path), counts, found.file_bytes, found.absent_parents, dict(found.secrets), found.outside,
        [pattern for pattern in patterns if pattern not in found.matched], dict(found.states),
    )  # fmt: skip


class _Findings:
    """Turns records into lines, and counts what a user wants to know."""

    def __init__(self, db: Database, patterns: Sequence[str]) -> None:
        self._db, self._patterns = db, patterns
        self.matched: set[str] = set()
        self.used_apps: set[str] = set()
        self.secrets: Counter[str] = Counter()
        self.states: Counter[str] = Counter()
        self.outside: list[str] = []
        self.absent_parents = self.file_bytes = 0
        self._shared: set[str] = set()  # folders of several jobs
        self._contexts: dict[bytes, int] = {}  # of calls -> their numbers in the archive

    def write(self, record: FullRecord, spools: Mapping[str, Lines], folders: Lines) -> None:
        """Write the lines of a job."""
        row = _job_line(record)
        row.update(_without_secrets(row, self.secrets))
        if record.call is not None:
            row["call"] = self._call_object(*record.call)
        self.absent_parents += len(record.absent_parents)
        if self._patterns:
            self._note_folder(row, record, folders)
        spools["jobs"].put(row)
        for event in record.events:
            spools["events"].put(_event_line(record.number, *event))
        for run in record.runs:
            spools["runs"].put(run_line(run))
        for edit in record.edits:
            if not _is_secret_edit(edit):
                spools["edits"].put({**edit, "timestamp": iso_us(edit["timestamp"])})
        self.used_apps.add(record.fields["application"])
        self.states[record.fields["state"]] += 1

    def _call_object(self, context: bytes, payload: bytes, result: Any) -> dict[str, Any]:
        """Return a call as `jobs.jsonl` has it: the content of a context is with its first call only."""
        number = len(self._contexts)
        is_new = self._contexts.setdefault(context, number) == number
        found = {"payload": payload, **({"content": context} if is_new else {})}
        if json_of_result(result) is not None:  # an import would refuse any other: who reads such a pickle may run code
            found["result"] = result
        return {"context": self._contexts[context], **{name: b64encode(data).decode() for name, data in found.items()}}

    def _note_folder(self, row: dict[str, Any], record: FullRecord, folders: Lines) -> None:
        fields = record.fields
        folder = workdir = fields["workdir"]
        if os.path.isabs(workdir):
            folder = field_specs.workdir_name(fields["workflow"], fields["name"], record.job_id)
        row["folder"] = folder
        if not job_files.is_generated(folder, record.job_id):
            if folder in self._shared:
                return
            self._shared.add(folder)
        folders.put({"folder": folder, "directory": os.path.join(self._db.directory, directories.DATA, workdir)})

    def write_apps(self, apps: Sequence[Mapping[str, Any]], lines: Lines) -> dict[str, str]:
        """Write the lines of the applications. Return the scripts that come along: name below `scripts/` -> path."""
        scripts: dict[str, str] = {}
        for app in apps:
            row = {
                field.name: json.loads(app[field.name]) if field.kind in field_specs.JSON_KINDS else app[field.name]
                for field in field_specs.APP_FIELDS
                if app[field.name] != field.default
            }
            for path in _files_of(row):
                if is_below(path, self._db.directory):
                    scripts[os.path.relpath(path, self._db.directory)] = path
                elif not path.startswith(("/bin/", "/usr/", "/opt/", "/sbin/")) and path not in self.outside:
                    self.outside.append(path)
            own = [name for name, path in scripts.items() if path in set(_files_of(row))]
            row.update(_without_secrets(row, self.secrets))
            lines.put({**row, "scripts": own} if own else row)
        return scripts

    def manifest(self, conditions: str, tables: Mapping[str, Lines]) -> dict[str, Any]:
        with self._db.read() as cx:
            (db_id,) = cx.execute("SELECT value FROM meta WHERE key = 'id'").fetchone()
        return {
            "format": FORMAT, "format_version": VERSION, "program": f"balsam_lite {__version__}",
            "written": iso_us(SystemClock.now_us()),
            "user": caller.current().user, "host": socket.gethostname(), "directory": self._db.directory,
            "db_id": db_id, "conditions": conditions, "patterns": list(self._patterns),
            "states": dict(self.states), "secrets": dict(self.secrets), "absent_parents": self.absent_parents,
            "tables": {name: lines.described() for name, lines in tables.items()},
        }  # fmt: skip

    def add_files(self, output: ContainerWriter, folders: Lines, listed: Lines) -> None:
        """Add the files that match a pattern."""
        for one in folders if self._patterns else ():
            for path in _walk(one["directory"]):
                relative = os.path.relpath(path, one["directory"])
                fitting = [pattern for pattern in self._patterns if fnmatch(relative, pattern)]
                if fitting:
                    self.matched.update(fitting)
                    self.file_bytes += _add_file(output, f"files/{one['folder']}/{relative}", path, listed)


def _job_line(record: FullRecord) -> dict[str, Any]:
    """Return a job as a line of `jobs.jsonl`: the fields that differ from their defaults, and more."""
    row: dict[str, Any] = {"number": record.number, "job_id": record.job_id}
    for name, value in record.fields.items():
        if value != _DEFAULTS[name]:
            row[name] = json.loads(value) if name in _OBJECTS else bool(value) if name in _FLAGS else value
    row.update({name: iso_us(row[name]) for name in _TIMES if row.get(name)})
    others = {"failure": record.failure, "parents": record.parents, "absent_parents": record.absent_parents}
    row.update({name: value for name, value in others.items() if value})
    return row if record.result is None else {**row, "result": json.loads(record.result)}


def _event_line(job: int, time_us: int, before: str, after: str, message: str, data: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {"job": job, "time": iso_us(time_us), "from": before, "to": after}
    if message:
        row["message"] = message
    if data:
        row["data"] = json.loads(data)
    return row


def run_line(run: Run) -> dict[str, Any]:
    """Return a run as a line of `runs.jsonl`, without what is not known."""
    row: dict[str, Any] = {"job": run.job, "attempt": run.attempt}
    times = {"started": run.started_us, "ended": run.ended_us}
    row.update({name: iso_us(value) for name, value in times.items() if value is not None})
    numbers = {"return_code": run.return_code, "user_us": run.user_us, "system_us": run.system_us, "max_memory": run.max_memory}
    row.update({name: value for name, value in numbers.items() if value is not None})
    texts = {"nodes": run.nodes, "gpus": run.gpus, "cpus": run.cpus, "cause": run.cause}
    row.update({name: value for name, value in texts.items() if value})
    return row


def _without_secrets(row: Mapping[str, Any], counted: Counter[str]) -> dict[str, Any]:
    """Return the environment of a job or an application without secret values, and whose these are; {} if it has none."""
    variables = row.get("environ_vars") or {}
    secret = sorted(filter(field_specs.is_secret, variables))
    counted.update(secret)
    if not secret:
        return {}
    return {
        "environ_vars": {name: value for name, value in variables.items() if name not in secret},
        "dropped_environ": secret,
    }


def _is_secret_edit(edit: Mapping[str, Any]) -> bool:
    field, _, key = edit["field"].partition(".")
    return field == "environ_vars" and field_specs.is_secret(key)


def _files_of(app: Mapping[str, Any]) -> Iterator[str]:
    """Yield the existing files that the command lines of an application name by absolute paths."""
    seen: set[str] = set()
    for name in COMMANDS:
        line = app.get(name, "")
        with suppress(ValueError):
            seen.update(word for word in shlex.split(line) if os.path.isabs(word))
    path = str(app.get("definition", {}).get("file", ""))
    yield from sorted(path for path in {*seen, path} if path and os.path.isfile(path))


def _walk(directory: str) -> Iterator[str]:
    for folder, folders, found in os.walk(directory):
        folders.sort()
        for name in sorted(found):
            path = os.path.join(folder, name)
            if os.path.isfile(path):  # a link to a file, too, such as to one of a parent
                yield path


def _add_bytes(output: ContainerWriter, name: str, data: bytes) -> None:
    output.add(name, io.BytesIO(data), len(data))


def _add_file(output: ContainerWriter, name: str, path: str, listed: Lines) -> int:
    """Add a file as it is now; return its size. One that is written meanwhile has the size that it had at first."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            hashing = Hashing(file)
            output.add(name, hashing, status.st_size, status.st_mode & 0o777, int(status.st_mtime))  # type: ignore[arg-type]
    except (FileNotFoundError, PermissionError) as exc:
        raise ArchiveError(
            f"{path} cannot be read: {exc.strerror}", hint="Leave it out with other patterns of --files."
        ) from exc
    except OSError as exc:
        if "unexpected end" not in str(exc):
            raise
        raise ArchiveError(f"{path} was cut while it was read.", hint="Export again when no job writes to it.") from exc
    listed.put({"name": name, "bytes": status.st_size, "sha256": hashing.hash.hexdigest()})
    return int(status.st_size)
