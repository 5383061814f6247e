"""Sweeps: variables with many values, their combinations, and `{NAME}` in texts.

Values are texts, as they were typed or as exact decimal arithmetic makes them: `0:1:0.1` has eleven values, of which the second
is 0.1. Nothing is listed before it is needed, so a sample of a product of 10**12 combinations costs no more than its own size.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Context, Decimal, InvalidOperation
from math import prod
from typing import Any, NamedTuple, Union, overload

from ..core.errors import InvalidSpec

#: Jobs of one sweep. More are refused: they are a mistake, or need several commands.
MAX_JOBS = 10_000_000
#: Values, or combinations that are zipped, that are compared with each other.
_MAX_COMPARED = 1_000_000
#: Digits of the bounds of a range, and its largest exponent: differences and products are exact.
_MAX_DIGITS, _MAX_EXPONENT = 40, 60
_EXACT = Context(prec=4 * (_MAX_DIGITS + _MAX_EXPONENT))

_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*:\s*({_NUMBER})\s*(?::\s*({_NUMBER})\s*)?")
_ITEM = re.compile(r'\s*"((?:[^"]|"")*)"\s*(?:,|\Z)|([^,]*)(?:,|\Z)')
_ARRAY_ITEM = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*(?::\s*(\d+)\s*)?)?")


class DecimalRange(Sequence[str]):
    """The decimal numbers from `start` to `stop`, both included, in steps of `step`; the last step may not reach `stop`."""

    def __init__(self, start: str, stop: str, step: str = "") -> None:
        """Raises InvalidSpec: the step is 0 or leads away from `stop`, or a number has too many digits."""
        first, last = _decimal(start), _decimal(stop)
        width = _decimal(step) if step else Decimal(1 if last >= first else -1)
        # Whole numbers of the smallest decimal place are exact, and fast.
        self._places = max(0, *(-_exponent(one) for one in (first, last, width)))
        self._start, end, self._step = (int(_EXACT.scaleb(one, self._places)) for one in (first, last, width))
        shown = ":".join(filter(None, (start, stop, step)))
        if not self._step:
            raise InvalidSpec(f"The range {shown} has the step 0")
        self._size = (end - self._start) // self._step + 1
        if self._size < 1:
            sign = "negative" if end < self._start else "positive"
            raise InvalidSpec(f"The range {shown} has no values: its step must be {sign}")

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(self._size))]
        if not 0 <= place < self._size:
            raise IndexError(place)
        value = self._start + self._step * place
        if not self._places:
            return str(value)
        digits = str(abs(value)).rjust(self._places + 1, "0")
        text = f"{digits[: -self._places]}.{digits[-self._places :]}".rstrip("0").rstrip(".")
        return f"-{text}" if value < 0 else text


def _exponent(value: Decimal) -> int:
    exponent = value.as_tuple().exponent
    return exponent if isinstance(exponent, int) else _MAX_EXPONENT + 1


def _decimal(text: str) -> Decimal:
    try:
        value = Decimal(text.strip())
    except InvalidOperation:
        raise InvalidSpec(f"{text!r} is no decimal number") from None
    if len(value.as_tuple().digits) > _MAX_DIGITS or abs(_exponent(value)) > _MAX_EXPONENT:
        raise InvalidSpec(f"{text!r} has too many digits for a range: at most {_MAX_DIGITS}, and {_MAX_EXPONENT} zeros")
    return value


class Chain(Sequence[str]):
    """Several lists and ranges after one another."""

    def __init__(self, parts: Sequence[Sequence[str]]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        for part in self._parts:
            if place < len(part):
                return part[place]
            place -= len(part)
        raise IndexError(place)


class Variable(NamedTuple):
    """A name, and the values that it takes one after the other."""

    name: str
    values: Sequence[Any]


def parse(text: str, lines_of: Callable[[str], Sequence[str]]) -> Variable:
    """Return the variable that `NAME=VALUES` describes.

    VALUES are a list with commas, whose items are ranges START:STOP or START:STOP:STEP with STOP included, or other texts, in
    double quotes where they hold a comma or look like a range; or @FILE, the lines of a file, as `lines_of` returns them.

    >>> list(parse('T=1:2:0.5,10,"3:4","a,b"', lines_of=lambda path: []).values)
    ['1', '1.5', '2', '10', '3:4', 'a,b']

    Raises:
        InvalidSpec: it is something else. The errors of `lines_of`.
    """
    name, equals, listed = text.partition("=")
    name = name.strip()
    if not equals or not _NAME.fullmatch(name):
        raise InvalidSpec(
            f"A sweep must look like NAME=VALUES, not {text!r}", hint='Examples: T=100:500:20, P=1,2,5, name="a,b",c, x=@FILE'
        )
    if listed.startswith("@"):
        values: Sequence[str] = lines_of(listed[1:])
        if not values:
            raise InvalidSpec(f"The sweep of {name} has no values: {listed[1:]} has no lines")
        return Variable(name, values)
    try:
        return Variable(name, _values(listed))
    except InvalidSpec as exc:
        raise InvalidSpec(f"The sweep of {name}: {exc.message}", hint=exc.hint) from None


def _values(listed: str) -> Sequence[str]:
    parts: list[Sequence[str]] = []
    place = 0
    while place <= len(listed):
        found = _ITEM.match(listed, place)
        assert found
        quoted, plain = found.groups()
        if quoted is None and plain.lstrip().startswith('"'):
            raise InvalidSpec(f"a double quote is not closed, or not followed by a comma: {listed[place:]}")
        if quoted is None and not plain.strip():
            raise InvalidSpec(f"there is an empty value in {listed!r}", hint='An empty text is written "".')
        one = _RANGE.fullmatch(plain or "")
        if one:
            parts.append(DecimalRange(*filter(None, one.groups())))
        else:
            value = plain.strip() if quoted is None else quoted.replace('""', '"')
            parts = (
                [*parts, [value]] if not parts or isinstance(parts[-1], DecimalRange) else [*parts[:-1], [*parts[-1], value]]
            )
        if not found[0].endswith(","):
            break
        place = found.end()
    return parts[0] if len(parts) == 1 else Chain(parts)


def parse_array(text: str) -> Variable:
    """Return the variable `i` with the numbers of `1-1000`, `1-10:2` (in steps of 2) or `1,5,7-9`, as Slurm's --array has them.

    Raises:
        InvalidSpec: it is something else.
    """
    parts: list[Sequence[str]] = []
    for item in text.split(","):
        found = _ARRAY_ITEM.fullmatch(item)
        if not found:
            raise InvalidSpec(f"An array must look like 1-1000, 1-10:2 or 1,5,7-9, not {text!r}")
        start, stop, step = found.groups()
        if stop and int(stop) < int(start):
            raise InvalidSpec(f"The array {item.strip()} ends before it begins")
        parts.append(DecimalRange(start, stop or start, step or "1"))
    return Variable("i", parts[0] if len(parts) == 1 else Chain(parts))


# --- combinations -----------------------------------------------------------------------------------------------------


class Product:
    """All combinations of the values of some variables; the last variable changes fastest."""

    def __init__(self, variables: Sequence[Variable]) -> None:
        """Raises InvalidSpec: two variables have one name, or one has a value twice."""
        _check_names(variables)
        for name, values in variables:
            _refuse_repeated(f"The sweep of {name}", values)
        self.variables = variables
        self.total = prod(_size(one.values) for one in variables)

    def __getitem__(self, place: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, values in reversed(self.variables):
            place, at = divmod(place, _size(values))
            found[name] = values[at]
        return {name: found[name] for name, _ in self.variables}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.__getitem__, _counting(self.total))


class Zip:
    """The first values of all variables, then the second ones, and so on."""

    def __init__(self, variables: Sequence[Variable]) -> None:
        """Raises InvalidSpec: two variables have one name, or different numbers of values, or two combinations are the same."""
        _check_names(variables)
        sizes = {one.name: _size(one.values) for one in variables}
        if len({*sizes.values()}) > 1:
            listed = ", ".join(f"{name} has {size}" for name, size in sizes.items())
            raise InvalidSpec(f"Variables that are zipped need equally many values: {listed}")
        self.variables = variables
        self.total = next(iter(sizes.values()), 0)
        if self.total <= _MAX_COMPARED:
            _refuse_repeated("The sweep", [", ".join(f"{name}={one[name]}" for name in sizes) for one in self])

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {name: values[place] for name, values in self.variables}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.__getitem__, _counting(self.total))


class Sample:
    """Some of the combinations, without repetition, in their order. The same seed gives the same ones."""

    def __init__(self, of: Product | Zip, jobs: int, seed: int) -> None:
        """Raises InvalidSpec: there are fewer combinations than `jobs`."""
        if jobs > of.total:
            raise InvalidSpec(f"There are {of.total} combinations, of which {jobs} different ones cannot be drawn")
        refuse_too_many(jobs)
        self.variables, self.total, self._of = of.variables, jobs, of
        # Floyd's algorithm: memory and time grow with the sample, not with the combinations. `randrange` gives the same numbers
        # in every version of Python.
        draw = random.Random(seed).randrange
        chosen: set[int] = set()
        for last in range(of.total - jobs, of.total):
            place = draw(last + 1)
            chosen.add(last if place in chosen else place)
        self._places = sorted(chosen)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self._of[self._places[place]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self._of.__getitem__, self._places)


#: A series of combinations: `total` of them, by place or one after the other.
Sweep = Union[Product, Zip, Sample]


def _size(values: Sequence[Any]) -> int:
    """Return the number of values, also of more than `len` can tell."""
    return values.__len__()


def _counting(total: int) -> Iterator[int]:
    return iter(range(total))


def _check_names(variables: Sequence[Variable]) -> None:
    names = [one.name for one in variables]
    double = [name for name in names if names.count(name) > 1]
    if double:
        raise InvalidSpec(f"The variable {double[0]} is swept twice")


def _refuse_repeated(what: str, values: Sequence[Any]) -> None:
    if isinstance(values, DecimalRange) or _size(values) > _MAX_COMPARED:
        return
    seen = set()
    for value in values:
        if value in seen:
            raise InvalidSpec(f"{what} has {value} twice", hint="To run each job N times, sweep a variable more: rep=1:N.")
        seen.add(value)


def refuse_too_many(jobs: int) -> None:
    """Raise InvalidSpec if that is more than a sweep may add."""
    if jobs > MAX_JOBS:
        raise InvalidSpec(
            f"The sweep has {jobs} combinations; at most {MAX_JOBS} jobs are added at once.",
            hint="`--random N` draws N of them. Several commands, each with a part of the values, add more.",
        )


# --- values -----------------------------------------------------------------------------------------------------------


def replacer(names: Sequence[str]) -> Callable[[Any, Mapping[str, Any]], Any]:
    """Return a function that puts values in place of `{NAME}`, for these names only, in a text or the texts of a dict or list.

    >>> replacer(["T"])("-t {T} {print $1} ${HOME}", {"T": "300"})
    '-t 300 {print $1} ${HOME}'
    """
    place = re.compile(rf"\{{({'|'.join(map(re.escape, names))})\}}")

    def replaced(value: Any, values: Mapping[str, Any]) -> Any:
        if isinstance(value, str):
            return place.sub(lambda found: str(values[found[1]]), value) if "{" in value else value
        if isinstance(value, Mapping):
            return {replaced(key, values): replaced(one, values) for key, one in value.items()}
        return [replaced(one, values) for one in value] if isinstance(value, (list, tuple)) else value

    return replaced


_INTEGER = re.compile(r"-?(?:0|[1-9]\d{0,14})", re.ASCII)
_FLOAT = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?", re.ASCII)


def as_value(text: Any) -> Any:
    """Return the number that a text is, if that number is printed as this text; else the text.

    >>> [as_value(text) for text in ("100", "0.5", "007", "1.50", "a")]
    [100, 0.5, '007', '1.50', 'a']
    """
    if not isinstance(text, str) or not _FLOAT.fullmatch(text):
        return text
    if _INTEGER.fullmatch(text):
        return int(text) if text != "-0" else text
    number = float(text)
    return number if repr(number) == text else text


_UNSUITABLE = re.compile(r"[^\w.+-]+")
_MAX_SHOWN = 40


def name_of(stem: str, values: Mapping[str, Any]) -> str:
    """Return the name of a job of a sweep: `stem-T100-P1`; of an array, `stem-7`.

    >>> name_of("sim", {"T": "0.5", "file": "in/a.dat"})
    'sim-T0.5-filein_a.dat'
    """
    parts = [stem]
    for name, value in values.items():
        shown = _UNSUITABLE.sub("_", str(value))[-_MAX_SHOWN:]
        parts.append(shown if name == "i" else f"{name}{shown}")
    return "-".join(parts)
