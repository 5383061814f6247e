"""Read jobs with their runs and changes of state, of one or several sites, into packed columns: a million jobs take 100 MB."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from ..core import states
from ..core.clock import SECOND_US
from ..schedulers import hostlist
from ..sites.interface import SiteInterface

#: Changes of state are counted in bins of 2 ** n microseconds; n grows from the first number until there are no more counts.
_MIN_SHIFT, _MAX_COUNTS = 10, 30_000
#: What reports call the node of a run whose node was not recorded.
UNKNOWN_NODE = "node unknown"

#: Maximum number of jobs whose names are read.
MAX_NAMES = 500
CODES = {state: code for code, state in enumerate(states.STATES)}
#: The states in which runs ended by their causes (`db.store.runs`). RESTART_READY: when the run ended is not known.
_OUTCOMES = {
    "killed": states.USER_KILLED, "limit": states.RUN_TIMEOUT, "told to stop": states.RUN_TIMEOUT,
    **dict.fromkeys(("launcher died", "node lost", "unknown"), states.RESTART_READY),
}  # fmt: skip


class Window(NamedTuple):
    """The span of time that is shown; what happened outside of it is still taken into account."""

    start: int = 0
    end: int = 2**62


ALL = Window()


class Names:
    """Distinct values, each with a small number."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[Any, int] = {}

    def number(self, value: Any) -> int:
        """Return the number of a value, a new one if it is new."""
        found = self._numbers.get(value)
        if found is None:
            found = self._numbers[value] = len(self.values)
            self.values.append(value)
        return found

    def merge(self, other: Names, change: Callable[[Any], Any] = lambda value: value) -> list[int]:
        """Add the values of `other`. Return their numbers here."""
        return [self.number(change(value)) for value in other.values]


class Campaign:
    """The jobs of a plot or a report. Times are microseconds since the epoch, UTC; numbers refer to the lists of names."""

    def __init__(self, now_us: int, window: Window = ALL) -> None:
        self.now_us, self.window = now_us, window
        self.sites: list[str] = []
        self.groups, self.failures, self.node_lists = Names(), Names(), Names()  # (workflow, application); text; text
        # One item for each job.
        self.jobs, self.created = array("q"), array("q")
        self.states, self.group, self.failure = array("b"), array("i"), array("i")
        # One item for each run in the window.
        self.job, self.starts, self.ends = array("i"), array("q"), array("q")  # `job`: the place among the jobs
        self.outcomes, self.node_list, self.weights = array("b"), array("i"), array("d")
        self.waits, self.memory, self.cpu = array("q"), array("q"), array("q")  # -1: unknown
        #: (bin, code of the state left or -1, of the state entered) -> number of changes.
        self.changes: Counter[tuple[int, int, int]] = Counter()
        self.shift = _MIN_SHIFT
        self.parents, self.children = array("q"), array("q")  # of each dependency, as in `jobs`
        self.names: list[str] = []  # of the jobs, if they are few
        self.batch_jobs: list[tuple[int | None, int | None, int]] = []  # start, end, nodes

    # --- filling ------------------------------------------------------------------------------------------------------

    def add_runs(self, rows: Iterable[Any]) -> None:
        """Append a page of `campaign.runs` of one site."""
        window, now_us, last = self.window, self.now_us, self.jobs[-1] if self.jobs else 0
        place = len(self.jobs) - 1
        add_job, add_created, add_state = self.jobs.append, self.created.append, self.states.append
        add_group, add_failure = self.group.append, self.failure.append
        add_place, add_start, add_end, add_outcome = self.job.append, self.starts.append, self.ends.append, self.outcomes.append
        add_nodes, add_weight, add_wait = self.node_list.append, self.weights.append, self.waits.append
        add_memory, add_cpu = self.memory.append, self.cpu.append
        ends: dict[Any, int] = {}
        for (
            job, created, state, workflow, app, failure, weight, started, ended, code, cause, nodes, memory, cpu, since,
        ) in rows:  # fmt: skip
            if job != last:
                last = job
                place += 1
                add_job(job)
                add_created(created)
                add_state(CODES[state])
                add_group(self.groups.number((workflow, app)))
                add_failure(self.failures.number(failure))
            if started is None:
                continue
            end = now_us if ended is None else ended
            end = max(end, started)
            if started > window.end or end < window.start:
                continue
            key = ended is None, code, cause
            found = ends.get(key)
            if found is None:
                found = ends[key] = CODES[outcome(*key)]
            add_place(place)
            add_start(started)
            add_end(end)
            add_outcome(found)
            add_nodes(self.node_lists.number(nodes))
            add_weight(weight)
            add_wait(-1 if since is None else max(started - since, 0))
            add_memory(-1 if memory is None else memory)
            add_cpu(-1 if cpu is None else cpu)

    def add_changes(self, rows: Iterable[Any]) -> None:
        """Append a page of `campaign.changes` with bins of the present `shift`."""
        for place, left, entered, number in rows:
            self.changes[place, CODES.get(left, -1), CODES.get(entered, -1)] += number
        while len(self.changes) > _MAX_COUNTS:
            self._coarsen()

    def add_creations(self) -> None:
        """Count the creations of all jobs among the changes of state."""
        first, last = self.window
        places = Counter(max(time, first) >> self.shift for time in self.created if time <= last)
        self.add_changes((place, "", states.CREATED, number) for place, number in places.items())

    def _coarsen(self) -> None:
        self.shift += 1
        counted: Counter[tuple[int, int, int]] = Counter()
        for (place, left, entered), number in self.changes.items():
            counted[place >> 1, left, entered] += number
        self.changes = counted

    def merge(self, other: Campaign) -> None:
        """Append the data of other sites. Nodes are told apart by the name of the site."""
        offset = len(self.jobs)
        site = ", ".join(other.sites)
        shift = len(self.sites) << 48
        self.sites += other.sites
        groups, failures = self.groups.merge(other.groups), self.failures.merge(other.failures)
        nodes = self.node_lists.merge(other.node_lists, lambda text: (site, text))
        self.group.extend(groups[number] for number in other.group)
        self.failure.extend(failures[number] for number in other.failure)
        self.node_list.extend(nodes[number] for number in other.node_list)
        self.job.extend(offset + place for place in other.job)
        for name in ("names", "created", "states", "starts", "ends", "outcomes", "weights", "waits", "memory", "cpu"):
            getattr(self, name).extend(getattr(other, name))
        while self.shift < other.shift:
            self._coarsen()
        while other.shift < self.shift:
            other._coarsen()
        self.changes.update(other.changes)
        for name in ("jobs", "parents", "children"):
            getattr(self, name).extend(shift + job for job in getattr(other, name))
        self.batch_jobs += other.batch_jobs

    # --- what is derived ----------------------------------------------------------------------------------------------

    @cached_property
    def by_start(self) -> list[int]:
        """The places of the runs in the order of their starts."""
        return sorted(range(len(self.starts)), key=self.starts.__getitem__)

    @cached_property
    def nodes(self) -> list[tuple[str, ...]]:
        """The names of nodes that each list of nodes denotes."""
        return [_names_of(text) for text in self.node_lists.values]

    @cached_property
    def count_states(self) -> dict[str, int]:
        """The number of jobs in each state that has any, in the order of the states."""
        counted = Counter(self.states)
        return {state: counted[code] for state, code in CODES.items() if counted[code]}

    @cached_property
    def busy_us(self) -> int:
        """The time in which at least one job ran, in the window."""
        total, until = 0, self.window.start
        for run in self.by_start:
            end = min(self.ends[run], self.window.end)
            if end > until:
                total += end - max(self.starts[run], until)
                until = end
        return total


