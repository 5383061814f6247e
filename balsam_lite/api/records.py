"""The records of `balsam_lite.api`: copies of rows, each of which knows its site; and their kinds of fields.

A check takes the value that a user assigns and returns the one that is sent to the site (JSON types, times in microseconds), or
raises ValueError with a text that follows the name of the field. It runs when the value is assigned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import Any, ClassVar, TypeVar

from ..core import field_specs, import_guard
from ..core.clock import us_of
from ..core.errors import InputError, InvalidSpec, NotFound, StateError, did_you_mean
from ..db.query.fields import Table
from ..db.record import NOTHING, Attribute, DictAttribute, Record
from .site_handle import Id, SiteHandle, handle_at, is_same_site

R = TypeVar("R", bound="SiteRecord")
Check = Callable[[Any], Any]

#: When a user may set a field: always; until the record is saved; never, because the site sets it.
ALWAYS, AT_CREATION, NEVER = "always", "at creation", "never"

# --- times ------------------------------------------------------------------------------------------------------------

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  # this interface's naive datetimes are UTC
_FIRST_US, _LAST_US = map(us_of, (datetime.min, datetime.max))  # noqa: DTZ901


def to_us(moment: Any, what: str) -> int:
    """Return a datetime as microseconds since the epoch; one without a time zone is UTC. `what` names it in errors.

    A time outside the years of UTC becomes the first or last time within them.

    Raises:
        InvalidSpec: it is something else, for example a date or text, whose hour or zone is unknown.
    """
    if not isinstance(moment, datetime):
        raise InvalidSpec(
            f"{what} must be a datetime.datetime, not {moment!r}",
            hint="One without a time zone is UTC, as datetime.utcnow() gives it; one with a time zone is converted.",
        )
    return min(max(us_of(moment), _FIRST_US), _LAST_US)


def naive(time_us: int | None) -> datetime | None:
    """Return that time in UTC, without a time zone; None stays None."""
    return None if time_us is None else _EPOCH + timedelta(microseconds=time_us)


def aware(time_us: int | None) -> datetime | None:
    """Return that time in UTC, with the time zone; None stays None."""
    return None if time_us is None else (_EPOCH + timedelta(microseconds=time_us)).replace(tzinfo=timezone.utc)


# --- fields -----------------------------------------------------------------------------------------------------------


class SiteAttribute(Attribute):
    """A field of a `SiteRecord`, whose row holds it in the form in which the site sends it.

    Args:
        like: the column of the job table with the same kind; by default the column of the same name, if there is one.
        check: see above; by default that of the column. default: used if no value is given. when: a user may set it.
        show: converts the value of the row into the one that users get.
    """

    def __init__(
        self,
        check: Check | None = None,
        default: Any = None,
        when: str = ALWAYS,
        show: Callable[[Any], Any] | None = None,
        like: str = "",
    ) -> None:
        super().__init__(field_specs.JOB_FIELD.get(like, field_specs.Field("", "text", default)), check, show)
        self.default, self.when = default, when

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.spec = self.spec._replace(name=name, default=self.default, settable=self.when != NEVER)
        self.__doc__ = field_specs.describe(self.spec)

    @property
    def check_new(self) -> Check:
        """Return the check for the value that a new record is given."""
        assert self.check is not None
        return self.check

    def __set__(self, record: Any, value: Any) -> None:
        if self.when == NEVER:
            raise AttributeError(f"{type(record).__name__}.{self.name} is kept by the site and cannot be set")
        if self.when == AT_CREATION and record._is_saved:
            raise InvalidSpec(f"Cannot set {self.name} when updating {type(record).__name__}")
        super().__set__(record, value)

    def stored(self, value: Any) -> Any:
        return value


class SiteDict(SiteAttribute, DictAttribute):
    """A dict that may be edited in place."""

    def stored(self, value: Any) -> Any:
        return json.loads(self.text(value))


class HiddenAttribute(SiteAttribute):
    """A field that can be set but not read; `instead` names what to use."""

    instead = ""

    def read(self, record: Any) -> Any:
        raise AttributeError(f"{type(record).__name__}.{self.name} cannot be read{self.instead}")


class RelatedNumber(SiteAttribute):
    """The number of another row of the same site."""

    def read(self, record: Any) -> Any:
        value = super().read(record)
        return record._handle.id(value) if record._handle is not None and type(value) is int else value


class OwnSite(SiteAttribute):
    """The number or the name of the record's site: the given one, until the record is saved."""

    def read(self, record: Any) -> Any:
        if record._handle is None:
            return record._changed.get(self.name)
        entry = record._handle.entry
        return entry.number if self.name == "site_id" else entry.name


