"""What users hold: copies of rows, which know their site, what was changed since they were read, and how to save that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from ..core import import_guard
from ..core.errors import InputError, InvalidSpec, NotFound, StateError
from ..core.field_specs import to_json
from ..core.suggest import did_you_mean
from .fields import ALWAYS, AT_CREATION, NEVER, Field, object_text
from .site_handle import Id, SiteHandle, handle_at, is_same_site

R = TypeVar("R", bound="Record")

_NOTHING: dict[str, Any] = {}  # stands for an empty dict in a million objects; replaced, never changed


class Record:
    """A row of a site, or one that shall become one.

    Two objects are equal if they hold the same and neither was changed since it was read. Saved ones can be put into sets.

    Raises:
        TypeError: the constructor is given what is no field; the nearest one is named. InvalidSpec: (a ValueError) a value
            makes no sense.
    """

    __slots__ = ("_changed", "_handle", "_row", "_seen")

    _KIND: ClassVar[str]  # as `sites.interface` calls it
    _REQUIRED: ClassVar[tuple[str, ...]] = ()
    _CONDITIONS: ClassVar[Mapping[str, str]]  # of `filter` -> their kind, see `query`
    _ORDERS: ClassVar[tuple[str, ...]] = ()  # fields by which `order_by` sorts
    _LEADING: ClassVar[frozenset[str]] = frozenset({"state"})  # fields that others follow: after a change the row is read anew
    _FIELDS: ClassVar[dict[str, Field]]
    _CHECKS: ClassVar[dict[str, Any]]  # field that the constructor takes -> its check

    DoesNotExist: ClassVar[type[NotFound]]
    MultipleObjectsReturned: ClassVar[type[InputError]]

    _handle: SiteHandle | None
    _row: dict[str, Any]  # as the site tells it; what is not in it has its default; without an id until it is saved
    _changed: dict[str, Any]  # assigned since then, checked
    _seen: dict[str, str]  # of those dicts that a user got hold of: what they were, as JSON

    def __init_subclass__(cls) -> None:
        cls._FIELDS = {name: field for name, field in vars(cls).items() if isinstance(field, Field)}
        cls._CHECKS = {name: field.check_new for name, field in cls._FIELDS.items() if field.when != NEVER}
        cls.DoesNotExist = _error(cls, "DoesNotExist", NotFound)
        cls.MultipleObjectsReturned = _error(cls, "MultipleObjectsReturned", InputError)

    def __init__(self, **fields: Any) -> None:
        self._handle, self._row, self._seen = None, _NOTHING, _NOTHING
        checks = self._CHECKS
        try:
            self._changed = {name: checks[name](value) for name, value in fields.items()}
        except (KeyError, ValueError):
            self._checked(fields)  # says which one is wrong
            raise
        for name in self._REQUIRED:
            if name not in fields:
                raise InvalidSpec(f"A {self._what()} needs a value for {name!r}.")

    @classmethod
    def _what(cls) -> str:
        return cls._KIND.replace("_", " ")

    @classmethod
    def _checked(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Each value as the site is told it. Raises TypeError, InvalidSpec: with the name of the field."""
        for name in fields:
            if name not in cls._CHECKS:
                raise TypeError(_no_such(name, cls))
        return {name: cls._FIELDS[name].checked(value, cls._what()) for name, value in fields.items()}

    @classmethod
    def _of(cls: type[R], row: dict[str, Any], handle: SiteHandle) -> R:
        """The object for a row of that site."""
        made = cls.__new__(cls)
        made._handle, made._row, made._changed, made._seen = handle, row, _NOTHING, _NOTHING
        return made

    # --- attributes ---------------------------------------------------------------------------------------------------

    @property
    def id(self) -> Id | None:
        """Its number, which knows its site; None until it is saved."""
        number = self._row.get("id")
        return None if number is None or self._handle is None else self._handle.id(number)

    @id.setter
    def id(self, value: Any) -> None:
        raise InvalidSpec(f"Cannot set id when {'updating' if self._is_saved else 'creating'} {type(self).__name__}")

    @property
    def _is_saved(self) -> bool:
        return self._row.get("id") is not None

    def _read(self, field: Field) -> Any:
        name = field.name
        if field.is_hidden:
            raise AttributeError(f"{type(self).__name__}.{name} cannot be read{field.instead}")
        if name in self._changed:
            value = self._changed[name]
        elif field.is_live:
            value = self._handed_out(field)
        else:
            value = self._stored(field)
        return field.show(value) if field.show else value

    def _stored(self, field: Field) -> Any:
        return self._row.get(field.name, field.default)

    def _handed_out(self, field: Field) -> Any:
        """A dict that the user may edit from now on."""
        name = field.name
        if name not in self._row:
            value: dict[str, Any] = {}
            if not self._is_saved:
                self._changed = {**self._changed, name: value}
                return value
            self._row[name] = value
        if name not in self._seen:
            self._seen = {**self._seen, name: object_text(self._row[name])}
        return self._row[name]

    def _assign(self, field: Field, value: Any) -> None:
        if field.when == NEVER:
            raise AttributeError(f"{type(self).__name__}.{field.name} is kept by the site and cannot be set")
        if field.when == AT_CREATION and self._is_saved:
            raise InvalidSpec(f"Cannot set {field.name} when updating {type(self).__name__}")
        self._changed = {**self._changed, field.name: field.checked(value, self._what())}

    def _changes(self) -> dict[str, Any]:
        """What is to be saved: what was assigned, and dicts that were edited in place."""
        found = {name: value for name, value in self._changed.items() if not self._is_as_it_was(name, value)}
        for name, before in self._seen.items():
            if name not in found:
                value = self._FIELDS[name].checked(self._row[name], self._what())
                if object_text(value) != before:
                    found[name] = value
        return {name: to_json(value) if self._FIELDS[name].is_live else value for name, value in found.items()}

    def _is_as_it_was(self, name: str, value: Any) -> bool:
        """Whether the site holds that value already; of a state, which others change, nobody knows."""
        field = self._FIELDS[name]
        if not self._is_saved or field.is_live or name == "state":
            return False
        stored = self._stored(field)
        return type(value) is type(stored) and bool(value == stored)

    # --- saving -------------------------------------------------------------------------------------------------------

    @property
    def _site(self) -> SiteHandle:
        if self._handle is None or not self._is_saved:
            raise type(self).DoesNotExist(f"This {self._what()} is not saved yet: `save()` does that.")
        return self._handle

    def save(self) -> None:
        """Add a new one to its site, or write what was changed since it was read, edits in a dict included.

        One write transaction; none if nothing was changed.

        Raises:
            InvalidSpec and others of `sites.interface.SiteInterface.create` and `update`; NotFound: it is gone.
        """
        import_guard.check_writable()
        if not self._is_saved:
            self._create()
            return
        changes = self._changes()
        if changes:
            self._site.interface.update(self._KIND, [{"id": self._row["id"], **changes}])
        self._saved(changes)
        if not self._LEADING.isdisjoint(changes):
            self.refresh_from_db()

    def _create(self) -> None:
        raise NotImplementedError

    def _created(self, row: dict[str, Any], handle: SiteHandle) -> None:
        """It is in the DB now, as `row`. Dicts that were given stay those that are edited."""
        live = {name: value for name, value in self._changed.items() if self._FIELDS[name].is_live}
        self._handle, self._changed, self._row = handle, _NOTHING, row
        self._keep(live)

    def _saved(self, changes: Mapping[str, Any]) -> None:
        """`changes` are in the DB now."""
        changes = {**self._changed, **changes}
        self._changed = _NOTHING
        self._row.update(changes)
        self._keep({name: value for name, value in changes.items() if self._FIELDS[name].is_live})

    def _keep(self, live: Mapping[str, Any]) -> None:
        """These dicts are the user's as well as ours, and are saved as they are now."""
        self._row.update(live)
        self._seen = {**self._seen, **{name: object_text(value) for name, value in live.items()}}

    def refresh_from_db(self) -> None:
        """Read the row anew, and forget what was not saved.

        Raises:
            DoesNotExist: it was never saved, or is gone.
        """
        handle = self._site
        rows = handle.interface.select(self._KIND, {"id": self._row["id"]})
        if not rows:
            raise type(self).DoesNotExist(f"{self._title()} is not in the DB any more.")
        self._renewed(rows[0])

    def _renewed(self, row: dict[str, Any]) -> None:
        """This is what the site tells now; what was not saved is forgotten."""
        self._row, self._changed, self._seen = row, _NOTHING, _NOTHING

    def _title(self) -> str:
        """For messages."""
        site = self._handle.entry.name if self._handle else ""
        return f"{type(self).__name__} {self._row.get('id')} of site {site}"

    def delete(self) -> None:
        """Remove it; the object stays, as one that was never saved.

        Raises:
            DoesNotExist: it is not there (any more). StateError: a launcher holds it. ParentInUse: other jobs wait for it.
        """
        import_guard.check_writable()
        done = self._site.interface.delete(self._KIND, {"id": self._row["id"]})
        if done.get("held"):
            raise StateError(f"{self._title()} is held by a launcher, and was not deleted.", hint="`balsam killjob` ends it.")
        if not done.get("deleted"):
            raise type(self).DoesNotExist(f"{self._title()} is not in the DB any more.")
        self._changed = self._as_new()
        self._row, self._seen, self._handle = _NOTHING, _NOTHING, None

    def _as_new(self) -> dict[str, Any]:
        """What a new one like it is given."""
        return {name: self._row[name] for name in self._CHECKS if name in self._row}

    # --- as Python sees it --------------------------------------------------------------------------------------------

    def display_dict(self) -> dict[str, Any]:
        """All fields as JSON knows them, in the order of the documentation."""
        shown = {"id": None if self.id is None else int(self.id)}
        for name, field in self._FIELDS.items():
            if not field.is_hidden:
                shown[name] = _plain(getattr(self, name))
        return shown

    def __repr__(self) -> str:
        defaults = {name: _plain(field.default) for name, field in self._FIELDS.items()}
        shown = self.display_dict()
        parts = [f"{name}={value!r}" for name, value in shown.items() if name == "id" or value not in (defaults[name], None)]
        return f"{type(self).__name__}({', '.join(parts)})"

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Record) or type(self) is not type(other):
            return NotImplemented
        if self._handle is None or other._handle is None or not is_same_site(self._handle.entry, other._handle.entry):
            return False
        return self._holds_what(other) and not (self._changes() or other._changes())

    def _holds_what(self, other: Record) -> bool:
        """Whether the sites tell the same of both, as far as both tell it; fields always, which have defaults."""
        one, two = self._row, other._row
        return all(one[name] == two[name] for name in one.keys() & two.keys()) and all(
            self._stored(field) == other._stored(field) for field in self._FIELDS.values()
        )

    def __hash__(self) -> int:
        if not self._is_saved:
            raise TypeError(f"A {self._what()} that was not saved yet cannot be put into a set, or be the key of a dict.")
        return hash((type(self), self._row["id"]))

    def __getstate__(self) -> Any:
        return self._handle and self._handle.entry, self._row, self._changed, self._seen

    def __setstate__(self, state: Any) -> None:
        entry, self._row, self._changed, self._seen = state
        self._handle = entry and handle_at(entry)


def _error(cls: type, name: str, base: type[Exception]) -> Any:
    return type(name, (base,), {"__module__": cls.__module__, "__qualname__": f"{cls.__qualname__}.{name}"})


def _no_such(name: str, cls: type[Record]) -> str:
    """What to say to a name that is no field."""
    settable = [one for one, field in cls._FIELDS.items() if field.when in (ALWAYS, AT_CREATION)]
    meant = did_you_mean(name, settable) or f" Its fields are: {', '.join(settable)}"
    return f"{cls.__name__} has no field {name!r} that can be set.{meant}"


def _plain(value: Any) -> Any:
    """An attribute's value as JSON knows it."""
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, (set, frozenset)):
        return sorted(int(one) for one in value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, (int, str)):
        return int(value) if isinstance(value, int) else str(value)
    if isinstance(value, (dict, list, float)):
        return value
    return str(value)


#: Nothing is written while the file of an application is imported for its class; here, too, because of sites behind ssh.
