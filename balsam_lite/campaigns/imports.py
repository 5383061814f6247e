"""Import the jobs of an archive into a DB; see `archive`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, NamedTuple

from ..core.errors import InputError
from ..db.engine import directories
from ..db.engine.connection import Database
from ..db.engine.filesystem import failure
from ..db.query import queries
from ..db.store.large_writes import Progress
from ..db.store.merge import Merged, MergeOptions, Origin, merge
from .archive import COMMANDS, Archive, Hashing, is_below, open_archive, refuse_size, us_of_iso
from .containers import ArchiveError, Member


class Imported(NamedTuple):
    """What was imported, or would be."""

    merged: Merged
    manifest: dict[str, Any]
    files: int
    written_us: int  # when the archive was
    missing_environ: dict[str, int]  # secret variables without a value -> jobs and applications
    scripts: list[str]  # that came along and were put into the DB's directory


def import_archive(
    db: Database,
    path: str,
    options: MergeOptions = MergeOptions(),
    *,
    environ: Mapping[str, str] = {},
    progress_of: Callable[[int], AbstractContextManager[Progress | None]] = lambda total: nullcontext(),
) -> Imported:
    """Merge the jobs of an archive into a DB that is at work, all or nothing; see `store.merge`.

    Args:
        environ: values of environment variables that the export dropped, for the jobs that had them.
        progress_of: takes a number of steps; its context gives what to call with each further number done.

    Raises:
        What `open_archive` and `merge` raise; InputError: a file is in the way.
    """
    with open_archive(path) as archive:
        placing = _Placing(db, archive, options)
        origin = Origin(
            "archive", archive.path, archive.manifest["host"], archive.manifest["directory"], archive.manifest["db_id"],
            us_of_iso(archive.manifest["written"]),
        )  # fmt: skip
        try:
            apps = [_app_here(app, archive.manifest["directory"], db.directory, environ) for app in archive.lines("apps")]
            with progress_of(2 * int(archive.manifest["tables"]["jobs"]["lines"])) as progress:
                jobs = archive.foreign_jobs(environ)
                done = merge(db, jobs, origin, apps, options, place_files=placing.place, progress=progress)
            if not options.dry_run and not done.added.number:
                placing.place({}, lambda: None)  # scripts of applications; and the rest is checked
        except BaseException:
            placing.undo()
            raise
    secrets = archive.manifest.get("secrets") or {}
    missing = {str(name): int(jobs) for name, jobs in secrets.items() if name not in environ}
    return Imported(done, archive.manifest, placing.files, origin.written_us or 0, missing, placing.scripts)


def _app_here(app: dict[str, Any], there: str, here: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return an application with the paths below the other DB's directory changed to those below this one's."""
    own = {name: value for name, value in app.items() if name not in ("dropped_environ", "scripts")}
    dropped = {name: environ[name] for name in app.get("dropped_environ", ()) if name in environ}
    if dropped:
        own["environ_vars"] = {**own.get("environ_vars", {}), **dropped}
    if there and there != here:
        for name in COMMANDS:
            if isinstance(own.get(name), str):
                own[name] = own[name].replace(os.path.join(there, ""), os.path.join(here, ""))
        definition = own.get("definition")
        if isinstance(definition, dict) and isinstance(definition.get("file"), str):
            own["definition"] = {
                **definition,
                "file": definition["file"].replace(os.path.join(there, ""), os.path.join(here, "")),
            }
    return own


