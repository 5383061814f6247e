"""Collect additions of jobs and dependencies in memory, to be written in one transaction (`dag.transaction`).

Each thread has its own block. A forked child has none: what its parent collects is the parent's to write.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Union

from ..core import import_guard
from ..core.errors import AmbiguousJobId, DependencyCycle, DuplicateDependency, InputError, InvalidSpec

if TYPE_CHECKING:
    from .engine.connection import Database

#: A job: the number of one that is in the DB, or a UUID (or a unique prefix of it).
JobRef = Union[int, str]


class Skipped(NamedTuple):
    """The jobs of a batch that were not added, because there is one with their unique_key already."""

    positions: Sequence[int] = ()  # in the batch, in order
    owners: Sequence[int] = ()  # the job with that key: its number, or -1 - its position in the batch

    def __bool__(self) -> bool:
        return bool(self.positions)


class Added(NamedTuple):
    """The jobs that were added: `number` of them, with the ids from `first` on."""

    first: int
    number: int
    renamed: dict[int, str] = {}  # id -> UUID, of those whose drawn UUID had a short id that was taken
    skipped: Skipped = Skipped()

    def id_of(self, position: int) -> int:
        """Return the id of the job at that position of the batch; of a skipped one, that of the job with its unique_key."""
        positions, owners = self.skipped
        place = bisect_left(positions, position)
        if place == len(positions) or positions[place] != position:
            return self.first + position - place
        return owners[place] if owners[place] > 0 else self.id_of(-1 - owners[place])

    @property
    def skipped_ids(self) -> list[int]:
        """Return the ids of the jobs in whose place none was added, one for each that was skipped."""
        return [self.id_of(position) for position in self.skipped.positions]

    def is_new(self, position: int) -> bool:
        """Return whether the job at that position of the batch was added."""
        positions = self.skipped.positions
        place = bisect_left(positions, position)
        return place == len(positions) or positions[place] != position

    @property
    def ids(self) -> range:
        return range(self.first, self.first + self.number)


class Batch:
    """Jobs that are being added together. An object finds its number here afterwards, so nothing holds all objects."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.added: Added | None = None
        self.is_block = False  # collected by a `Transaction`


