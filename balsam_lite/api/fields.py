"""The attributes of the objects that users hold: what each takes, and in which form it goes to a site and comes from there.

A check takes what a user gives and returns what a site is told (JSON's types, times in microseconds), or raises ValueError
with a text that follows the name of the field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..core import field_specs
from ..core.errors import InvalidSpec
from . import times

if TYPE_CHECKING:
    from .records import Record

Check = Callable[[Any], Any]

#: When a user may set a field: always; until the object is saved; never, it is the site's.
ALWAYS, AT_CREATION, NEVER = "always", "at creation", "never"


class Field:
    """An attribute of a `Record`, which keeps its value.

    Args:
        check: see above. default: of an object that was not given one. when: a user may set it.
        show: makes the attribute's value of what the site tells; None: it is that. is_live: a dict that may be edited in place.
        is_hidden: it can be set, and not be read; `instead`: what to say to those who try.
    """

    __slots__ = ("check", "default", "instead", "is_hidden", "is_live", "name", "show", "when")

    def __init__(
        self,
        check: Check,
        default: Any = None,
        when: str = ALWAYS,
        show: Callable[[Any], Any] | None = None,
        *,
        is_live: bool = False,
        is_hidden: bool = False,
        instead: str = "",
    ) -> None:
        self.check, self.default, self.when, self.show = check, default, when, show
        self.is_live, self.is_hidden, self.instead = is_live, is_hidden, instead
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, record: Record | None, owner: type | None = None) -> Any:
        return self if record is None else record._read(self)

    def __set__(self, record: Record, value: Any) -> None:
        record._assign(self, value)

    @property
    def check_new(self) -> Check:
        """What checks the value that a new object is given."""
        return self.check

    def checked(self, value: Any, what: str) -> Any:
        """The value as the site is told it. Raises InvalidSpec, with the names of the object and the field."""
        try:
            return self.check(value)
        except ValueError as exc:
            if isinstance(exc, InvalidSpec):
                raise
            raise InvalidSpec(f"{what} {self.name} {exc}") from None


# --- kinds of fields; they return Any, so that a class can say what the attribute holds ---------------------------------


def of_job(default: Any, like: str = "", when: str = ALWAYS) -> Any:
    """A field that is checked as the job's column `like` is, and kept in the form that this check gives."""
    return _Like(like, default, when)


class _Like(Field):
    """A field that is named as a column of the job table, unless `like` says another."""

    __slots__ = ("_like",)

    def __init__(self, like: str, default: Any, when: str) -> None:
        self._like = like
        super().__init__(str, default, when)

    def __set_name__(self, owner: type, name: str) -> None:
        super().__set_name__(owner, name)
        self.check = column_check(self._like or name)


def column_check(column: str) -> Check:
    """That of a column of the job table."""
    return field_specs.job_columns((column,))[1][0]


class NumberField(Field):
    """The number of another row of the same site."""

    __slots__ = ()

    def __get__(self, record: Record | None, owner: type | None = None) -> Any:
        if record is None:
            return self
        value = record._read(self)
        return record._handle.id(value) if record._handle is not None and type(value) is int else value


class SiteField(Field):
    """The number or the name of the object's site: what was given, until it is saved."""

    __slots__ = ()

    def __get__(self, record: Record | None, owner: type | None = None) -> Any:
        if record is None:
            return self
        if record._handle is None:
            return record._changed.get(self.name)
        return record._handle.entry.number if self.name == "site_id" else record._handle.entry.name


class StateField(Field):
    """One of an Enum's words, which can be set of what exists already."""

    __slots__ = ("_refusal",)

    def __init__(self, choice: Any) -> None:
        super().__init__(lambda value: checked_word(choice, value), show=lambda value: shown_word(choice, value))

    def __set_name__(self, owner: type, name: str) -> None:
        super().__set_name__(owner, name)
        self._refusal = f"Cannot set state when creating {owner.__name__}"

    @property
    def check_new(self) -> Check:
        return self._refuse

    def _refuse(self, value: Any) -> Any:
        raise InvalidSpec(self._refusal)

    def __set__(self, record: Record, value: Any) -> None:
        if not record._is_saved:
            self._refuse(value)
        super().__set__(record, value)


