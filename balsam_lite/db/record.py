"""The record: an object that is a copy of a row, and knows what was changed since the row was read.

`BalsamJob` and the slides' application, and all models of `balsam_lite.api`, are records. Saving one writes its changes and
nothing else. A dict that a user edits in place is merged key by key with what others have written meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ..core import field_specs
from ..core.errors import InputError, InvalidSpec, NotFound, UnknownAttribute

if TYPE_CHECKING:
    from .engine.connection import Database

#: Shared as the empty dict of a million objects; replaced, never changed.
NOTHING: dict[str, Any] = {}


class Attribute:
    """A field of a record.

    Args:
        spec: the name, kind and default of the value as it is stored.
        check: turns a value that is assigned into the one to keep, or raises ValueError with a text that follows the name of
            the field; None: the store checks it when the record is saved.
        show: turns the stored value into the one that users get; None: they are the same.
    """

    def __init__(
        self, spec: field_specs.Field, check: Callable[[Any], Any] | None = None, show: Callable[[Any], Any] | None = None
    ) -> None:
        self.spec, self.check, self.show = spec, check, show
        self.name, self.default = spec.name, spec.default
        self.__doc__ = field_specs.describe(spec)

    @property
    def is_dict(self) -> bool:
        """Return whether users get a dict, and may edit it in place."""
        return False

    def __get__(self, record: Record | None, owner: type | None = None) -> Any:
        return self if record is None else self.read(record)

    def __set__(self, record: Record, value: Any) -> None:
        record._settle()
        record._changed = {**record._changed, self.name: self.checked(value, record._what)}

    def read(self, record: Record) -> Any:
        """Return the value that users get."""
        name, changed = self.name, record._changed
        value = changed[name] if name in changed else record._row.get(name, self.default)
        return value if self.show is None else self.show(value)

    def checked(self, value: Any, what: str) -> Any:
        """Return an assigned value as the record keeps it. Raises InvalidSpec, with `what` and the name of the field."""
        if self.check is None:
            return value
        try:
            return self.check(value)
        except ValueError as exc:
            if isinstance(exc, InvalidSpec):
                raise
            raise InvalidSpec(f"{what} {self.name} {exc}") from None

    def stored(self, value: Any) -> Any:
        """Return a kept value in the form of a row. Raises InvalidSpec."""
        return field_specs.checked(self.spec, value)


class DictAttribute(Attribute):
    """A field that holds a dict. The row has it as JSON text, or as the dict that a site has sent."""

    @property
    def is_dict(self) -> bool:
        return True

    def read(self, record: Record) -> dict[str, Any]:
        """Return the dict, which the record looks at again when it is saved."""
        record._settle()
        name = self.name
        if name in record._changed:
            value = record._changed[name]
            if not isinstance(value, dict):
                value = field_specs.read_object(self.text(value))
                record._changed = {**record._changed, name: value}
            return value
        if name not in record._live:
            record._live = {**record._live, name: field_specs.read_object(self.text_in_row(record))}
        return record._live[name]

    def live(self, value: Any) -> dict[str, Any]:
        """Return the dict that users edit after `value` was saved: the same object, unless values in it became text."""
        if isinstance(value, dict) and (self.spec.kind == "object" or field_specs.holds_texts(value)):
            return value
        return field_specs.read_object(self.text(value))

    def text_in_row(self, record: Record) -> str:
        """Return the dict of the row as JSON text."""
        value = record._row.get(self.name, self.default)
        return value if isinstance(value, str) else self.text(value)

    def text(self, value: Any) -> str:
        """Return the dict as JSON text. Raises InvalidSpec: it cannot be stored."""
        return str(field_specs.checked(self.spec, value))


class Record:
    """A copy of a row, or a new row that is not stored yet.

    `_row` holds the row in its stored form, `_changed` what was assigned since it was read, and `_live` the dicts that a user
    has got hold of and may have edited. A field that is in none of them has its default.
    """

    __slots__ = ("_changed", "_live", "_row")

    _FIELDS: ClassVar[dict[str, Attribute]] = {}
    _SETTABLE: ClassVar[frozenset[str]]  # names that take part in `record.NAME = value`
    _what: ClassVar[str]  # in messages
    _SHOWN: ClassVar[tuple[str, ...]] = ()  # fields in the tables of notebooks
    DoesNotExist: ClassVar[type[NotFound]]
    MultipleObjectsReturned: ClassVar[type[InputError]]

    _row: dict[str, Any]
    _changed: dict[str, Any]
    _live: dict[str, dict[str, Any]]

    def __init_subclass__(cls) -> None:
        cls._FIELDS = {**cls._FIELDS, **{name: one for name, one in vars(cls).items() if isinstance(one, Attribute)}}
        members = (member for base in cls.__mro__ for member in vars(base).items())
        cls._SETTABLE = frozenset(name for name, member in members if hasattr(type(member), "__set__"))

    def __setattr__(self, name: str, value: Any) -> None:
        if name[0] != "_" and name not in self._SETTABLE:
            raise UnknownAttribute.named(self._what, name, self._FIELDS)
        object.__setattr__(self, name, value)

    def _settle(self) -> None:
        """Update this record with values that the store has set since it was added."""

    # --- what was changed ---------------------------------------------------------------------------------------------

    def _changes(self) -> dict[str, Any]:
        """Return the assigned values, and the dicts that were edited in place."""
        found = dict(self._changed)
        for name, live in self._live.items():
            if self._is_edited(name, live):
                found[name] = live
        return found

    def _is_edited(self, name: str, live: dict[str, Any]) -> bool:
        attribute: Any = self._FIELDS[name]
        return bool(attribute.text(live) != attribute.text_in_row(self))

    def _saved(self, changes: Mapping[str, Any]) -> None:
        """Record that `changes` are in the DB. The user may go on editing the same dicts."""
        fields: Any = self._FIELDS
        live = {name: fields[name].live(value) for name, value in changes.items() if fields[name].is_dict}
        stored = {name: fields[name].stored(value) for name, value in changes.items()}
        self._row, self._changed, self._live = {**self._row, **stored}, NOTHING, {**self._live, **live}

    def _merge(self, stored: Mapping[str, str]) -> None:
        """Merge changes by others to dicts since these were read; `stored` holds their present form in the DB."""
        for name, text in stored.items():
            attribute: Any = self._FIELDS[name]
            before = attribute.text_in_row(self)
            if before == text:
                continue
            mine = self._changed.get(name, self._live.get(name))
            if mine is None:
                continue
            merged = field_specs.merge_texts(before, attribute.text(mine), text)
            if name in self._changed:  # what was assigned belongs to the user, who may have given it to other records, too
                self._changed = {key: value for key, value in self._changed.items() if key != name}
                self._live = {**self._live, name: merged}
            else:
                mine.clear()
                mine.update(merged)
            self._row = {**self._row, name: text}

    # --- copies -------------------------------------------------------------------------------------------------------

    def _shown_fields(self) -> dict[str, Any]:
        """Return the fields that notebooks show."""
        return {name: getattr(self, name) for name in self._SHOWN}

    def _repr_html_(self) -> str:
        from ..core.notebook import html_form

        return html_form(type(self).__name__, self._shown_fields())

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickle and copy: without the DB; where it is unpickled, the active one is used."""
        self._settle()
        return {"_row": self._row, "_changed": self._changed, "_live": self._live}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)

    def __ne__(self, other: object) -> bool:
        return not self == other


