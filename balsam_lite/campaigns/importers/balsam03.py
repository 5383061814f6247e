"""Read a DB of Balsam 0.3: from its PostgreSQL server, from an SQLite file, or from the JSON of Django's `dumpdata`.

Source: Balsam 0.3.8, `balsam/core/models.py`, `balsam/django_config`. The tables are `core_balsamjob` and
`core_applicationdefinition`. The states are the same fourteen. `state_history` has a line
`[MM-DD-YYYY HH:MM:SS.ffffff STATE] message` for each change of state, in UTC (`TIME_ZONE` of its settings); a message may have
several lines. States that were passed through, and the return to RESTART_READY after a launcher's death, have no line.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

from ...core import causes, field_specs, states, subprocess_run
from ...core.errors import BalsamError, InputError, InvalidSpec
from ...db.engine import foreign_file
from ...db.store import runs
from ...db.store.graph import PARENT_FAILED
from ...db.store.merge import ForeignEvent, ForeignJob
from .source_content import SourceContent, SourceOptions, origin_of

_JOBS, _APPS = "balsamjob", "applicationdefinition"
#: The file in the directory of a DB that names the host and the port of its server, and the database there.
_SERVER_INFO, _DATABASE = "server-info", "balsam"
_URL = re.compile(r"postgres(ql)?://")
_PSQL_TIMEOUT_S = 3600.0
_ENTRY = re.compile(rf"^\[(\d+-\d+-\d{{4}}\s+\d+:\d+:\d+\.\d+)\s+({'|'.join(states.STATES)})\s*\]", re.MULTILINE)
_TIME_FORMAT = "%m-%d-%Y %H:%M:%S.%f"
#: What a run becomes that ended in this state: the cause, and the return code if it is certain.
_ENDS: dict[str, tuple[str, int | None]] = {
    states.RUN_DONE: ("", 0),
    states.RUN_ERROR: ("", None),
    states.RUN_TIMEOUT: (runs.TOLD_TO_STOP, None),
    states.USER_KILLED: (runs.KILLED, None),
}
#: Between the objects of a list.
_BETWEEN = re.compile(r"[,\s]*")
_COPIED = (
    "workflow", "name", "description", "input_files", "stage_in_url", "stage_out_files", "stage_out_url", "application", "args",
    "wait_for_parents", "post_error_handler", "post_timeout_handler", "auto_timeout_retry",
)  # fmt: skip
#: Balsam 0.3 checked no number: 0 and less count as the least number that means something.
_COUNTS = {
    "wall_time_minutes": 1, "num_nodes": 1, "coschedule_num_nodes": 0, "ranks_per_node": 1, "threads_per_rank": 1,
    "threads_per_core": 1, "node_packing_count": 1,
}  # fmt: skip
_APP_FIELDS = ("name", "description", "executable", "preprocess", "envscript", "postprocess")

#: Yields the rows of a table, which is named by the end of its name.
_Rows = Callable[[str], Iterator[dict[str, Any]]]


def read(path: str, options: SourceOptions) -> SourceContent:
    """Return the content of a DB of Balsam 0.3.

    Args:
        path: the directory of the DB, whose server must run; a URL postgresql://…; an SQLite file; or a JSON file.

    Raises:
        InputError: it is none of these, or cannot be read; also while the jobs are iterated.
    """
    directory = os.path.abspath(options.directory) if options.directory else ""
    host = ""
    if _URL.match(path):
        rows: _Rows = _Server(path).rows
    elif os.path.isdir(path):
        directory = directory or os.path.abspath(path)
        url, host = _url_of(path)
        rows = _Server(url).rows
    else:
        try:
            is_sqlite = foreign_file.is_sqlite(path)
        except OSError as exc:
            raise InputError(f"{path} cannot be read: {exc.strerror}") from None
        rows = (lambda table: foreign_file.rows(path, table)) if is_sqlite else _Dump(path).rows
        above = os.path.dirname(os.path.abspath(path))
        directory = directory or (above if os.path.isdir(os.path.join(above, "data")) else "")
    numbers = {_uuid(row["job_id"]).int: number for number, row in enumerate(rows(_JOBS), 1)}
    apps = [_app(row) for row in rows(_APPS)]
    jobs = _Jobs(rows, numbers, directory, options)
    return SourceContent(jobs, apps, origin_of("balsam03", path, directory, host), len(numbers))


# --- where the rows come from -----------------------------------------------------------------------------------------


def _url_of(directory: str) -> tuple[str, str]:
    """Return the URL of the server of a DB, and its host."""
    path = os.path.join(directory, _SERVER_INFO)
    try:
        with open(path, encoding="utf-8") as file:
            info = json.load(file)
        host, port = info["host"], info["port"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise InputError(f"{directory} is no DB of Balsam 0.3: {path} cannot be read: {exc}") from None
    if not host or not port:
        raise InputError(
            f"The server of the Balsam DB {directory} does not run.",
            hint="Balsam 0.3 starts it: `source balsamactivate DB`. Or import the file that this makes: "
            "`python -c 'from balsam import setup; setup(); from django.core.management import call_command; "
            'call_command("dumpdata", "core", output="dump.json")\'`.',
        )
    return f"postgresql://{host}:{port}/{_DATABASE}", str(host)


class _Server:
    """A PostgreSQL server, asked by psql, which comes with it."""

    def __init__(self, url: str) -> None:
        self._url = url

    def rows(self, table: str) -> Iterator[dict[str, Any]]:
        with tempfile.NamedTemporaryFile(prefix="balsam-", suffix=".jsonl") as output:
            query = f"SELECT row_to_json(found) FROM core_{table} AS found"
            words = ["psql", "-X", "-At", "-w", "-v", "ON_ERROR_STOP=1", "-v", "FETCH_COUNT=1000", "-o", output.name]
            environ = {**os.environ, "PGCLIENTENCODING": "UTF8", "PGTZ": "UTC"}
            done = subprocess_run.run([*words, "-c", query, self._url], timeout_s=_PSQL_TIMEOUT_S, environ=environ)
            if not done.ok:
                raise InputError(
                    f"The PostgreSQL server at {_without_password(self._url)} cannot be read: {done.stderr.strip()}",
                    hint="psql must be on PATH. PGUSER and PGPASSWORD name a user who may read the tables of the DB.",
                )
            for line in output:
                yield json.loads(line)


def _without_password(url: str) -> str:
    return re.sub(r"(//[^:/@]*):[^@]*@", r"\1@", url)


class _Dump:
    """The JSON that Django's `dumpdata` prints: a list of objects with model, pk and fields. Read one object at a time."""

    _CHUNK = 1 << 20

    def __init__(self, path: str) -> None:
        self._path = path

    def rows(self, table: str) -> Iterator[dict[str, Any]]:
        for found in self._objects():
            try:
                model, key, fields = found["model"], found["pk"], found["fields"]
                if model.rpartition(".")[2] == table:
                    yield {("job_id" if table == _JOBS else "id"): key, **fields}
            except (TypeError, KeyError, AttributeError):
                raise InputError(f"{self._path} is no output of dumpdata: {str(found)[:80]}") from None

    def _objects(self) -> Iterator[Any]:
        decode = json.JSONDecoder().raw_decode
        with open(self._path, encoding="utf-8-sig") as file:
            try:
                text = file.read(self._CHUNK).lstrip()
                if not text.startswith("["):
                    raise InputError(f"{self._path} is no SQLite file and no output of dumpdata, which begins with [.")
                place = 1
                while True:
                    place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]  # it matches the empty text, too
                    if text.startswith("]", place):
                        return
                    try:
                        found, place = decode(text, place)
                    except json.JSONDecodeError as exc:
                        added = file.read(max(self._CHUNK, len(text) - place))
                        if not added:
                            shown = text[place : place + 60]
                            raise InputError(f"{self._path} is cut off, or no JSON: {exc.msg}: {shown!r}") from None
                        text, place = text[place:] + added, 0
                        continue
                    yield found
            except (UnicodeDecodeError, RecursionError) as exc:
                raise InputError(f"{self._path} cannot be read: {exc}") from None