class StateAttribute(SiteAttribute):
    """One of an Enum's words, which can also be set in a saved record."""

    def __init__(self, choice: Any) -> None:
        super().__init__(lambda value: checked_word(choice, value), show=lambda value: shown_word(choice, value), like="state")

    def __set_name__(self, owner: type, name: str) -> None:
        super().__set_name__(owner, name)
        self._refusal = f"Cannot set state when creating {owner.__name__}"

    @property
    def check_new(self) -> Check:
        return self._refuse

    def _refuse(self, value: Any) -> Any:
        raise InvalidSpec(self._refusal)

    def __set__(self, record: Any, value: Any) -> None:
        if not record._is_saved:
            self._refuse(value)
        super().__set__(record, value)


# These functions return Any, so that a class can declare the attribute's type.


def column(like: str, default: Any = ..., when: str = ALWAYS, show: Callable[[Any], Any] | None = None) -> Any:
    """Declare a field that is checked like that column of the job table, with its default unless another is given."""
    spec = field_specs.JOB_FIELD[like]
    if spec.kind in field_specs.JSON_KINDS:
        return SiteDict(_dict_check(spec), {}, when, show, like)
    check = column_check(like)
    if spec.kind == "flag":
        return SiteAttribute(lambda value: bool(check(value)), bool(spec.default), when, bool, like)
    return SiteAttribute(check, spec.default if default is ... else default, when, show, like)


def column_check(column: str) -> Check:
    """Return the check of a column of the job table."""
    return field_specs.job_columns((column,))[1][0]


def _dict_check(spec: field_specs.Field) -> Check:
    """Return the check of a dict. It returns that same dict, so that later edits count, unless values have to become text."""
    as_text = column_check(spec.name)

    def check(value: Any) -> dict[Any, Any]:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise ValueError(f"must be a dict, not {value!r}")
        text = as_text(value)
        if type(value) is dict and (spec.kind == "object" or field_specs.holds_texts(value)):
            return value
        return dict(value) if spec.kind == "object" else field_specs.read_object(text)

    return check


def minutes0(default: int | None = None, when: str = ALWAYS) -> Any:
    """Declare a field of whole minutes that may be 0; it also accepts text such as "1h30m"."""
    check = column_check("wall_time_minutes")
    return SiteAttribute(lambda value: 0 if value in (0, "0") else check(value), default, when, like="wall_time_minutes")


def word(choice: Any, when: str = ALWAYS, default: Any = None) -> Any:
    """Declare a field that holds one of an Enum's words."""
    return SiteAttribute(lambda value: checked_word(choice, value), default, when, lambda value: shown_word(choice, value))


def known(show: Callable[[Any], Any] | None = None, default: Any = None) -> Any:
    """Declare a field that the site sets."""
    return SiteAttribute(None, default, NEVER, show)


def site_id() -> Any:
    """Declare the site by number."""
    return OwnSite(_site_number, None, AT_CREATION)


def site_name() -> Any:
    """Declare the site by name."""
    return OwnSite(lambda value: None if value is None else str(value), None, AT_CREATION)


def _site_number(value: Any) -> int | None:
    value = getattr(value, "id", value)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise ValueError(f"must be the number of a site, not {value!r}")
    return value


