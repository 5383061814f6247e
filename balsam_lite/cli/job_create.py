"""What `balsam job create` checks and shows before it asks. Nothing here writes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from .. import spec
from ..db.registry import Entry
from ..errors import InvalidSpec, UnknownApp, UnknownJob
from ..sites.desk import Desk, Row
from . import layout
from .common import pairs

#: Options of NAME=VALUE words.
_PAIRS = {"tags": "--tag", "parameters": "--param", "launch_params": "--launch-param", "environ_vars": "--env"}
#: What the workshop's form of a new job shows, in its order.
_FORM = (
    "workdir", "tags", "data", "return_code", "num_nodes", "ranks_per_node", "threads_per_rank", "threads_per_core",
    "launch_params", "gpus_per_rank", "node_packing_count", "wall_time_min", "app_id", "site_name", "parameters", "parent_ids",
)  # fmt: skip
#: Shown where it is given, as the workshop does not know it.
_BESIDE = ("name", "workflow", "environ_vars", "priority")


def checked(desk: Desk, app: str, values: Mapping[str, Any]) -> tuple[Row, Row]:
    """The job to create, as a desk takes it, and its application.

    Raises:
        InvalidSpec: a word without `=`, a directory outside of `data/`, parameters that are missing or too many. UnknownApp,
        UnknownJob.
    """
    job = {name: value for name, value in values.items() if name not in _PAIRS}
    job.update({name: pairs(values[name], as_typed) for name, as_typed in _PAIRS.items()})
    job.update({"parent_ids": sorted(set(job["parent_ids"])), "workdir": _workdir(job["workdir"])})
    job["gpus_per_rank"] = spec.checked(spec.JOB_FIELD["gpus_per_rank"], job["gpus_per_rank"])
    application = _application(desk, app)
    _check_parameters(application, job["parameters"])
    _check_parents(desk, job["parent_ids"])
    return {**job, "app_id": application["id"]}, application


def preview(site: Entry, job: Row, application: Row) -> Iterator[str]:
    """The job as YAML."""
    shown = {"data": {}, "return_code": None, "site_name": site.name, **job}
    yield from layout.yaml_lines({name: shown[name] for name in _FORM})
    yield from layout.yaml_lines({name: shown[name] for name in _BESIDE if shown[name]})


def _workdir(workdir: str) -> str:
    if workdir.startswith("/"):
        raise InvalidSpec(
            f"workdir must be a relative path: cannot start with '/', as {workdir!r} does",
            hint="It is a directory below the site's data/.",
        )
    return spec.checked_workdir(workdir)


def _application(desk: Desk, app: str) -> Row:
    where = {"id": int(app)} if app.isdecimal() else {"name": app}
    found = desk.select("app", where)
    if found:
        return found[0]
    known = ", ".join(one["name"] for one in desk.select("app", stop=20)) or "none yet"
    raise UnknownApp(f"No App matching criteria {where} on site {desk.entry.name}", hint=f"Known there are: {known}")


def _check_parameters(application: Row, given: Collection[str]) -> None:
    if application["kind"] == "command":
        return  # a command line without places for parameters; its jobs may carry some for their scripts
    known = application["parameters"]
    missing = [name for name, rule in known.items() if rule.get("required") and name not in given]
    if missing:
        raise InvalidSpec(f"Missing required parameters (-p): {_set(missing)}", hint=_usage(application))
    extra = [name for name in given if name not in known]
    if extra and not application["definition"].get("open"):  # `run` that takes whatever there is
        raise InvalidSpec(f"Extraneous parameters (-p): {_set(extra)}", hint=_usage(application))


def _set(names: Collection[str]) -> str:
    return f"{{{', '.join(map(repr, sorted(names)))}}}"


def _usage(application: Row) -> str:
    words = []
    for name, rule in application["parameters"].items():
        word = f"-p {name}=…"
        words.append(word if rule.get("required") else f"[{word}]")
    return f"{application['name']} takes: {' '.join(words) or 'none'}"


def _check_parents(desk: Desk, numbers: list[int]) -> None:
    if numbers:
        known = {job["id"] for job in desk.select("job", {"id": numbers})}
        missing = [one for one in numbers if one not in known]
        if missing:
            raise UnknownJob(f"Could not find parent job ids {missing} on site {desk.entry.name}")
