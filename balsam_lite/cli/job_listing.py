"""How the jobs of one or several sites are printed by `balsam job ls`, page by page, however many there are."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from ..core import field_specs, states
from ..core.clock import iso_us
from ..db.engine.registry import SiteEntry
from ..sites.interface import Row
from . import output

#: A job, and the site that has it.
Found = tuple[SiteEntry, Row]

#: So many jobs are asked for at once, and so many where the events of each are wanted, too.
PAGE, HISTORY_PAGE = 5000, 500

_TABLE = ("ID", "Site", "App", "Workdir", "State", "Tags")
#: What the table shows of a job, and what is to be known of one whose history is told.
TABLE_FIELDS = ("id", "app", "workdir", "state", "tags")
HISTORY_FIELDS = ("id", "job_id", "name", "workdir", "created", "origin")
#: What the workshop's form of a job shows, in its order; the rest follows where it says anything.
_FORM = (
    "workdir", "tags", "data", "return_code", "num_nodes", "ranks_per_node", "threads_per_rank", "threads_per_core",
    "launch_params", "gpus_per_rank", "node_packing_count", "wall_time_min", "id", "app_id", "parent_ids", "batch_job_id",
    "last_update", "state",
)  # fmt: skip
#: Fields that have their own place, or are of no use to people.
_ELSEWHERE = (*_FORM, "parameters", "unfinished_parents")
_TIMES = ("last_update", "created", "start_after")


def every(
    first: Iterable[tuple[SiteEntry, list[Row]]], where: Mapping[str, Any], fields: Sequence[str], size: int
) -> Iterator[Found]:
    """All jobs that match, site by site; `first` has the first page of each, and the sites are asked for the others.

    Each page is a transaction of its own.

    Raises:
        BalsamError: a site does not answer any more.
    """
    from ..sites import fanout

    for entry, rows in first:
        while rows:
            yield from ((entry, row) for row in rows)
            rows = [] if len(rows) < size else fanout.open_site(entry).page(where, fields, rows[-1]["id"], size)


# --- the table --------------------------------------------------------------------------------------------------------


def table(found: Iterable[Found]) -> None:
    """Print the table of the workshop."""
    rows = ([job["id"], site.name, job["app"], job["workdir"], job["state"], job["tags"]] for site, job in found)
    sys.stdout.writelines(f"{line}\n" for line in output.padded(_TABLE, rows))


def counts(by_state: Mapping[str, int]) -> None:
    """Print a table of states and numbers."""
    rows = [(state, by_state[state]) for state in states.STATES if state in by_state]
    sys.stdout.writelines(f"{line}\n" for line in output.padded(("State", "Count"), rows))


# --- forms ------------------------------------------------------------------------------------------------------------


def forms(found: Iterable[Found]) -> None:
    """Print every field of each job as YAML; `---` and an empty line end each."""
    for site, job in found:
        sys.stdout.writelines(f"{line}\n" for line in form(site, job))


def form(site: SiteEntry, job: Row) -> Iterator[str]:
    """The lines of one job."""
    yield from output.yaml_lines({"site": site.name, **{name: _shown(name, job.get(name)) for name in _FORM}})
    yield from output.yaml_lines({name: _shown(name, value) for name, value in job.items() if _says_something(name, value)})
    yield f"deserialized parameters: {readable_parameters(job['parameters'])}"
    yield from ("---", "")


def readable_parameters(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters of a job; of those that JSON cannot hold (see `pyapps.run_function`) only the names."""
    return dict.fromkeys(parameters.get("names", ()), "(pickled)") if "__pickled__" in parameters else parameters


def _says_something(name: str, value: Any) -> bool:
    if name in _ELSEWHERE or value in ("", None) or value == {} or value == []:
        return False
    field = field_specs.JOB_FIELD.get(name)
    return field is None or value != field.default


def _shown(name: str, value: Any) -> Any:
    return iso_us(value) if name in _TIMES and value is not None else value


# --- histories --------------------------------------------------------------------------------------------------------


def histories(found: Iterable[Found]) -> None:
    """Print when each job entered each state, from its creation on."""
    for _, job, events in _with_events(found):
        sys.stdout.write(output.history(job["name"] or job["workdir"], job["job_id"], events) + "\n")


def history_objects(found: Iterable[Found]) -> Iterator[dict[str, Any]]:
    """The same for `--json`."""
    keys = ("timestamp", "from_state", "to_state", "message")
    for site, job, events in _with_events(found):
        yield {"id": job["id"], "site": site.name, "history": [dict(zip(keys, event)) for event in events]}


#: When, from which state, to which, and what was said.
_Event = tuple[int, str, str, str]


def _with_events(found: Iterable[Found]) -> Iterator[tuple[SiteEntry, Row, list[_Event]]]:
    source = iter(found)
    while True:
        some = list(islice(source, HISTORY_PAGE))
        if not some:
            return
        events = _events(some)
        for site, job in some:
            created = (job["created"], "", states.CREATED, job["origin"])
            yield site, job, [created, *events[site].get(job["id"], ())]


def _events(jobs: Iterable[Found]) -> dict[SiteEntry, dict[int, list[_Event]]]:
    """The events of these jobs in the order in which they happened."""
    from ..sites import fanout

    by_site: dict[SiteEntry, dict[int, list[_Event]]] = {}
    for site, job in jobs:
        by_site.setdefault(site, {})[job["id"]] = []
    for site, of_job in by_site.items():
        for event in fanout.open_site(site).select("event", {"job_id": list(of_job)}, "id"):
            message = event["data"].get("message") or event["data"].get("error") or ""
            of_job[event["job_id"]].append((event["timestamp"], event["from_state"], event["to_state"], str(message)))
    return by_site


# --- JSON -------------------------------------------------------------------------------------------------------------


def objects(found: Iterable[Found]) -> Iterator[dict[str, Any]]:
    """The jobs as the sites give them, and the names of their sites."""
    for site, job in found:
        yield {"site": site.name, **job}
