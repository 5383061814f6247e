"""What the models have in common: attributes that are columns of a row, and objects that are copies of rows.

An object remembers what was read and what was changed since, so that saving it writes the changes and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import peewee

from ..core import field_specs
from ..core.errors import InputError, NotFound
from .engine.connection import Database
from .manager import active

# --- attributes -------------------------------------------------------------------------------------------------------


class _Accessor(peewee.FieldAccessor):
    """An attribute that is a column. What was not given has its default, so that new objects hold only what was."""

    def __get__(self, instance: Any, instance_type: Any = None) -> Any:
        if instance is None:
            return self.field
        return instance.__data__.get(self.name, self.field.default)

    def __set__(self, instance: Any, value: Any) -> None:
        instance._settle()
        instance.__data__[self.name] = value
        instance._dirty.add(self.name)


class _KeptAccessor(_Accessor):
    """A column that the store fills: an object that was added in a batch reads it when it is first asked for."""

    def __get__(self, instance: Any, instance_type: Any = None) -> Any:
        if instance is None:
            return self.field
        if self.name not in instance.__data__ and instance.id is not None:
            instance._follow()
        return instance.__data__.get(self.name, self.field.default)


class _FlagAccessor(_Accessor):
    def __get__(self, instance: Any, instance_type: Any = None) -> Any:
        if instance is None:
            return self.field
        value = instance.__data__.get(self.name, self.field.default)
        return bool(value if isinstance(value, int) else field_specs.checked(instance._FIELDS[self.name], value))


class _JSONAccessor(_Accessor):
    """A dict that may be edited in place: `_live` remembers which ones were handed out, for `save` to look at."""

    def __get__(self, instance: Any, instance_type: Any = None) -> Any:
        if instance is None:
            return self.field
        instance._settle()
        if self.name not in instance._live:
            value = instance.__data__.get(self.name, self.field.default)
            if not isinstance(value, dict):
                value = field_specs.read_object(field_specs.checked(instance._FIELDS[self.name], value))
            instance._live = {**instance._live, self.name: value}
        return instance._live[self.name]

    def __set__(self, instance: Any, value: Any) -> None:
        instance._settle()
        if self.name not in instance._dirty:
            instance._base = {**instance._base, self.name: instance.__data__.get(self.name, self.field.default)}
        super().__set__(instance, value)
        instance._live = {name: live for name, live in instance._live.items() if name != self.name}


class _NumberAccessor(_Accessor):
    """The integer primary key: None until the object is in the DB."""

    def __get__(self, instance: Any, instance_type: Any = None) -> Any:
        if instance is None:
            return self.field
        instance._settle()
        return instance.__data__.get(self.name)

    def __set__(self, instance: Any, value: Any) -> None:
        raise AttributeError(f"The {self.name} of a {instance._what} is given by the DB and cannot be set.")


class _JobIdAccessor(_NumberAccessor):
    """The UUID as text. Drawn when it is first asked for."""

    def __get__(self, instance: Any, instance_type: Any = None) -> Any:
        if instance is None:
            return self.field
        instance._settle()
        return instance._drawn_id()


class Number(peewee.AutoField):
    accessor_class = _NumberAccessor


class JobId(peewee.Field):
    accessor_class = _JobIdAccessor


class _Plain(peewee.Field):
    accessor_class = _Accessor


class _Kept(peewee.Field):
    accessor_class = _KeptAccessor


class _Flag(peewee.Field):
    accessor_class = _FlagAccessor


class _JSON(peewee.Field):
    accessor_class = _JSONAccessor


def peewee_field(field: field_specs.Field) -> peewee.Field:
    kind: type[peewee.Field[Any]] = _Flag if field.kind == "flag" else _JSON if field.kind in field_specs.JSON_KINDS else _Plain
    if not field.settable:
        kind = _Kept
    return kind(null=field.default is None, default=field.default)


# --- records ----------------------------------------------------------------------------------------------------------


class Record:
    """What jobs and applications have in common.

    `__data__` holds a row in its stored form, and over it, where `_dirty` says so, what the user gave.
    """

    _FIELDS: ClassVar[Mapping[str, field_specs.Field]]
    _COLUMNS: ClassVar[tuple[str, ...]]
    _GIVEN: ClassVar[frozenset[str]]  # names that the constructor takes
    _what: ClassVar[str]
    _database: Database | None = None
    _live: Mapping[str, Any] = {}
    _base: Mapping[str, str] = {}  # what was read of those dicts that were assigned since
    __data__: dict[str, Any]
    _dirty: set[str]
    id: int | None
    DoesNotExist: ClassVar[type[NotFound]]
    MultipleObjectsReturned: ClassVar[type[InputError]]
    objects: ClassVar[Any]

    def __init__(self, **fields: Any) -> None:
        if not self._GIVEN.issuperset(fields):
            fields = self._by_field(fields)
        self.__data__ = fields
        self._dirty = set(fields)

    def _by_field(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Aliases replaced by the fields they stand for, and objects by their id."""
        names = {name: field_specs.known_field(name, self._FIELDS, self._what).name for name in given}
        return {names[name]: value if name in self._FIELDS else getattr(value, "id", value) for name, value in given.items()}

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: without the DB; where it is unpickled, the active one is used."""
        self._settle()
        return {name: value for name, value in self.__dict__.items() if name != "_database"}

    @classmethod
    def _load(cls, row: tuple[Any, ...], database: Database) -> Any:
        """An object for a row of `_COLUMNS`."""
        made = cls.__new__(cls)
        made.__data__ = dict(zip(cls._COLUMNS, row))
        made._dirty = set()
        made._database = database
        return made

    def _settle(self) -> None:
        """Take over what has become known about this object since it was added."""

    def _given(self) -> dict[str, Any]:
        """What was given or changed, for the store to check."""
        given = {name: self.__data__[name] for name in self._dirty}
        for name, live in self._live.items():
            if name in self._dirty or self._is_edited(name, live):
                given[name] = live
        return given

    def _is_edited(self, name: str, live: Any) -> bool:
        field = self._FIELDS[name]
        return bool(field_specs.checked(field, live) != field_specs.checked(field, self.__data__.get(name, field.default)))

    def _saved(self, given: Mapping[str, Any]) -> None:
        """`given` is in the DB now."""
        live = {name: value for name, value in given.items() if isinstance(value, dict) and name in self._FIELDS}
        self._live = {**self._live, **live}
        self.__data__.update(self._in_stored_form(given))
        self._dirty = set()
        self._base = {}

    def _rebase(self, stored: Mapping[str, str]) -> None:
        """Take over what others did to dicts since they were read; `stored` holds them as they are in the DB now.

        Key by key: what was changed here stays so, the others are the DB's.
        """
        for name, text in stored.items():
            base = self._base.get(name) if name in self._dirty else self.__data__.get(name, self._FIELDS[name].default)
            if base is None or base == text:
                continue
            live = getattr(self, name)
            mine = field_specs.read_object(field_specs.checked(self._FIELDS[name], live))
            merged = _merged(field_specs.read_object(base), mine, field_specs.read_object(text))
            if name in self._dirty:  # what was assigned belongs to the user; it may stand in other jobs, too
                self._live = {**self._live, name: merged}
                self._dirty.discard(name)
            else:
                live.clear()
                live.update(merged)
            self.__data__[name] = text

    def _in_stored_form(self, given: Mapping[str, Any]) -> dict[str, Any]:
        fields = self._FIELDS
        return {name: field_specs.checked(fields[name], value) if name in fields else value for name, value in given.items()}

    def _number(self) -> int:
        """The id; UnknownJob or UnknownApp for an object that is not in the DB yet."""
        if self.id is None:
            raise type(self).DoesNotExist(f"This {self._what} is not in the DB yet: `save()` adds it.")
        return self.id

    @property
    def _home(self) -> Database:
        return self._database or active()

    def refresh_from_db(self) -> None:
        """Read the row anew and forget what was not saved.

        Raises:
            the model's DoesNotExist: the row is gone.
        """
        found = type(self).objects.using(self._home).get(id=self._number())
        self.__data__, self._dirty, self._live, self._base = found.__data__, set(), {}, {}
        self._database = self._home

    def to_dict(self) -> dict[str, Any]:
        """All fields as Python values that can be written as JSON."""
        return {name: getattr(self, name) for name in self._COLUMNS}

    def __str__(self) -> str:
        return repr(self)

    def __ne__(self, other: object) -> bool:
        return not self == other


def _merged(base: Mapping[str, Any], mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """`theirs`, and over it whatever became of `base` in `mine`; all of them as JSON gives them."""
    kept = {key: value for key, value in theirs.items() if key in mine or key not in base}
    return {**kept, **{key: value for key, value in mine.items() if key not in base or repr(base[key]) != repr(value)}}


class Objects:
    """`objects`: a query set of everything, fresh at each access, and of the class only."""

    def __get__(self, instance: Any, owner: Any) -> Any:
        if instance is not None:
            raise AttributeError(f"objects belongs to the class: {owner.__name__}.objects")
        return owner._QUERY_SET(owner)