def state(choice: Any) -> Any:
    """The state of what exists already."""
    return StateField(choice)


def site_id() -> Any:
    """The site by number."""
    return SiteField(_site_number, None, AT_CREATION)


def site_name() -> Any:
    """The site by name."""
    return SiteField(lambda value: None if value is None else str(value), None, AT_CREATION)


def _site_number(value: Any) -> int | None:
    value = getattr(value, "id", value)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise ValueError(f"must be the number of a site, not {value!r}")
    return value


def text(default: str | None = "", when: str = ALWAYS) -> Any:
    """One line of text."""
    return Field(column_check("name"), default, when)


def count(default: int | None = None, when: str = ALWAYS) -> Any:
    """A whole number of 1 or more."""
    return Field(column_check("num_nodes"), default, when)


def count0(default: int | None = None, when: str = ALWAYS) -> Any:
    """A whole number of 0 or more."""
    return Field(column_check("restart_limit"), default, when)


def minutes(default: int | None = None, when: str = ALWAYS) -> Any:
    """Declare a field of whole minutes, 1 or more; it also accepts text such as "1h30m"."""
    return Field(column_check("wall_time_minutes"), default, when)


def minutes0(default: int | None = None, when: str = ALWAYS) -> Any:
    """Declare a field of whole minutes that may be 0; see `minutes`."""
    return Field(lambda value: 0 if value in (0, "0") else column_check("wall_time_minutes")(value), default, when)


def flag(default: bool, when: str = ALWAYS) -> Any:
    """True or False."""
    return Field(checked_flag, default, when, bool)


def checked_flag(value: Any) -> bool:
    return bool(_flag(value))


_flag = column_check("wait_for_parents")


def words(when: str = ALWAYS) -> Any:
    """A dict of text to text."""
    return Field(checked_words, {}, when, is_live=True)


def json_object(when: str = ALWAYS) -> Any:
    """A dict that JSON can carry."""
    return Field(checked_object, {}, when, is_live=True)


def word(choice: Any, when: str = ALWAYS, default: Any = None) -> Any:
    """One of an Enum's words."""
    return Field(lambda value: checked_word(choice, value), default, when, lambda value: shown_word(choice, value))


def moment(show: Callable[[int | None], datetime | None] = times.naive, when: str = NEVER) -> Any:
    """A time."""
    return Field(_moment, None, when, show)


def known(show: Callable[[Any], Any] | None = None, default: Any = None) -> Any:
    """Whatever the site tells; nobody can set it."""
    return Field(_anything, default, NEVER, show)


# --- checks -----------------------------------------------------------------------------------------------------------


_object_text = column_check("data")


def object_text(value: Any) -> str:
    """A dict as JSON text. Raises ValueError."""
    return str(_object_text(value))


def checked_object(value: Any) -> dict[str, Any]:
    """A dict that JSON can carry; that very one, so that later edits of it count. Raises ValueError."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a dict, not {value!r}")
    object_text(value)
    return value if type(value) is dict else dict(value)


def checked_words(value: Any) -> dict[str, str]:
    """A dict of text to text, likewise."""
    if type(value) is not dict:
        value = checked_object(value)
    for key, one in value.items():
        if type(key) is str and key and key.isprintable() and type(one) is str and one.isprintable():
            continue  # nearly always
        break
    else:
        return value
    found = field_specs.texts_by_text(value)
    object_text(found)
    return found


def checked_word(choice: Any, value: Any) -> str:
    """One of an Enum's words as plain text. Raises ValueError with the others."""
    try:
        return str(choice(value).value)
    except ValueError:
        raise ValueError(f"must be one of {', '.join(one.value for one in choice)}, not {value!r}") from None


def shown_word(choice: Any, value: Any) -> Any:
    """The Enum's member; the plain text where another version of balsam_lite knows more words. None stays None."""
    try:
        return None if value is None else choice(value)
    except ValueError:
        return value


def listed(value: Any) -> list[Any]:
    """What an iterable holds, or that one thing itself; text is one thing."""
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)):
        return list(value)
    return [value]


def _moment(value: Any) -> int:
    return times.to_us(value, "a time")


def _anything(value: Any) -> Any:
    return value