# --- what becomes of them ---------------------------------------------------------------------------------------------


class _Jobs:
    """The jobs of a DB; each iteration reads them anew."""

    def __init__(self, rows: _Rows, numbers: Mapping[int, int], directory: str, options: SourceOptions) -> None:
        self._rows, self._numbers, self._directory = rows, numbers, directory
        self._workflow, self._zone, self._copies = options.workflow, options.zone or timezone.utc, options.copies_files

    def __iter__(self) -> Iterator[ForeignJob]:
        for row in self._rows(_JOBS):
            number = self._numbers.get(_uuid(row["job_id"]).int)
            if number is None:
                continue  # it was added since they were numbered
            try:
                yield self._job(number, row)
            except (BalsamError, ValueError, KeyError, TypeError) as exc:
                text = exc.message if isinstance(exc, BalsamError) else f"{type(exc).__name__} {exc}"
                raise InvalidSpec(f"The job {row.get('name')} [{str(row['job_id'])[:8]}] cannot be imported: {text}") from exc

    def _job(self, number: int, row: Mapping[str, Any]) -> ForeignJob:
        job_id = str(_uuid(row["job_id"]))
        state = states.check_state(row["state"])
        created_us, origin, events = self._history(row["state_history"] or "", state)
        fields: dict[str, Any] = {name: row[name] for name in _COPIED if row.get(name) is not None}
        fields.update((name, max(least, int(row[name]))) for name, least in _COUNTS.items() if row.get(name) is not None)
        fields.update(
            workflow=_label(fields.get("workflow") or self._workflow),
            name=_label(fields.get("name", "")),
            args=_splittable(fields.get("args", "")),
            cpu_affinity="depth" if row.get("cpu_affinity") == "depth" else "none",
            environ_vars=_environ(row.get("environ_vars") or ""),
            data=_object(row.get("data")),
            state=state,
            created=created_us,
            origin=origin,
        )
        found = _runs_of(events)
        if found:
            fields["attempt"] = len(found)
            fields["return_code"] = found[-1]["return_code"]
        folder = self._set_directory(fields, row, job_id)
        parents = [_uuid(one) for one in _list(row.get("parents"))]
        present = [self._numbers[one.int] for one in parents if one.int in self._numbers]
        if events and events[-1].message.startswith(PARENT_FAILED) and len(present) == 1:  # a rerun of the parent revives it
            events[-1] = events[-1]._replace(data={"parent": present[0]})
        return ForeignJob(
            number, job_id, fields, _cause(events) if state == states.FAILED else "", events, found,
            parents=present,
            absent_parents=[str(one) for one in parents if one.int not in self._numbers], folder=folder,
        )  # fmt: skip

    def _history(self, text: str, state: str) -> tuple[int, str, list[ForeignEvent]]:
        """Return when the job was created, the message about that, and its events."""
        entries = list(_ENTRY.finditer(text))
        created_us, origin, before, last_us = 0, "", states.CREATED, 0
        events: list[ForeignEvent] = []
        for entry, following in zip(entries, [*entries[1:], None]):
            message = text[entry.end() : following.start() if following else len(text)].strip()
            last_us = max(last_us, self._microseconds(entry[1]))
            if entry is entries[0]:
                created_us = last_us
                if entry[2] == states.CREATED:
                    origin = message
                    continue
            events.append(ForeignEvent(last_us, before, entry[2], message))
            before = entry[2]
        if before != state:
            events.append(ForeignEvent(last_us, before, state, "Balsam 0.3 has recorded no time for this"))
        return created_us, origin, events

    def _microseconds(self, text: str) -> int:
        try:  # five times faster than strptime
            found = datetime.fromisoformat(f"{text[6:10]}-{text[:5]}{text[10:]}").replace(tzinfo=self._zone)
        except ValueError:
            found = datetime.strptime(" ".join(text.split()), _TIME_FORMAT).replace(tzinfo=self._zone)
        since = found - datetime(1970, 1, 1, tzinfo=timezone.utc)
        return (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds

    def _set_directory(self, fields: dict[str, Any], row: Mapping[str, Any], job_id: str) -> str:
        """Set the directory of a job: where it was, as far as that exists. Return it if its files are to be copied.

        Balsam 0.3 computed it: `user_workdir` if that is a directory, else data/[workflow/]NAME_ID8, blanks of the name as `_`.
        """
        own = row.get("user_workdir") or ""
        if own and os.path.isdir(own):
            fields["user_workdir"] = own
            return ""
        if not self._directory:
            return ""
        name = f"{(row.get('name') or '').strip().replace(' ', '_')}_{job_id[:8]}"
        folder = os.path.join(self._directory, "data", row.get("workflow") or "", name)
        if not os.path.isdir(folder):
            return ""
        if self._copies:
            return folder
        fields["user_workdir"] = folder
        return ""


def _runs_of(events: list[ForeignEvent]) -> list[dict[str, Any]]:
    """Return the runs that a history records; one that has not ended has no `ended`."""
    found: list[dict[str, Any]] = []
    is_open = False
    for event in events:
        if is_open:
            cause, code = _ENDS.get(event.to_state, (runs.UNKNOWN, None))
            found[-1].update(ended=event.time_us, return_code=code, cause=cause)
        is_open = event.to_state == states.RUNNING
        if is_open:
            found.append({"attempt": len(found) + 1, "started": event.time_us, "return_code": None})
    return found


def _cause(events: list[ForeignEvent]) -> str:
    """Return the cause of a failure, from the last change of state and the one before."""
    before = events[-1].from_state if events else ""
    message = events[-1].message if events else ""
    if message.startswith(PARENT_FAILED):
        return causes.PARENT_FAILED
    if before == states.RUN_ERROR:
        return "nonzero exit code"
    if before == states.RUN_TIMEOUT:
        return causes.TOLD_TO_STOP
    return causes.of_message("step", message) if message else causes.UNKNOWN


def _app(row: Mapping[str, Any]) -> dict[str, Any]:
    app = {name: row[name] for name in _APP_FIELDS if row.get(name) is not None}
    app.update((name, _splittable(app.get(name, ""))) for name in ("executable", "preprocess", "postprocess"))
    return {**app, "name": _label(app.get("name", ""))}


def _uuid(value: Any) -> uuid.UUID:
    try:
        return uuid.UUID(str(value))
    except ValueError:
        raise InputError(f"A job has the id {value!r}, which is no UUID.") from None


def _label(text: str) -> str:
    """Return a name as one line of printable characters."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "_" for c in text)


def _splittable(line: str) -> str:
    """Return a command line whose quotes are closed: Balsam 0.3 also stored others, and split them at blanks."""
    try:
        field_specs.split_command(line)
    except ValueError:
        return shlex.join(line.split())
    return line


def _environ(text: str) -> dict[str, str]:
    """Return variables of the form A=x:B=y. What has no `=` belongs to the value before it, as in PATH=/a:/b."""
    start = re.search(r"[A-Za-z_]\w*=", text)
    return field_specs.parse_environ(text[start.start() :]) if start else {}


def _object(value: Any) -> dict[str, Any]:
    found = json.loads(value) if isinstance(value, str) else value
    return found if isinstance(found, dict) else {"data": found} if found else {}


def _list(text: Any) -> list[Any]:
    found = json.loads(text) if isinstance(text, str) and text else text or []
    return found if isinstance(found, list) else []
