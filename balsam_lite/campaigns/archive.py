"""Archives: jobs with their applications, history and files, in a tar file or a directory.

An archive has these members, in this order; `docs/reference/archives.rst` describes their content:

- `manifest.json`: the version of the format, where the jobs come from, counts, and a checksum of each of the next five.
- `apps.jsonl`, `jobs.jsonl`, `events.jsonl`, `runs.jsonl`, `edits.jsonl`: an object a line, the last four by number of the job.
- `scripts/…`: files in the DB's directory that the command lines of applications name.
- `files/…`: files of working directories.
- `files.jsonl`: size and checksum of each script and file. If it is missing, the archive is cut.

`exports` writes them, `imports` merges them into a DB. Both keep only a few numbers for each job in memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tempfile
from base64 import b64decode
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import IO, Any

from ..core.clock import SECOND_US
from ..core.errors import DatabaseFull, InputError
from ..db.engine.filesystem import existing
from ..db.store.merge import ForeignCall, ForeignEdit, ForeignEvent, ForeignJob
from . import containers
from .containers import ArchiveError, Member

FORMAT, VERSION = "balsam_lite archive", 1
TABLES = ("apps", "jobs", "events", "runs", "edits")
#: Fields of an application that are command lines or paths.
COMMANDS = ("executable", "preprocess", "postprocess", "handle_error", "handle_timeout", "command_template", "envscript")
#: Largest manifest, and longest line of a table, in bytes: a job's fields have a million characters each.
_MAX_MANIFEST_BYTES, _MAX_LINE_BYTES = 16 << 20, 256 << 20
#: Free space that is left on a disk.
_RESERVE_BYTES = 64 << 20
_OWN_KEYS = frozenset(
    ("number", "job_id", "failure", "parents", "absent_parents", "folder", "dropped_environ", "result", "call")
)
_RUN_TIMES = ("started", "ended")


# --- lines ------------------------------------------------------------------------------------------------------------


class Lines:
    """JSON lines in a temporary file, with their checksum."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="balsam-")
        self._hash = hashlib.sha256()
        self.lines = self.size = 0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def put(self, row: Mapping[str, Any]) -> None:
        data = _encoded(row).encode() + b"\n"
        self._file.write(data)
        self._hash.update(data)
        self.lines += 1
        self.size += len(data)

    def rewound(self) -> IO[bytes]:
        self._file.seek(0)
        return self._file

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(json.loads, self.rewound())

    def described(self) -> dict[str, Any]:
        return {"lines": self.lines, "bytes": self.size, "sha256": self._hash.hexdigest()}


#: ASCII only: a path that is not UTF-8 is kept as it is. One encoder, as `json.dumps` creates a new one at each call.
_encoded = json.JSONEncoder(allow_nan=False, separators=(", ", ": ")).encode