class Word(str, Enum):
    """The base of Enums whose members equal their plain text and print as it, in every version of Python."""

    def __str__(self) -> str:
        return str(self.value)

    def __format__(self, how: str) -> str:
        return format(str(self.value), how)


def checked_word(choice: Any, value: Any) -> str:
    """Return one of an Enum's words as plain text. Raises ValueError with the others."""
    try:
        return str(choice(value).value)
    except ValueError:
        raise ValueError(f"must be one of {', '.join(one.value for one in choice)}, not {value!r}") from None


def shown_word(choice: Any, value: Any) -> Any:
    """Return the Enum's member, or the plain text if it is a word of another version of balsam_lite. None stays None."""
    try:
        return None if value is None else choice(value)
    except ValueError:
        return value


def listed(value: Any) -> list[Any]:
    """Return the items of an iterable, or a list of that one object; text is one object."""
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)):
        return list(value)
    return [value]


# --- records ----------------------------------------------------------------------------------------------------------


class SiteRecord(Record):
    """A row of a site, or one that is not saved yet.

    Two objects are equal if they hold the same and neither was changed since it was read. Saved ones can be put into sets.

    Raises:
        TypeError: the constructor is given an unknown field; the most similar one is named. InvalidSpec (a ValueError): a value
            makes no sense.
    """

    __slots__ = ("_handle",)

    _KIND: ClassVar[str]  # as in `sites.interface`
    _REQUIRED: ClassVar[tuple[str, ...]] = ()
    _TABLE: ClassVar[Table]  # the fields of conditions
    _ORDERS: ClassVar[tuple[str, ...]] = ()  # fields by which `order_by` sorts
    _LEADING: ClassVar[frozenset[str]] = frozenset({"state"})  # fields that affect others: after a change the row is read again
    _REFUSED: ClassVar[Mapping[str, tuple[type[Exception], str]]] = {}  # methods of queries and managers that always raise
    _MERGED: ClassVar[tuple[str, ...]] = ()  # dicts that the site merges with concurrent changes
    _CHECKS: ClassVar[dict[str, Check]]  # field that the constructor takes -> its check
    _FIELDS: ClassVar[dict[str, SiteAttribute]]  # type: ignore[assignment]

    _handle: SiteHandle | None  # a row without an id, and a record without a handle, is not saved yet

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._what = cls._KIND.replace("_", " ")
        cls._CHECKS = {name: field.check_new for name, field in cls._FIELDS.items() if field.when != NEVER}
        cls.DoesNotExist = _error(cls, "DoesNotExist", NotFound)
        cls.MultipleObjectsReturned = _error(cls, "MultipleObjectsReturned", InputError)

    def __init__(self, **fields: Any) -> None:
        checks = self._CHECKS
        try:
            changed = {name: checks[name](value) for name, value in fields.items()}
        except (KeyError, ValueError):
            given = {name: value for name, value in fields.items() if value is not None or name not in checks}
            if len(given) < len(fields):  # None: as if it were not given
                self.__init__(**given)  # type: ignore[misc]
                return
            self._checked(fields)  # names the wrong one
            raise
        for name in self._REQUIRED:
            if name not in fields:
                raise InvalidSpec(f"A {self._what} needs a value for {name!r}.")
        self._fill(NOTHING, None, changed)

    def _fill(self, row: dict[str, Any], handle: SiteHandle | None, changed: dict[str, Any] = NOTHING) -> None:
        _set_row(self, row)
        _set_changed(self, changed)
        _set_live(self, NOTHING)
        _set_handle(self, handle)

    @classmethod
    def _checked(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values in the form for the site. Raises TypeError, InvalidSpec: with the name of the field."""
        for name in fields:
            if name not in cls._CHECKS:
                raise TypeError(_no_such(name, cls))
        return {name: cls._FIELDS[name].checked(value, cls._what) for name, value in fields.items()}

    @classmethod
    def _of(cls: type[R], row: dict[str, Any], handle: SiteHandle) -> R:
        """Return the object for a row of that site."""
        made = cls.__new__(cls)
        made._fill(row, handle)
        return made

    @classmethod
    def _check_allowed(cls, method: str) -> None:
        """Raise if that method of queries or managers is not for rows of this kind, or while a launcher imports the file."""
        if method in cls._REFUSED:
            error, message = cls._REFUSED[method]
            raise error(message)
        import_guard.check_writable()

    # --- attributes ---------------------------------------------------------------------------------------------------

    @property
    def id(self) -> Id | None:
        """Return its number, which knows its site; None until it is saved."""
        number = self._row.get("id")
        return None if number is None or self._handle is None else self._handle.id(number)

    @id.setter
    def id(self, value: Any) -> None:
        raise InvalidSpec(f"Cannot set id when {'updating' if self._is_saved else 'creating'} {type(self).__name__}")

    @property
    def _is_saved(self) -> bool:
        return self._row.get("id") is not None

    def _changes(self) -> dict[str, Any]:
        return {name: value for name, value in super()._changes().items() if not self._is_as_it_was(name, value)}

    def _is_as_it_was(self, name: str, value: Any) -> bool:
        """Return whether the site holds that value already; not for a state, which others change."""
        if not self._is_saved or self._FIELDS[name].is_dict or name == "state":
            return False
        stored = self._stored(self._FIELDS[name])
        return type(value) is type(stored) and bool(value == stored)

    def _stored(self, field: SiteAttribute) -> Any:
        return self._row.get(field.name, field.default)

    # --- saving -------------------------------------------------------------------------------------------------------

    @property
    def _site(self) -> SiteHandle:
        if self._handle is None or not self._is_saved:
            raise type(self).DoesNotExist(f"This {self._what} is not saved yet: `save()` does that.")
        return self._handle

    def save(self) -> None:
        """Add a new record to its site, or write the changes since it was read, including edits in a dict.

        If others have changed another key of the same `data`, `tags` or `environ_vars` of a job, both changes are kept. One
        write transaction; none if nothing was changed.

        Raises:
            InvalidSpec and others of `sites.interface.SiteInterface.create` and `update`; NotFound: it is gone.
        """
        import_guard.check_writable()
        if not self._is_saved:
            self._create()
            return
        changes = self._changes()
        if changes:
            self._site.interface.update(self._KIND, [self._update_of(changes)])
        self._saved(changes)
        if not self._LEADING.isdisjoint(changes):
            self.refresh_from_db()

    def _update_of(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the changes in the form for the site."""
        told = {"id": self._row["id"], **{name: self._FIELDS[name].stored(value) for name, value in changes.items()}}
        before = {name: self._row.get(name, {}) for name in self._MERGED if name in changes}
        return {**told, "before": before} if before else told

    def _create(self) -> None:
        raise NotImplementedError

    def _created(self, row: dict[str, Any], handle: SiteHandle) -> None:
        """Mark the record as saved, with this row. Dicts that were given remain the ones that can be edited."""
        live = {name: value for name, value in self._changed.items() if self._FIELDS[name].is_dict}
        live = {**self._live, **live}
        self._fill(row, handle)
        self._live = live

    def refresh_from_db(self) -> None:
        """Read the row again, and discard unsaved changes.

        Raises:
            DoesNotExist: it was never saved, or is gone.
        """
        handle = self._site
        rows = handle.interface.select(self._KIND, {"id": self._row["id"]})
        if not rows:
            raise type(self).DoesNotExist(f"{self._title()} is not in the DB any more.")
        self._fill(rows[0], handle)

    def _title(self) -> str:
        """Return the name that messages use for it."""
        site = self._handle.entry.name if self._handle else ""
        return f"{type(self).__name__} {self._row.get('id')} of site {site}"

    def delete(self) -> None:
        """Remove it from the site; the object stays, as one that was never saved. A launcher that runs the job stops it.

        Raises:
            DoesNotExist: it is not there (any more). StateError: a launcher holds one of its jobs.
            ParentInUse: other jobs wait for it.
        """
        import_guard.check_writable()
        running = {"running": True} if self._KIND == "job" else {}
        done = self._site.interface.delete(self._KIND, {"id": self._row["id"]}, **running)
        if done.get("held"):
            raise StateError(f"{self._title()} is held by a launcher, and was not deleted.", hint="`balsam killjob` ends it.")
        if not done.get("deleted"):
            raise type(self).DoesNotExist(f"{self._title()} is not in the DB any more.")
        self._fill(NOTHING, None, self._as_new())

    def _as_new(self) -> dict[str, Any]:
        """Return the fields for a new record like this one."""
        return {name: self._row[name] for name in self._CHECKS if name in self._row}

    # --- as Python sees it --------------------------------------------------------------------------------------------

    def display_dict(self) -> dict[str, Any]:
        """Return all fields as JSON knows them, in the order of the documentation."""
        shown = {"id": None if self.id is None else int(self.id)}
        for name, field in self._FIELDS.items():
            if not isinstance(field, HiddenAttribute):
                shown[name] = _plain(getattr(self, name))
        return shown

    @classmethod
    def _columns(cls) -> tuple[str, ...]:
        """Return the fields of a data frame."""
        return ("id", *(name for name, field in cls._FIELDS.items() if not isinstance(field, HiddenAttribute)))

    def __repr__(self) -> str:
        defaults = {name: _plain(field.default) for name, field in self._FIELDS.items()}
        shown = self.display_dict()
        parts = [f"{name}={value!r}" for name, value in shown.items() if name == "id" or value not in (defaults[name], None)]
        return f"{type(self).__name__}({', '.join(parts)})"

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, SiteRecord) or type(self) is not type(other):
            return NotImplemented
        if self._handle is None or other._handle is None or not is_same_site(self._handle.entry, other._handle.entry):
            return False
        return self._holds_what(other) and not (self._changes() or other._changes())

    def _holds_what(self, other: SiteRecord) -> bool:
        """Return whether the rows agree where both have a value; fields always have one, their default."""
        one, two = self._row, other._row
        return all(one[name] == two[name] for name in one.keys() & two.keys()) and all(
            self._stored(field) == other._stored(field) for field in self._FIELDS.values()
        )

    def __hash__(self) -> int:
        if not self._is_saved:
            raise TypeError(f"A {self._what} that was not saved yet cannot be put into a set, or be the key of a dict.")
        return hash((type(self), self._row["id"]))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "entry": self._handle and self._handle.entry}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        rest = dict(state)
        entry = rest.pop("entry")
        super().__setstate__({**rest, "_handle": entry and handle_at(entry)})


# Without the checks of `__setattr__`, since objects are made by the million.
_set_row, _set_changed, _set_live = (Record.__dict__[name].__set__ for name in ("_row", "_changed", "_live"))
_set_handle = SiteRecord.__dict__["_handle"].__set__


def _error(cls: type, name: str, base: type[Exception]) -> Any:
    return type(name, (base,), {"__module__": cls.__module__, "__qualname__": f"{cls.__qualname__}.{name}"})


def _no_such(name: str, cls: type[SiteRecord]) -> str:
    """Return the message for a name that is no field."""
    settable = [one for one, field in cls._FIELDS.items() if field.when in (ALWAYS, AT_CREATION)]
    meant = did_you_mean(name, settable) or f" Its fields are: {', '.join(settable)}"
    return f"{cls.__name__} has no field {name!r} that can be set.{meant}"


def _plain(value: Any) -> Any:
    """Return an attribute's value as JSON knows it."""
    if value is None or isinstance(value, (bool, float, dict, list)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, frozenset):
        return sorted(map(int, value))
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