class _Placing:
    """Puts the files of an archive in place, and removes them again if the import fails."""

    def __init__(self, db: Database, archive: Archive, options: MergeOptions) -> None:
        self._db, self._archive = db, archive
        self._data = os.path.join(db.directory, directories.DATA)
        self._created: list[str] = []  # files and directories, in order
        self.files = 0
        self.scripts: list[str] = []
        with db.read() as cx:
            here = {app["name"] for app in queries.apps(cx)}
        adds_all = options.on_differing_app == "rename"
        apps = [app for app in archive.lines("apps") if adds_all or app.get("name") not in here]
        self._wanted = {f"scripts/{name}" for app in apps for name in app.get("scripts", ())}

    def place(self, folders: Mapping[str, str], touch: Callable[[], None]) -> None:
        """Extract scripts, and files of these folders to the directories of their jobs; check all checksums.

        Raises:
            InputError: another file is in the way. ArchiveError: a checksum is wrong.
        """
        sums: dict[str, str] = {}
        for member in self._archive.contents():
            target = self._target(member.name, folders)
            hashing = Hashing(member.file)
            if target:
                try:
                    self._extract(member, hashing, target)
                except OSError as exc:
                    why = failure(exc, target, exc.strerror)
                    raise InputError(f"{target} cannot be written: {why}; nothing was imported.") from exc
                touch()
            while hashing.read(1 << 20):
                pass
            sums[member.name] = hashing.hash.hexdigest()
        for line in self._archive.checksums():
            if sums.pop(str(line.get("name")), None) != line.get("sha256"):
                raise ArchiveError(f"{self._archive.path}: {line.get('name')!r} is damaged or missing; nothing was imported.")
        if sums:
            raise ArchiveError(f"{self._archive.path}: {min(sums)!r} has no checksum; nothing was imported.")

    def _target(self, name: str, folders: Mapping[str, str]) -> str:
        """Return where a member comes to; "" if it is of a job or an application that is not added."""
        kind, _, rest = name.partition("/")
        if kind == "scripts":
            return os.path.join(self._db.directory, rest) if name in self._wanted else ""
        parts = rest.split("/")
        for length in range(len(parts) - 1, 0, -1):
            folder = folders.get("/".join(parts[:length]))
            if folder is not None:
                return os.path.join(self._data, folder, *parts[length:])
        return ""

    def _extract(self, member: Member, hashing: Hashing, target: str) -> None:
        refuse_size(os.path.dirname(target), member.size, member.name)
        top = os.path.realpath(self._db.directory)
        self._make_directories(os.path.dirname(target))
        if member.name.startswith("scripts/") and not is_below(os.path.join(os.path.dirname(target), "x"), top):
            raise ArchiveError(f"{self._archive.path}: {member.name!r} leads out of the DB's directory.")
        if os.path.basename(target).startswith(os.path.basename(self._db.path)) and os.path.dirname(target) == top:
            raise ArchiveError(f"{self._archive.path}: {member.name!r} would replace the DB itself.")
        handle, temporary = tempfile.mkstemp(prefix=".balsam-", dir=os.path.dirname(target))
        self._created.append(temporary)
        with open(handle, "wb") as file:
            while data := hashing.read(1 << 20):
                file.write(data)
            os.fchmod(file.fileno(), (member.mode | 0o600) & 0o777)
        if hashing.size != member.size:
            raise ArchiveError(f"{self._archive.path}: it is cut in {member.name!r}; nothing was imported.")
        os.utime(temporary, (member.mtime, member.mtime))
        if os.path.lexists(target):
            if os.path.islink(target) or not os.path.isfile(target) or not _is_same_file(temporary, target):
                raise InputError(
                    f"{target} is there already, and differs from the one in the archive; nothing was imported.",
                    hint="Move it away, or give --files-to another directory.",
                )
            os.unlink(temporary)
            self._created.pop()
        else:
            os.rename(temporary, target)
            self._created[-1] = target
        if member.name.startswith("scripts/"):
            self.scripts.append(target)
        else:
            self.files += 1

    def _make_directories(self, path: str) -> None:
        if not os.path.isdir(path):
            self._make_directories(os.path.dirname(path))
            os.mkdir(path)
            self._created.append(path)

    def undo(self) -> None:
        """Remove the files that were put in place; a directory that others use now stays."""
        for path in reversed(self._created):
            with suppress(OSError):
                if os.path.isdir(path) and not os.path.islink(path):
                    os.rmdir(path)
                else:
                    os.unlink(path)


def _is_same_file(one: str, other: str) -> bool:
    import filecmp

    return filecmp.cmp(one, other, shallow=False)
