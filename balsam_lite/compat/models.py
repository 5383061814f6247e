"""`balsam.core.models`: the models of Balsam 0.3 as its users know them, on those of `db.models`.

What differs: ids have the attributes of a UUID, `parents` is JSON text, times are local and have no zone, `save` takes
`update_fields` and writes an assigned state, old names of fields work, and values may be computed from fields (`F("x") + 1`).
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, ClassVar, Union
from uuid import UUID

from .. import analytics
from ..core import states
from ..core.errors import InvalidParentsError, InvalidSpec, InvalidStateError, UnknownField
from ..core.errors import UnknownApp as NoApplication
from ..core.states import ACTIVE_STATES, END_STATES, PROCESSABLE_STATES, RUNNABLE_STATES, STATES
from ..core.states import check_state as validate_state
from ..db import models
from ..db.applications import Application
from ..db.manager import JobSource, QuerySet
from ..db.query import filters
from ..db.query.filters import Q
from ..db.record import JobIdAttribute, Objects

__all__ = [
    "ACTIVE_STATES", "END_STATES", "PROCESSABLE_STATES", "RUNNABLE_STATES", "STATES", "TIME_FMT", "ApplicationDefinition",
    "BalsamJob", "F", "InvalidParentsError", "InvalidStateError", "NoApplication", "Q", "error_report", "from_time_string",
    "get_time_string", "process_job_times", "throughput_report", "utilization_report", "validate_state",
]  # fmt: skip

#: Of times in `state_history`, in UTC.
TIME_FMT = "%m-%d-%Y %H:%M:%S.%f"

#: Names that fields of jobs had before or in Balsam 0.3, or that its documents use -> their names here.
JOB_ALIASES = {
    "application_args": "args", "procs_per_node": "ranks_per_node", "walltime_minutes": "wall_time_minutes",
    "serial_node_packing_count": "node_packing_count",
}  # fmt: skip
#: The same for applications.
APP_ALIASES = {"default_preprocess": "preprocess", "default_postprocess": "postprocess"}


class JobId(str):
    """The UUID of a job: text, with the attributes of `uuid.UUID` (`hex`, `int`, `bytes`, …), which it also equals."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(UUID(self), name)

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, str(other) if isinstance(other, UUID) else other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


# --- values computed from fields --------------------------------------------------------------------------------------

_Number = Union[int, float]


