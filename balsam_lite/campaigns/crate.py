"""The metadata that make an archive a Workflow Run RO-Crate.

It conforms to RO-Crate 1.1 (https://w3id.org/ro/crate/1.1) and the profiles Process Run Crate 0.5 and Workflow Run Crate 0.5
(https://www.researchobject.org/workflow-run-crate/profiles/): `jobs.jsonl` is the workflow, applications are the tools, and
each attempt of a job is a CreateAction. Readers of crates keep all metadata in memory. Therefore more than `MAX_ACTIONS`
attempts are summed up by workflow, application and result, and more than `MAX_FILES` files by their directories.
"""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from .. import __version__
from ..core import states
from ..core.clock import iso_us
from ..db.query.full_records import FullRecord
from ..db.query.runs import Run

MAX_ACTIONS, MAX_FILES = 10_000, 10_000
_MAX_GROUPS = 1000
#: Parameters of a job that are named.
_MAX_PARAMETERS = 50
FILE_NAME = "ro-crate-metadata.json"
CONTEXT = ["https://w3id.org/ro/crate/1.1/context", "https://w3id.org/ro/terms/workflow-run/context"]
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": ("Workflow RO-Crate", "1.0"),
}
_MEANINGS = {
    "manifest.json": "Where the jobs come from, and checksums of the tables",
    "apps.jsonl": "Applications of the jobs, one JSON object a line",
    "jobs.jsonl": "Jobs with their parameters and dependencies, one JSON object a line",
    "events.jsonl": "Changes of the jobs' states, one JSON object a line",
    "runs.jsonl": "Attempts of the jobs: node, time, result, CPU and memory, one JSON object a line",
    "edits.jsonl": "Changes of jobs' fields by users, one JSON object a line",
    "files.jsonl": "Sizes and checksums of the files, one JSON object a line",
}
_DONE, _FAILED, _ACTIVE = (f"http://schema.org/{name}ActionStatus" for name in ("Completed", "Failed", "Active"))
_LANGUAGE, _WORKFLOW = "https://balsam-lite.example.org", "jobs.jsonl"

Entity = dict[str, Any]


def _ref(name: str) -> Entity:
    return {"@id": name}


def _refs(key: str, entities: Sequence[Entity]) -> Entity:
    """Return a property that names these entities: as RO-Crate recommends, one as a single value."""
    refs = [_ref(entity["@id"]) for entity in entities]
    return {key: refs if len(refs) > 1 else refs[0]} if refs else {}


def _path(name: str) -> str:
    """Return the id of a file: its path with the characters quoted that a URI cannot have."""
    return quote(name.encode("utf-8", "surrogateescape"), safe="/!$&'()*+,;=:@-._~")