class Hashing(io.RawIOBase):
    """A file whose bytes are hashed as they are read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.hash, self.size = file, hashlib.sha256(), 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.hash.update(data)
        self.size += len(data)
        return data


# --- reading ----------------------------------------------------------------------------------------------------------


class Archive:
    """An open archive: its manifest, and its tables in checked temporary files. Scripts and files can be read once.

    The temporary files have no names, so that a process that is killed leaves none.
    """

    def __init__(self, path: str, members: Iterator[Member], stack: ExitStack) -> None:
        self.path = os.path.abspath(path)
        self._members = members
        self._tables = {name: stack.enter_context(tempfile.TemporaryFile(prefix="balsam-")) for name in TABLES}
        self._waiting: Member | None = None
        self.manifest = self._read_manifest()
        for name in TABLES:
            self._read_table(name)

    def _refuse(self, why: str, hint: str = "") -> ArchiveError:
        return ArchiveError(f"{self.path}: {why}", hint=hint)

    def _next(self) -> Member | None:
        member = self._waiting or next(self._members, None)
        self._waiting = None
        return member

    def _read_manifest(self) -> dict[str, Any]:
        member = self._next()
        if member is None or member.name != containers.MARK:
            raise self._refuse(f"it is no archive of balsam: its first file is not {containers.MARK}")
        try:
            found = json.loads(_read_at_most(member, _MAX_MANIFEST_BYTES))
            if found["format"] != FORMAT:
                raise self._refuse(f"its format is {found['format']!r}, not {FORMAT!r}")
            version = int(found["format_version"])
            if version > VERSION:
                raise self._refuse(
                    f"its format has version {version}, which {found.get('program')} wrote; this one knows up to {VERSION}",
                    "Use a newer balsam_lite.",
                )
            for name in TABLES:
                described = found["tables"][name]
                if not isinstance(described["sha256"], str) or int(described["bytes"]) < 0 or int(described["lines"]) < 0:
                    raise ValueError(name)
            us_of_iso(found["written"])
            if not all(isinstance(found[key], str) for key in ("host", "directory", "db_id")):
                raise ValueError("host, directory or db_id")
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise self._refuse(f"its {containers.MARK} is damaged: {type(exc).__name__} {exc}") from exc
        return dict(found)

    def _read_table(self, name: str) -> None:
        expected = self.manifest["tables"][name]
        member = self._next()
        if member is None or member.name != f"{name}.jsonl":
            raise self._refuse(f"it is cut: there is no {name}.jsonl")
        if member.size != expected["bytes"]:
            raise self._refuse(f"{name}.jsonl has {member.size} bytes; its manifest tells {expected['bytes']}")
        refuse_size(tempfile.gettempdir(), member.size, name)
        hashing = Hashing(member.file)
        while data := hashing.read(1 << 20):
            self._tables[name].write(data)
        self._tables[name].flush()
        if hashing.size != member.size:
            raise self._refuse(f"it is cut in {name}.jsonl")
        if hashing.hash.hexdigest() != expected["sha256"]:
            raise self._refuse(f"{name}.jsonl is damaged: its checksum is wrong")

    def lines(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of a table, which several may read at once."""
        file = io.BufferedReader(_Reread(self._tables[name].fileno()), 1 << 16)
        number = 0
        while line := file.readline(_MAX_LINE_BYTES):
            number += 1
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as exc:
                raise self._refuse(f"line {number} of {name}.jsonl is no JSON: {exc}") from exc
            if not isinstance(row, dict):
                raise self._refuse(f"line {number} of {name}.jsonl is no object")
            yield row

    def contents(self) -> Iterator[Member]:
        """Yield scripts and files; each must be read to its end, or not at all, before the next one."""
        while (member := self._next()) is not None:
            if member.name.partition("/")[0] not in ("scripts", "files"):
                self._waiting = member
                return
            yield member

    def checksums(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of `files.jsonl`, after `contents`. Raises ArchiveError: the archive is cut."""
        member = self._next()
        while member is not None and member.name != "files.jsonl":  # such as the metadata of a crate
            member = self._next()
        if member is None:
            raise self._refuse("it is cut: there is no files.jsonl")
        for line in io.BufferedReader(_Raw(member.file)):
            yield json.loads(line)

    def foreign_jobs(self, given: Mapping[str, str] = {}) -> Iterator[ForeignJob]:
        """Yield the jobs with their history; `given` has values of environment variables that were dropped."""
        of_job = {name: _ByJob(self, name) for name in ("events", "runs", "edits")}
        contexts: dict[Any, bytes] = {}
        for row in self.lines("jobs"):
            try:
                job = _foreign_job(row, {name: rows.of(row["number"]) for name, rows in of_job.items()}, given)
                yield job._replace(call=_foreign_call(row["call"], contexts)) if "call" in row else job
            except (KeyError, TypeError, ValueError, AttributeError) as exc:
                if isinstance(exc, InputError):
                    raise
                raise self._refuse(f"job {row.get('number')} is damaged: {type(exc).__name__} {exc}") from exc
        for rows in of_job.values():
            rows.refuse_rest()


class _Raw(io.RawIOBase):
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Reread(io.RawIOBase):
    """A file that is open already, read from its beginning at a separate position."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._position = descriptor, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self._descriptor, len(buffer), self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


class _ByJob:
    """The rows of a table by job, read along with the jobs."""

    def __init__(self, archive: Archive, name: str) -> None:
        self._archive, self._name = archive, name
        self._groups = groupby(archive.lines(name), key=itemgetter("job"))
        self._ahead: tuple[Any, list[dict[str, Any]]] | None = None

    def of(self, job: int) -> list[dict[str, Any]]:
        if self._ahead is None:
            found = next(self._groups, None)
            self._ahead = (found[0], list(found[1])) if found else (None, [])
        if self._ahead[0] != job:
            return []
        rows = self._ahead[1]
        self._ahead = None
        return rows

    def refuse_rest(self) -> None:
        self.of(0)
        if self._ahead and self._ahead[0] is not None:
            raise ArchiveError(f"{self._archive.path}: {self._name}.jsonl has rows of the job {self._ahead[0]}, out of order.")


def _foreign_job(row: dict[str, Any], parts: Mapping[str, list[dict[str, Any]]], given: Mapping[str, str]) -> ForeignJob:
    fields = {name: value for name, value in row.items() if name not in _OWN_KEYS}
    for name in ("created", "start_after", "told_to_stop"):
        if name in fields:
            fields[name] = us_of_iso(fields[name])
    values = {name: given[name] for name in row.get("dropped_environ", ()) if name in given}
    if values:
        fields["environ_vars"] = {**fields.get("environ_vars", {}), **values}
    events = [
        ForeignEvent(us_of_iso(event["time"]), event["from"], event["to"], event.get("message", ""), event.get("data"))
        for event in parts["events"]
    ]
    runs = [{**run, **{name: us_of_iso(run[name]) for name in _RUN_TIMES if name in run}} for run in parts["runs"]]
    return ForeignJob(
        row["number"], row["job_id"], fields, row.get("failure", ""), events, runs, list(map(_foreign_edit, parts["edits"])),
        row.get("parents", ()), row.get("absent_parents", ()), row.get("folder", ""),
    )  # fmt: skip


def _foreign_call(call: Mapping[str, Any], contexts: dict[Any, bytes]) -> ForeignCall:
    number = call["context"]
    if "content" in call:
        contexts[number] = b64decode(call["content"], validate=True)
    result = b64decode(call["result"], validate=True) if "result" in call else None
    return ForeignCall(contexts[number], b64decode(call["payload"], validate=True), result)


def _foreign_edit(edit: Mapping[str, Any]) -> ForeignEdit:
    field = edit["field"]

    def stored(value: Any) -> Any:
        if "." in field:
            return None if value is None else json.dumps(value)
        return int(value) if isinstance(value, bool) else value

    return ForeignEdit(
        us_of_iso(edit["timestamp"]), edit["user"], edit["host"], edit["command"], "modify", field, edit["attempt"],
        stored(edit["old"]), stored(edit["new"]),
    )  # fmt: skip


_ISO = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d):(\d\d)\.(\d{6})Z")