class Transaction:
    """The additions that one thread has collected since the beginning of its outermost block."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.batch: Batch | None = None  # the DB is that of the first addition
        self._rows: dict[str, Mapping[str, Any]] = {}  # by UUID, in the order in which they came
        self._short_ids: set[str] = set()
        self._parents: dict[str, dict[JobRef, None]] = {}  # of the jobs in `_rows`
        self._edges: dict[tuple[JobRef, JobRef], None] = {}  # (parent, child) whose child is in the DB already
        self._undo: list[Callable[[], object]] = []
        self.followers: list[Any] = []  # objects of jobs in the DB that get a parent

    def use(self, database: Database) -> Batch:
        """Bind the block to a DB. Raise InputError if it collects for another one."""
        import_guard.check_writable()
        if self.batch is None:
            self.batch = Batch(database)
            self.batch.is_block = True
        if self.batch.database.directory != database.directory:
            raise InputError(
                f"This `with dag.transaction()` collects for the DB {self.batch.database.directory}; "
                f"nothing can be added to {database.directory} inside it.",
                hint="A transaction writes to one DB. Use a separate block for each.",
            )
        return self.batch

    def find(self, job: str) -> str | None:
        """Return the UUID of the collected job that `job`, a UUID or a prefix, names; None if it names none or several.

        Raises:
            AmbiguousJobId: it is the name of a collected job. A job in the DB may have that name, too.
        """
        if any(row.get("name") == job for row in self._rows.values()):
            raise AmbiguousJobId(
                f"{job!r} is also the name of a job that is added in the same transaction.",
                hint="Name that one by its object or UUID, and a job in the DB by its number.",
            )
        job = job.strip().lower()
        if job in self._rows:
            return job
        found = [job_id for job_id in self._rows if job_id.startswith(job)] if 0 < len(job) < 36 else []
        return found[0] if len(found) == 1 else None

    def has_short_id(self, job_id: str) -> bool:
        """Return whether a collected job has the same first eight characters."""
        return job_id[:8] in self._short_ids

    def add_job(self, row: Mapping[str, Any], parents: Iterable[JobRef]) -> int:
        """Collect a job with a `job_id`. Return its position."""
        job_id = row["job_id"]
        if job_id in self._rows:
            raise InvalidSpec(f"Job {job_id} is given twice")
        self._rows[job_id], self._parents[job_id] = row, dict.fromkeys(parents)
        self._short_ids.add(job_id[:8])
        self._undo.append(lambda: (self._rows.pop(job_id), self._parents.pop(job_id)))
        return len(self._rows) - 1

    def replace_job(self, row: Mapping[str, Any]) -> None:
        """Replace a collected job that was changed since."""
        before = self._rows[row["job_id"]]
        row = {**row, "given_id": before["given_id"]} if "given_id" in before else row
        self._rows[row["job_id"]] = row
        self._undo.append(lambda: self._rows.update({row["job_id"]: before}))

    def set_parents(self, job_id: str, parents: Iterable[JobRef]) -> None:
        """Give a collected job these parents and no others."""
        wanted, before = dict.fromkeys(parents), self._parents[job_id]
        if job_id in wanted:
            raise DependencyCycle("A job cannot wait for itself: that would be a circular dependency.")
        self._parents[job_id] = wanted
        self._undo.append(lambda: self._parents.update({job_id: before}))

    def add_dependency(self, parent: JobRef, child: JobRef) -> None:
        """Collect a dependency.

        Raises:
            DependencyCycle: of a job with itself; any other is found at the end. DuplicateDependency.
        """
        if parent == child:
            raise DependencyCycle("A job cannot wait for itself: that would be a circular dependency.")
        if isinstance(child, str) and child in self._parents:
            known: dict[Any, None] = self._parents[child]
            edge: Any = parent
        else:
            known, edge = self._edges, (parent, child)
        if edge in known:
            named = [f"job #{job}" if isinstance(job, int) else f"job {job}" for job in (parent, child)]
            waits = f"{named[1].capitalize()} waits for {named[0]}."
            raise DuplicateDependency("Dependency already exists; cannot double-create", hint=waits)
        known[edge] = None
        self._undo.append(lambda: known.pop(edge))

    @property
    def mark(self) -> int:
        """Return a mark with which `roll_back` drops everything collected from now on."""
        return len(self._undo)

    def roll_back(self, mark: int) -> None:
        """Drop everything collected since `mark`."""
        while len(self._undo) > mark:
            self._undo.pop()()

    def on_roll_back(self, undo: Callable[[], object]) -> None:
        """Call `undo` if the last addition is dropped."""
        self._undo.append(undo)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Return the jobs for `insert.add_jobs`, all with the same fields where possible: that is several times as fast."""
        from ..core import field_specs

        names = {name for row in self._rows.values() for name in row}
        common = {
            name: field_specs.JOB_FIELD[name].default for name in names if name in field_specs.JOB_FIELD and name != "workdir"
        }
        for job_id, row in self._rows.items():
            yield {**common, **row, "parents": list(self._parents[job_id])}

    def dependencies(self) -> list[tuple[JobRef, JobRef]]:
        """Return the dependencies whose child is in the DB already."""
        return list(self._edges)


class _Open(threading.local):
    block: Transaction | None = None


_open = _Open()


def current() -> Transaction | None:
    """Return the open block of this thread of this process."""
    block = _open.block
    return None if block is None or block.process != os.getpid() else block


def set_current(block: Transaction | None) -> None:
    """Open a block, or close the open one."""
    _open.block = block


def refuse(action: str) -> None:
    """Raise InputError inside `with dag.transaction()`, which collects additions only."""
    if current() is not None:
        raise InputError(
            f"{action} is not possible inside `with dag.transaction()`, which only adds jobs and dependencies.",
            hint="The block writes them at its end. Do this before it or after it.",
        )