class Crate:
    """Collects what the metadata tell of the jobs."""

    def __init__(self) -> None:
        self._actions: list[Entity] | None = []
        self._values: list[Entity] = []
        self._of_folder: dict[str, str] = {}  # -> id of the last action
        self._groups: dict[tuple[str, ...], Entity] = {}
        self._started: int | None = None
        self._ended: int | None = None
        self._workflows: set[str] = set()
        self._has_failed = self._is_active = False
        self.jobs = 0

    def add(self, records: Iterable[FullRecord]) -> None:
        """Take in jobs with their attempts."""
        for record in records:
            self.jobs += 1
            if len(self._workflows) < _MAX_GROUPS:
                self._workflows.add(record.fields["workflow"])
            for run in record.runs:
                self._add_run(record, run)
            if self._actions is not None and len(self._actions) > MAX_ACTIONS:
                self._actions, self._values, self._of_folder = None, [], {}

    def _add_run(self, record: FullRecord, run: Run) -> None:
        status = _status_of(record, run)
        self._has_failed |= status == _FAILED
        self._is_active |= status == _ACTIVE
        if run.started_us is not None:
            self._started = min(run.started_us, self._started or run.started_us)
        if run.ended_us is not None:
            self._ended = max(run.ended_us, self._ended or run.ended_us)
        self._add_to_group(record, run, status)
        if self._actions is None:
            return
        action = f"#job-{record.number}-attempt-{run.attempt}"
        name = record.fields["name"] or f"#{record.number}"
        entity = {
            "@id": action,
            "@type": "CreateAction",
            "name": f"Attempt {run.attempt} of job {name}",
            "actionStatus": status,
            "instrument": _ref(_app_id(record.fields["application"])),
            "identifier": record.job_id,
            "description": _described(record, run),
            **_times(run.started_us, run.ended_us),
        }
        if status == _FAILED:
            entity["error"] = run.cause or record.failure or f"return code {run.return_code}"
        given = [*json.loads(record.fields["parameters"]).items()][:_MAX_PARAMETERS]
        values = [
            {"@id": f"{action}-{quote(key)}", "@type": "PropertyValue", "name": key, "value": _plain(value)}
            for key, value in given
        ]
        entity.update(_refs("object", values))
        self._values += values
        self._actions.append(entity)
        self._of_folder[record.fields["workdir"]] = action

    def _add_to_group(self, record: FullRecord, run: Run, status: str) -> None:
        key: tuple[str, ...] = (record.fields["workflow"], record.fields["application"], status)
        if key not in self._groups and len(self._groups) >= _MAX_GROUPS:
            key = ("", record.fields["application"], status)
        group = self._groups.setdefault(key, {"attempts": 0, "started": None, "ended": None})
        group["attempts"] += 1
        if run.started_us is not None:
            group["started"] = min(run.started_us, group["started"] or run.started_us)
        if run.ended_us is not None:
            group["ended"] = max(run.ended_us, group["ended"] or run.ended_us)

    def _all_actions(self) -> list[Entity]:
        if self._actions is not None:
            return self._actions
        return [
            {
                "@id": f"#attempts-{number}",
                "@type": "CreateAction",
                "actionStatus": status,
                "instrument": _ref(_app_id(app)),
                "name": f"{group['attempts']} attempts of jobs of the workflow {workflow or '(any other)'}",
                "description": f"The table runs.jsonl has each of the {group['attempts']} attempts",
                **({"error": "See the table runs.jsonl"} if status == _FAILED else {}),
                **_times(group["started"], group["ended"]),
            }
            for number, ((workflow, app, status), group) in enumerate(self._groups.items(), 1)
        ]

    def metadata(
        self, manifest: Mapping[str, Any], apps: Iterable[Mapping[str, Any]], files: Iterable[Mapping[str, Any]]
    ) -> bytes:
        """Return the content of `ro-crate-metadata.json`."""
        actions = self._all_actions()
        parts = list(self._files(files))
        tools = [_tool(app) for app in apps]
        known = {tool["@id"] for tool in tools}
        used = {action["instrument"]["@id"] for action in actions}
        tools += [{"@id": one, "@type": "SoftwareApplication", "name": "(not registered)"} for one in sorted(used - known)]
        names = ", ".join(sorted(filter(None, self._workflows))[:5]) or "jobs"
        name = f"Jobs of {names}" + ", …" * (len(self._workflows) > 5)
        status = _ACTIVE if self._is_active else _FAILED if self._has_failed else _DONE
        whole = {
            "@id": "#run",
            "@type": "CreateAction",
            "name": f"Run of {name}",
            "instrument": _ref(_WORKFLOW),
            "actionStatus": status,
            "description": "The run of these jobs by the launchers of balsam_lite",
            **_refs("object", self._values),
            **_refs("result", [part for part in parts if part["@id"].startswith("files/")]),
            **({"error": "Some jobs failed; see runs.jsonl"} if status == _FAILED else {}),
            **_times(self._started, self._ended),
        }
        graph: list[Entity] = [
            {
                "@id": FILE_NAME,
                "@type": "CreativeWork",
                "about": _ref("./"),
                "conformsTo": [
                    _ref("https://w3id.org/ro/crate/1.1"),
                    _ref("https://w3id.org/workflowhub/workflow-ro-crate/1.0"),
                ],
            },
            {
                "@id": "./",
                "@type": "Dataset",
                "name": name,
                "datePublished": manifest["written"],
                "description": f"{self.jobs} jobs of a Balsam DB on {manifest['host']}, with their history and results",
                "license": _ref("#license"),
                "author": _ref("#user"),
                "mainEntity": _ref(_WORKFLOW),
                "conformsTo": [_ref(one) for one in PROFILES],
                "hasPart": [_ref(part["@id"]) for part in parts],
                "mentions": [_ref(action["@id"]) for action in (whole, *actions)],
            },
            *(
                {"@id": one, "@type": "CreativeWork", "name": title, "version": version}
                for one, (title, version) in PROFILES.items()
            ),
            {"@id": "#license", "@type": "CreativeWork", "name": "No license is stated", "description": "Ask the authors."},
            {
                "@id": _LANGUAGE,
                "@type": "ComputerLanguage",
                "name": "balsam_lite jobs",
                "alternateName": "balsam_lite",
                "identifier": _ref(_LANGUAGE),
                "url": _ref(_LANGUAGE),
                "version": __version__,
            },
            {"@id": "#user", "@type": "Person", "name": manifest["user"]},
            *parts,
            *tools,
            whole,
            *actions,
            *self._values,
        ]
        for action in (whole, *actions):
            action["agent"] = _ref("#user")
        for part in parts:
            if part["@id"] == _WORKFLOW:
                part.update(
                    {
                        "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow"],
                        "name": name,
                        "programmingLanguage": _ref(_LANGUAGE),
                        "version": "1",
                        "hasPart": [_ref(tool["@id"]) for tool in tools],
                    }
                )
        return json.dumps({"@context": CONTEXT, "@graph": graph}, indent=1).encode() + b"\n"

    def _files(self, files: Iterable[Mapping[str, Any]]) -> Iterator[Entity]:
        """Yield the entities of all files, and enter those of an action as its results."""
        for name, meaning in _MEANINGS.items():
            kind = "application/json" if name.endswith(".json") else "application/jsonl"
            yield {"@id": name, "@type": "File", "name": name, "description": meaning, "encodingFormat": kind}
        by_id = {action["@id"]: action for action in self._actions or ()}
        found: list[Entity] = []
        results: dict[str, list[Entity]] = {}
        tops: set[str] = set()
        for file in files:
            name = str(file["name"])
            tops.add("/".join(name.split("/")[:2]) if name.count("/") > 1 else name.split("/")[0])
            if len(found) <= MAX_FILES:
                entity = {"@id": _path(name), "@type": "File", "name": name.rpartition("/")[2]}
                kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
                found.append({**entity, "encodingFormat": kind, "contentSize": str(file["bytes"]), "sha256": file["sha256"]})
                action = by_id.get(self._action_of(name))
                if action is not None:
                    results.setdefault(action["@id"], []).append(found[-1])
        if len(found) <= MAX_FILES:
            for one, its in results.items():
                by_id[one].update(_refs("result", its))
            yield from found
            return
        for top in sorted(tops)[:MAX_FILES]:
            yield {"@id": f"{_path(top)}/", "@type": "Dataset", "name": top, "description": "files.jsonl lists the files"}

    def _action_of(self, name: str) -> str:
        parts = name.split("/")[1:-1]
        for length in range(len(parts), 0, -1):
            action = self._of_folder.get("/".join(parts[:length]))
            if action:
                return action
        return ""