def us_of_iso(text: str) -> int:
    """Return the microseconds of a time as `clock.iso_us` writes it. Raises ValueError.

    >>> us_of_iso("2018-10-03T19:04:00.143928Z")
    1538593440143928
    """
    found = _ISO.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no time such as 2018-10-03T19:04:00.143928Z")
    return _minute(found[1]) + int(found[2]) * SECOND_US + int(found[3])


@lru_cache(maxsize=4096)
def _minute(text: str) -> int:
    moment = datetime.strptime(text, "%Y-%m-%dT%H:%M").replace(tzinfo=timezone.utc)
    return int(moment.timestamp()) * SECOND_US


def _read_at_most(member: Member, most: int) -> bytes:
    if member.size > most:
        raise ArchiveError(f"{member.name} has {member.size} bytes; at most {most} are read.")
    return member.file.read(member.size)


def refuse_size(folder: str, size: int, name: str) -> None:
    """Raise DatabaseFull if the disk has no room for that many bytes: a small archive may hold huge files."""
    status = os.statvfs(existing(folder))
    free = status.f_bavail * status.f_frsize
    if size > free - _RESERVE_BYTES:
        raise DatabaseFull(f"{name} has {size} bytes, and {existing(folder)} has {free} bytes free; nothing was imported.")


@contextmanager
def open_archive(path: str) -> Iterator[Archive]:
    """Open an archive, and check its tables.

    Raises:
        InputError: there is none. ArchiveError: it is damaged, cut, of a newer version, or refused as unsafe. DatabaseFull.
    """
    with ExitStack() as stack, containers.read(path) as members:
        yield Archive(path, members, stack)


def is_below(path: str, directory: str) -> bool:
    """Return whether a path, with its links resolved, is below a directory."""
    return os.path.realpath(path).startswith(os.path.join(os.path.realpath(directory), ""))