def outcome(is_running: bool, return_code: int | None, cause: str) -> str:
    """Return the state in which a run ended, or RUNNING.

    >>> outcome(True, None, ""), outcome(False, 0, ""), outcome(False, -15, "limit"), outcome(False, None, "killed")
    ('RUNNING', 'RUN_DONE', 'RUN_TIMEOUT', 'USER_KILLED')
    """
    if is_running:
        return states.RUNNING
    if return_code == 0 and _OUTCOMES.get(cause) != states.USER_KILLED:
        return states.RUN_DONE
    return _OUTCOMES.get(cause, states.RUN_ERROR)


def _names_of(text: str | tuple[str, str]) -> tuple[str, ...]:
    """Return the names of nodes in a list, which may have the name of its site."""
    site, listed = ("", text) if isinstance(text, str) else text
    try:
        names = hostlist.expand(listed) if listed else (UNKNOWN_NODE,)
    except ValueError:
        names = (listed,)
    return tuple(f"{site}: {name}" for name in names) if site else names


def read(site: SiteInterface, where: Mapping[str, Any], parts: Iterable[str], now_us: int, window: Window = ALL) -> Campaign:
    """Read the data of matching jobs: the jobs with their runs, and `parts` (changes, edges, batch_jobs).

    On a local file system of this host all reads see one snapshot; elsewhere each page has a separate one.

    Raises:
        UnknownField, InvalidSpec, InvalidStateError; SiteUnreachable and DatabaseError.
    """
    found = Campaign(now_us, window)
    found.sites.append(site.entry.name)
    with site.at_one_moment():
        _read(found, site, where, parts)
    return found


def _read(found: Campaign, site: SiteInterface, where: Mapping[str, Any], parts: Iterable[str]) -> None:
    last = 0
    while page := site.runs(where, last):
        found.add_runs(page)
        last = page[-1][0]
    if "changes" in parts:
        found.add_creations()
        last = 0
        while True:
            last, counts = site.changes(where, last, found.shift, *found.window)
            if not last:
                break
            found.add_changes(counts)
    if "edges" in parts:
        if len(found.jobs) <= MAX_NAMES:
            rows = site.page({"id": list(found.jobs)}, ("id", "name"), size=MAX_NAMES) if found.jobs else []
            names = {row["id"]: row["name"] for row in rows}
            found.names += [names.get(job, "") for job in found.jobs]
        last = 0
        while True:
            last, pairs = site.parents(where, last)
            if not last:
                break
            found.parents.extend(parent for parent, _ in pairs)
            found.children.extend(child for _, child in pairs)
    if "batch_jobs" in parts:
        rows = site.select("batch_job")
        found.batch_jobs = [(row["start_time"], row["end_time"], row["num_nodes"]) for row in rows]


def merged(found: list[Campaign]) -> Campaign:
    """Return the data of all these sites as one."""
    if len(found) == 1:
        return found[0]
    whole = Campaign(found[0].now_us, found[0].window)
    for one in found:
        whole.merge(one)
    return whole


def seconds(time_us: float) -> float:
    """Return microseconds as seconds."""
    return time_us / SECOND_US