def _app_id(name: str) -> str:
    return f"#application-{quote(name)}"


def _tool(app: Mapping[str, Any]) -> Entity:
    """Return an application as the entity of a tool. Secret values are in its environment alone, which is left out."""
    line = app["executable"] or app["command_template"] or app["definition"]
    entity = {"@id": _app_id(app["name"]), "@type": "SoftwareApplication", "name": app["name"]}
    return {**entity, "description": " ".join(filter(None, (app["description"], f"Command: {line}")))}


def _status_of(record: FullRecord, run: Run) -> str:
    if run.ended_us is None:
        return _ACTIVE
    is_last = run.attempt == record.fields["attempt"]
    if is_last and record.fields["state"] in (states.JOB_FINISHED, states.RUN_DONE, states.POSTPROCESSED):
        return _DONE
    return _DONE if run.return_code == 0 and not run.cause and not (is_last and record.failure) else _FAILED


def _described(record: FullRecord, run: Run) -> str:
    facts = {
        "arguments": record.fields["args"],
        "state of the job": record.fields["state"],
        "nodes": run.nodes,
        "GPUs": run.gpus,
        "return code": run.return_code,
        "CPU seconds": None if run.user_us is None else (run.user_us + (run.system_us or 0)) / 1e6,
        "peak memory in bytes": run.max_memory,
    }
    return "; ".join(f"{name}: {value}" for name, value in facts.items() if value not in (None, ""))


def _times(started: int | None, ended: int | None) -> Entity:
    """Return times in the form that the profile's checks take: milliseconds and an offset."""
    times = {"startTime": started, "endTime": ended}
    return {name: f"{iso_us(us)[:-4]}+00:00" for name, us in times.items() if us is not None}


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool)) else json.dumps(value)