class Objects:
    """`objects`: a query set of everything, fresh at each access, and of the class only."""

    def __get__(self, instance: Any, owner: Any) -> Any:
        if instance is not None:
            raise AttributeError(f"objects belongs to the class: {owner.__name__}.objects")
        return owner._QUERY_SET(owner)


# --- records of this process's DB --------------------------------------------------------------------------------------


class KeptAttribute(Attribute):
    """A column that the store fills: an object that was added in a batch reads it when it is first asked for."""

    def read(self, record: Any) -> Any:
        if self.name not in record._row and self.name not in record._changed and record.id is not None:
            record._follow()
        return super().read(record)


class FlagAttribute(Attribute):
    def read(self, record: Any) -> bool:
        value = super().read(record)
        return bool(value if isinstance(value, int) else self.stored(value))


class NumberAttribute(Attribute):
    """The integer primary key: None until the object is in the DB."""

    SPEC = field_specs.Field("id", "id", None, settable=False)

    def __init__(self) -> None:
        super().__init__(self.SPEC)

    def read(self, record: Any) -> Any:
        record._settle()
        return record._row.get(self.name)

    def __set__(self, record: Any, value: Any) -> None:
        raise AttributeError(f"The {self.name} of a {record._what} is given by the DB and cannot be set.")