class Computed:
    """A value computed from fields of the same row, for `update(wall_time_minutes=F("wall_time_minutes") * 2)`."""

    def __init__(self, names: Iterable[str], compute: Callable[[Mapping[str, Any]], Any]) -> None:
        self.names, self.compute = frozenset(names), compute

    def _with(self, function: Callable[[Any, Any], Any], other: Any, swapped: bool = False) -> Computed:
        names = self.names | (other.names if isinstance(other, Computed) else frozenset())

        def compute(row: Mapping[str, Any]) -> Any:
            pair = self.compute(row), other.compute(row) if isinstance(other, Computed) else other
            return function(*reversed(pair)) if swapped else function(*pair)

        return Computed(names, compute)

    def __add__(self, other: Any) -> Computed:
        return self._with(operator.add, other)

    def __radd__(self, other: Any) -> Computed:
        return self._with(operator.add, other, swapped=True)

    def __sub__(self, other: Any) -> Computed:
        return self._with(operator.sub, other)

    def __rsub__(self, other: Any) -> Computed:
        return self._with(operator.sub, other, swapped=True)

    def __mul__(self, other: Any) -> Computed:
        return self._with(operator.mul, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Computed:
        return self._with(operator.truediv, other)

    def __floordiv__(self, other: Any) -> Computed:
        return self._with(operator.floordiv, other)


class F(filters.F, Computed):
    """A field of the same row, in conditions and in `update`."""

    def __init__(self, name: str) -> None:
        filters.F.__init__(self, JOB_ALIASES.get(name, name))
        Computed.__init__(self, [self.name], lambda row: row[self.name])


# --- query sets -------------------------------------------------------------------------------------------------------


def by_present_name(given: Mapping[str, Any], aliases: Mapping[str, str] = JOB_ALIASES) -> dict[str, Any]:
    """Return fields or conditions under the names that they have today."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        head, separator, rest = name.partition("__")
        present = aliases.get(head, head) + separator + rest
        if present in found or (present != name and present in given):
            raise InvalidSpec(f"{name} is the older name of {present}; both are given.")
        found[present] = value
    return found


class _OldNames(QuerySet):
    """A query set whose fields may have older names. Rows have the names that were asked for."""

    _title = "QuerySet"
    _ALIASES: ClassVar[Mapping[str, str]]
    _asked: tuple[str, ...] = ()

    def order_by(self, *names: str) -> Any:
        """Return the objects sorted by these fields; see `QuerySet.order_by`."""
        return super().order_by(*(("-" * name.startswith("-")) + self._today(name.removeprefix("-")) for name in names))

    def _of_fields(self, names: tuple[str, ...], shape: str) -> Any:
        return super()._of_fields(tuple(map(self._today, names)), shape)._with(_asked=names)

    @property
    def _labels(self) -> tuple[str, ...]:
        return self._asked or self._names

    def _today(self, name: str) -> str:
        return self._ALIASES.get(name, name)


class _OldJobSet(_OldNames, models.JobSet):
    _ALIASES = JOB_ALIASES

    def _narrowed(self, where: Mapping[str, Any]) -> Any:
        return super()._narrowed(self._present(where))

    def _present(self, where: Mapping[str, Any]) -> dict[str, Any]:
        """Return conditions of Balsam 0.3 in the present form: older names, `parents` as text, `lock` as text."""
        found: dict[str, Any] = {}
        for name, value in by_present_name(where).items():
            if name.startswith("$"):
                parts = [self._present(part) for part in ([value] if isinstance(value, Mapping) else value)]
                found[name] = parts[0] if isinstance(value, Mapping) else parts
            elif name in ("parents__contains", "parents__icontains"):
                found["parent_id"] = self.model._with_id(_whole_id(value), self._database)
            elif name == "lock" and value == "":
                found["lease"] = None
            else:
                found[name] = value
        return found

    def _shaped(self, rows: Iterable[tuple[Any, ...]], columns: Any) -> Iterator[Any]:
        made = super()._shaped(rows, columns)
        ids = [place for place, name in enumerate(self._names) if name in ("job_id", "pk")]
        if not ids:
            return made
        if self._shape == "flat":
            return (JobId(one) for one in made)
        if self._shape == "dict":
            return ({**row, **{self._names[place]: JobId(row[self._names[place]]) for place in ids}} for row in made)
        return (tuple(JobId(one) if place in ids else one for place, one in enumerate(row)) for row in made)

    def update(self, **fields: Any) -> int:
        """Set these fields in all matching jobs and return their number, as `QuerySet.update` does.

        Values computed from fields are read, computed and written in one write transaction.
        """
        given = by_present_name(fields)
        computed = {name: value for name, value in given.items() if isinstance(value, Computed)}
        if not computed:
            return super().update(**given)
        plain = {name: value for name, value in given.items() if name not in computed}
        names = sorted({"id"}.union(*(value.names for value in computed.values())))
        alike: dict[str, list[int]] = {}
        with self.database.write():
            for row in self.values(*names):
                new = {name: value.compute(row) for name, value in computed.items()}
                alike.setdefault(json.dumps(new), []).append(row["id"])
            for text, numbers in alike.items():
                type(self)(self.model, self.database).filter(id__in=numbers).update(**plain, **json.loads(text))
        return sum(map(len, alike.values()))

    def delete(self, force: bool = False) -> Any:
        """Remove the jobs as `QuerySet.delete` does. Return their number, and a dict with it, as Django does."""
        return _deleted(super().delete(force), "core.BalsamJob")


def _present(name: str) -> str:
    return JOB_ALIASES.get(name, name)


def _whole_id(value: Any) -> str:
    try:
        return str(UUID(str(value)))
    except ValueError as exc:
        raise InvalidSpec(f"parents__contains takes the whole id of a job, not {value!r}") from exc


def _deleted(number: int, label: str) -> tuple[int, dict[str, int]]:
    return number, {label: number} if number else {}


class _ApplicationSet(_OldNames):
    _ALIASES = APP_ALIASES

    def _narrowed(self, where: Mapping[str, Any]) -> Any:
        return super()._narrowed(by_present_name(where, APP_ALIASES))

    def update(self, **fields: Any) -> int:
        """Set these fields in all matching applications and return their number."""
        return super().update(**by_present_name(fields, APP_ALIASES))

    def delete(self, force: bool = False) -> Any:
        """Remove the applications. Return their number, and a dict with it, as Django does."""
        return _deleted(super().delete(force), "core.ApplicationDefinition")


# --- jobs -------------------------------------------------------------------------------------------------------------


def _alias(name: str) -> Any:
    return property(
        lambda record: getattr(record, name),
        lambda record, value: setattr(record, name, value),
        doc=f"The field `{name}` by an older name.",
    )


class _UuidAttribute(JobIdAttribute):
    def read(self, record: Any) -> str:
        return JobId(super().read(record))


class BalsamJob(models.BalsamJob):
    """A job as Balsam 0.3 had it. Everything else is as in `db.models.BalsamJob`."""

    _QUERY_SET = _OldJobSet
    objects: ClassVar[_OldJobSet] = Objects()  # type: ignore[assignment]
    job_id: Any = _UuidAttribute()
    vars().update((old, _alias(new)) for old, new in JOB_ALIASES.items())

    _parents_to_set: list[str] | None = None  # assigned, and not saved yet

    def __init__(self, **fields: Any) -> None:
        given = by_present_name({name: value for name, value in fields.items() if value is not None})
        parents = given.pop("parents", None)
        super().__init__(**given)
        if parents is not None:
            self.parents = parents

    @classmethod
    def of(cls, job: models.BalsamJob) -> BalsamJob:
        """Return that job as an object of this class."""
        made = cls.__new__(cls)
        made.__setstate__(job.__getstate__())
        made._database = job._database
        return made

    @classmethod
    def _with_id(cls, job_id: Any, database: Any) -> int:
        """Return the number of the job with that UUID, 0 if there is none."""
        jobs = cls.objects if database is None else cls.objects.using(database)
        return next(iter(jobs.filter(job_id=job_id).values_list("id", flat=True)), 0)

    @property
    def pk(self) -> Any:
        """Return its UUID."""
        return self.job_id

    @property
    def parents(self) -> str:
        """Return the UUIDs of its parents as the text of a JSON list; `save` writes one that was assigned."""
        if self._parents_to_set is not None:
            return json.dumps(self._parents_to_set)
        return json.dumps(self.get_parents_by_id() if self.id is not None else [])

    @parents.setter
    def parents(self, value: Any) -> None:
        try:
            given = json.loads(value) if isinstance(value, str) else list(value)
            found = [str(UUID(str(getattr(one, "job_id", one)))) for one in given]
        except (TypeError, ValueError) as exc:
            raise InvalidParentsError(f"parents must be a list of ids, or its JSON text, not {value!r}") from exc
        self._parents_to_set = found
        if self.id is None:
            self._parents = tuple(self._parents_to_set)

    def save(self, *_: Any, update_fields: Iterable[str] | None = None, on_duplicate: str = "refuse", **__: Any) -> None:
        """Add a new job, or write what was assigned: with `update_fields` only these fields.

        An assigned `state` is a change by the user, as by `update_state`. One write transaction. Django's other arguments have
        no effect.
        """
        if self.id is None:
            super().save(on_duplicate)
            self._parents_to_set = None
            return
        wanted = None if update_fields is None else self._named(update_fields)
        kept, live = {}, {}
        if wanted is not None:
            kept = {name: value for name, value in self._changed.items() if name not in wanted}
            live = {name: value for name, value in self._live.items() if name not in wanted}
            self._live = {name: value for name, value in self._live.items() if name in wanted}
        changed = {name: value for name, value in self._changed.items() if name not in kept}
        state = changed.pop("state", None)
        self._changed = changed
        with self._db.write():
            super().save()
            if self._parents_to_set is not None and (wanted is None or "parents" in wanted):
                self.set_parents(self._parents_to_set)
                self._parents_to_set = None
            if state is not None and state != type(self).objects.using(self._db).get(id=self.id).state:
                self.update_state(state)
        if wanted is not None:
            self._changed, self._live = {**self._changed, **kept}, {**self._live, **live}

    def _named(self, names: Iterable[str]) -> set[str]:
        known = {*self._FIELDS, "parents", "state_history", "lock", "tick"}
        found = set(map(_present, names))
        for name in sorted(found - known):
            raise UnknownField.named("job", name, sorted(known))
        return found

    def refresh_from_db(self, using: Any = None, fields: Any = None) -> None:
        """Read the row again, and discard unsaved changes."""
        self._parents_to_set = None
        super().refresh_from_db()

    def delete(self, force: bool = False) -> Any:
        """Remove the job as `db.models.BalsamJob.delete` does. Return 1 and a dict, as Django does."""
        super().delete(force)
        return _deleted(1, "core.BalsamJob")

    @classmethod
    def _by_field(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        return super()._by_field(by_present_name(given))

    def get_state_times(self) -> dict[str, datetime]:
        """Return when it last entered each state it has been in, in local time without a zone."""
        return {state: _local(moment) for state, moment in super().get_state_times().items()}

    def get_application(self) -> ApplicationDefinition:
        """Return its application. Raises NoApplication: there is none of that name."""
        return ApplicationDefinition.of(super().get_application())


BalsamJob.source = JobSource(BalsamJob)


class ApplicationDefinition(Application):
    """An application as Balsam 0.3 had it."""

    _QUERY_SET = _ApplicationSet
    objects: ClassVar[_ApplicationSet] = Objects()  # type: ignore[assignment]
    vars().update((old, _alias(new)) for old, new in APP_ALIASES.items())

    def __init__(self, **fields: Any) -> None:
        super().__init__(**by_present_name(fields, APP_ALIASES))

    @classmethod
    def of(cls, app: Application) -> ApplicationDefinition:
        """Return that application as an object of this class."""
        made = cls.__new__(cls)
        made.__setstate__(app.__getstate__())
        made._database = app._database
        return made

    def save(self, *_: Any, update_fields: Iterable[str] | None = None, **__: Any) -> None:
        """Register a new application, or write the fields that were changed: with `update_fields` only these."""
        wanted = None if update_fields is None or self.id is None else {APP_ALIASES.get(name, name) for name in update_fields}
        kept = {} if wanted is None else {name: value for name, value in self._changed.items() if name not in wanted}
        self._changed = {name: value for name, value in self._changed.items() if name not in kept}
        super().save()
        if kept:
            self._changed = {**self._changed, **kept}


# --- times and reports ------------------------------------------------------------------------------------------------


def _local(moment: datetime) -> datetime:
    """Return a time in local time, without the zone."""
    aware = moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment
    return aware.astimezone().replace(tzinfo=None)


def get_time_string() -> str:
    """Return the present time as histories have it, in UTC."""
    return datetime.now(timezone.utc).strftime(TIME_FMT)


def from_time_string(text: str) -> datetime:
    """Return the time in a history, in UTC without a zone."""
    return datetime.strptime(text, TIME_FMT)  # noqa: DTZ007  # as Balsam 0.3


def process_job_times(qs: Any = None) -> dict[str, list[datetime]]:
    """Return when jobs entered each state, in local time without a zone; see `analytics.process_job_times`."""
    return {state: list(map(_local, times)) for state, times in analytics.process_job_times(qs).items()}


Report = tuple[list[datetime], list[Any]]


def utilization_report(time_data: Any = None) -> Report:
    """Return how many jobs were running from each of these times on.

    `time_data` is the result of `process_job_times`, which does not tell which job ended: each RUN_DONE, RUN_ERROR and
    RUN_TIMEOUT is taken for the end of a run. Without it, all runs in the DB are counted exactly. Events are also accepted.
    """
    if time_data is None:
        from ..api import EventLog

        times, counts = analytics.utilization_report(EventLog.objects.all(), node_weighting=False)
        return list(map(_local, times)), [int(count) for count in counts]
    if not isinstance(time_data, Mapping):
        return analytics.utilization_report(time_data)
    changes = [(time, 1) for time in time_data.get(states.RUNNING, ())]
    for state in (states.RUN_DONE, states.RUN_ERROR, states.RUN_TIMEOUT):
        changes += [(time, -1) for time in time_data.get(state, ())]
    return _sums(sorted(changes))


def throughput_report(time_data: Any = None) -> Report:
    """Return how many runs were done at each of these times, from the result of `process_job_times`, by default of all jobs."""
    if time_data is not None and not isinstance(time_data, Mapping):
        return analytics.throughput_report(time_data)
    found = process_job_times() if time_data is None else time_data
    return _sums([(time, 1) for time in sorted(found.get(states.RUN_DONE, ()))])


def error_report(time_data: Any = None) -> Report:
    """Return the errors in each minute; see `analytics.error_report`."""
    return analytics.error_report(process_job_times() if time_data is None else time_data)


def _sums(changes: Sequence[tuple[datetime, int]]) -> Report:
    from itertools import accumulate

    return [time for time, _ in changes], list(accumulate(change for _, change in changes))
