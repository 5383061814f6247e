"""Compact lists of node names as schedulers write them: `node[1-3,07],login1` and `1001-1005,1030`. Pure.

The first is Slurm's (scontrol(1), `show hostnames`, version 22.05): names, separated by commas; in brackets, numbers and
ranges of them. A number keeps its leading zeros, and a range those of its first number. Brackets after brackets multiply.
The second is what Cobalt gives a job on a Cray: the content of such brackets, alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from itertools import groupby, product
from typing import NamedTuple, Union

#: Maximum number of names in one list. A short text can denote more than fits into memory, so they are counted first.
MAX_NAMES = 1_000_000
#: Maximum number of characters of a name; the domain name system has no longer ones (RFC 1035, 2.3.4).
MAX_NAME = 255

_PIECE = re.compile(r"(?P<plain>[^\[\],\s]+)|\[(?P<ranges>[^\[\]]*)\]")
#: A number or a range, of at most 18 digits; with more, Slurm itself reads another number (64 bits).
_RANGE = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")
_NUMBERED = re.compile(r"(.*?)([0-9]{1,18})")
_UNWRITABLE = re.compile(r"[\[\],\s]")


class _NumberRange(NamedTuple):
    """Consecutive numbers, written with at least `width` digits."""

    first: int
    last: int
    width: int

    @property
    def size(self) -> int:
        return self.last - self.first + 1

    @property
    def longest(self) -> int:
        return max(self.width, len(str(self.last)))

    def texts(self) -> Iterator[str]:
        return (str(number).zfill(self.width) for number in range(self.first, self.last + 1))


def expand(text: str) -> tuple[str, ...]:
    """Return the names in a Slurm host list, in order; a name that is listed twice is returned twice.

    >>> expand("node[1-2,07],login1")
    ('node1', 'node2', 'node07', 'login1')
    >>> expand("rack[1-2]n[09-10]-ib")
    ('rack1n09-ib', 'rack1n10-ib', 'rack2n09-ib', 'rack2n10-ib')

    Raises:
        ValueError: it is no such list (the message gives the position), or it has more than MAX_NAMES names or a
            name longer than MAX_NAME. Nothing was expanded then.
    """
    names: list[str] = []
    words = list(_words(text))
    _check_size(sum(_size(word) for word in words))
    for word in words:
        texts = [(piece,) if isinstance(piece, str) else [t for part in piece for t in part.texts()] for piece in word]
        names.extend(map("".join, product(*texts)))
    return tuple(names)


def expand_numbers(text: str) -> tuple[str, ...]:
    """Return the numbers in a compact list without brackets, as text, in order.

    >>> expand_numbers("1001-1003,1030")
    ('1001', '1002', '1003', '1030')

    Raises:
        ValueError: as `expand`.
    """
    ranges = _ranges(text, 0, len(text))
    _check_size(sum(part.size for part in ranges))
    return tuple([number for part in ranges for number in part.texts()])


def compress(names: Iterable[str]) -> str:
    """Return the names, in order, as a Slurm host list: neighbours that differ only in their last number share brackets.

    >>> compress(["node1", "node2", "node3", "node07", "login1", "n-ib"])
    'node[1-3,07],login1,n-ib'

    Text after the number would have to follow the brackets, which Slurm 22.05 refuses; such names are written in full.

    Raises:
        ValueError: a name cannot be written in such a list.
    """
    words = []
    for prefix, group in groupby(map(_split, names), key=lambda split: split[0] if split[1] else None):
        parts = list(group)
        if prefix is None:
            words += [name for name, _ in parts]
        elif len(parts) == 1:
            words.append(prefix + parts[0][1])
        else:
            words.append(f"{prefix}[{fold(number for _, number in parts)}]")
    return ",".join(words)


# --- reading ----------------------------------------------------------------------------------------------------------

#: The parts of one word, in order: plain text, or the ranges of one pair of brackets.
_Word = list[Union[str, list[_NumberRange]]]


def _words(text: str) -> Iterator[_Word]:
    position = 0
    while True:
        word, position = _word(text, position)
        yield word
        if position == len(text):
            return
        position += 1  # the comma


def _word(text: str, start: int) -> tuple[_Word, int]:
    """Return the word that begins at `start`, and where it ends: at a comma or at the end of the text."""
    word: _Word = []
    position, length = start, 0
    while position < len(text) and text[position] != ",":
        found = _PIECE.match(text, position)
        if found is None:
            raise _broken(text, position, "the bracket has no partner" if text[position] in "[]" else "a blank is no name")
        piece = found["plain"] or _ranges(text, *found.span("ranges"))
        length += len(piece) if isinstance(piece, str) else max(part.longest for part in piece)
        if length > MAX_NAME:
            raise _broken(text, start, f"the name is longer than {MAX_NAME} characters")
        word.append(piece)
        position = found.end()
    if not word:
        raise _broken(text, start, "a name is missing")
    return word, position


def _ranges(text: str, start: int, end: int) -> list[_NumberRange]:
    """Return the ranges inside brackets, from `start` to `end`."""
    ranges = []
    while True:
        comma = text.find(",", start, end)
        stop = end if comma < 0 else comma
        found = _RANGE.fullmatch(text, start, stop)
        if found is None:
            raise _broken(text, start, "there should be a number or a range")
        first, last = found[1], found[2] or found[1]
        if int(first) > int(last):
            raise _broken(text, start, "the range is reversed")
        ranges.append(_NumberRange(int(first), int(last), len(first)))
        if comma < 0:
            return ranges
        start = comma + 1


def _broken(text: str, position: int, what: str) -> ValueError:
    return ValueError(f"{what}, at character {position + 1}: {text[position : position + 20]!r}")


def _size(word: _Word) -> int:
    return math.prod(1 if isinstance(piece, str) else sum(part.size for part in piece) for piece in word)


def _check_size(size: int) -> None:
    if size > MAX_NAMES:
        raise ValueError(f"it stands for more than {MAX_NAMES} names")


# --- writing ----------------------------------------------------------------------------------------------------------


def _split(name: str) -> tuple[str, str]:
    """Return the name without the number at its end, and that number as text, "" if there is none."""
    if not name or len(name) > MAX_NAME or _UNWRITABLE.search(name):
        raise ValueError(f"not a name for a host list: {name[:MAX_NAME]!r}")
    found = _NUMBERED.fullmatch(name)
    return (found[1], found[2]) if found else (name, "")


def fold(numbers: Iterable[str]) -> str:
    """Fold numbers with successors of equal width into ranges.

    >>> fold(["8", "9", "10", "011", "3"])
    '8-10,011,3'
    """
    runs: list[list[str]] = []
    for number in numbers:
        if runs and number == str(int(runs[-1][-1]) + 1).zfill(len(runs[-1][0])):
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