class JobIdAttribute(NumberAttribute):
    """The UUID as text. Drawn when it is first asked for."""

    SPEC = field_specs.Field("job_id", "text", "")

    def read(self, record: Any) -> str:
        record._settle()
        return str(record._drawn_id())

    def stored(self, value: Any) -> str:
        return field_specs.checked_job_id(value)


def attributes(specs: Iterable[field_specs.Field]) -> dict[str, Attribute]:
    """Return the attributes of a stored record for these columns."""
    return {spec.name: _attribute(spec) for spec in specs}


def _attribute(spec: field_specs.Field) -> Attribute:
    if not spec.settable:
        return KeptAttribute(spec)
    if spec.kind == "flag":
        return FlagAttribute(spec)
    return DictAttribute(spec) if spec.kind in field_specs.JSON_KINDS else Attribute(spec)


class StoredRecord(Record):
    """A record of the DB that this process has opened: a job or an application.

    What is assigned is checked by the store, when it is saved. Rows hold JSON as text and flags as 0 and 1.
    """

    _SPECS: ClassVar[Mapping[str, field_specs.Field]]  # of the fields
    _COLUMNS: ClassVar[tuple[str, ...]]  # of the rows that `_load` takes
    _GIVEN: ClassVar[frozenset[str]]  # names that the constructor takes
    _database: Database | None = None
    id: int | None
    objects: ClassVar[Any]

    def __init__(self, **fields: Any) -> None:
        if not self._GIVEN.issuperset(fields):
            fields = self._by_field(fields)
        set_row(self, NOTHING)
        _set_changed(self, fields)
        _set_live(self, NOTHING)

    @classmethod
    def _by_field(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields with aliases replaced by names, and objects by their id."""
        names = {name: field_specs.known_field(name, cls._SPECS, cls._what).name for name in given}
        return {names[name]: value if name in cls._SPECS else getattr(value, "id", value) for name, value in given.items()}

    @classmethod
    def _load(cls, row: tuple[Any, ...], database: Database) -> Any:
        """Return the object for a row of `_COLUMNS`."""
        made = cls.__new__(cls)
        set_row(made, dict(zip(cls._COLUMNS, row)))
        _set_changed(made, NOTHING)
        _set_live(made, NOTHING)
        made._database = database
        return made

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {**state, **{name: value for name, value in self.__dict__.items() if name != "_database"}}

    def _number(self) -> int:
        """Return the id; UnknownJob or UnknownApp for an object that is not in the DB yet."""
        if self.id is None:
            raise type(self).DoesNotExist(f"This {self._what} is not in the DB yet: `save()` adds it.")
        return int(self.id)

    @property
    def _db(self) -> Database:
        from .manager import active

        return self._database or active()

    def refresh_from_db(self) -> None:
        """Read the row again and discard unsaved changes.

        Raises:
            the model's DoesNotExist: the row is gone.
        """
        database = self._db
        found = type(self).objects.using(database).get(id=self._number())
        self._row, self._changed, self._live, self._database = found._row, NOTHING, NOTHING, database

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as Python values that can be written as JSON."""
        return {name: getattr(self, name) for name in self._COLUMNS}

    def __str__(self) -> str:
        return repr(self)


# Without the checks of `__setattr__`, since objects are made by the million.
set_row, _set_changed, _set_live = (Record.__dict__[name].__set__ for name in ("_row", "_changed", "_live"))
