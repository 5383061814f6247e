"""The queue policy: which launches the service may submit to which queue. An INI file, one section per queue.

    [debug-flat-quad]
    submit-jobs = on
    max-queued = 1
    policy = [{"min-nodes": 1, "max-nodes": 16, "min-time": 0, "max-time": 1}]

Node ranges are inclusive, times are in hours (source: Balsam 0.3.8, its theta_policy.ini) or text such as "90m". Everything is
checked when it is loaded; an error names the file, the section and the key.
"""

from __future__ import annotations

import configparser
import json
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from ..core import clock
from ..core.errors import SettingsError
from ..core.settings import Settings, SettingsWarning, home
from ..db.query.takers import Queue, Range
from ..schedulers.base import select
from ..schedulers.script import packaged, write_new

TEMPLATE = "policy.ini"

_SUBMIT, _MOST, _POLICY = "submit-jobs", "max-queued", "policy"
_KEYS = (_SUBMIT, _MOST, _POLICY)
_NODES, _TIMES = ("min-nodes", "max-nodes"), ("min-time", "max-time")
_WORDS = configparser.ConfigParser.BOOLEAN_STATES
#: Maximum of a launch request, nodes or minutes.
_MAX_NUMBER = 10**7
_HEADER = re.compile(r"\[[^\[\]{}\",]+\]\s*$")
#: Minutes that a launch needs to start.
_START_MIN = 1
#: Not a valid section name, so that [DEFAULT] is an ordinary queue.
_NO_DEFAULTS = "\n"
_MEND = "Correct the file; the service does not start with a policy that it cannot read."


def margin_minutes(settings: Settings) -> int:
    """Return the minutes of a launch that no job can use: for its start, and for its end before the scheduler's."""
    return _START_MIN + math.ceil(settings.end_margin_s / 60)


def load(db_directory: str, settings: Settings, environ: Mapping[str, str] = os.environ) -> tuple[Queue, ...]:
    """Read the policy for that DB: every queue of the file, including those that are off. Warn of unknown keys.

    Raises:
        SettingsError: there is no such file, or it is broken.
    """
    return PolicyFile(db_directory, settings, environ).queues


class PolicyFile:
    """The last good policy of a file that may be edited at any time. `queues` is what it allows."""

    def __init__(self, db_directory: str, settings: Settings, environ: Mapping[str, str] = os.environ) -> None:
        """Read the file. Raises SettingsError: there is no such file, or it is broken."""
        self._where = (db_directory, settings, environ)
        self.path = find(*self._where)
        self._text = _read(self.path)
        self.queues = parse(self._text, self.path)

    def reread(self) -> bool:
        """Read the file again; return whether the policy has changed.

        Raises:
            SettingsError: it is broken, perhaps half-written, or missing; `queues` stays as it is. No other file replaces a
            missing one, since an editor may be replacing it.
        """
        if not os.path.lexists(self.path):
            raise SettingsError(f"{self.path} is not there any more")
        path = find(*self._where)
        text = _read(path)
        if (path, text) == (self.path, self._text):
            return False
        queues = parse(text, path)
        is_other = queues != self.queues
        self.path, self._text, self.queues = path, text, queues
        return is_other


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path} cannot be read: {exc}", hint=_MEND) from exc


def find(db_directory: str, settings: Settings, environ: Mapping[str, str] = os.environ) -> str:
    """Return the path of the file that QUEUE_POLICY names: in the DB, else in ~/.balsam. Raises SettingsError: in neither."""
    name = os.path.expanduser(settings.QUEUE_POLICY)
    places = list(dict.fromkeys(os.path.join(folder, name) for folder in (db_directory, home(environ))))
    for path in places:
        if name and os.path.isfile(path):
            return path
    looked = "".join(f"\n    {path}" for path in places)
    raise SettingsError(
        f"QUEUE_POLICY: there is no file {settings.QUEUE_POLICY!r}",
        hint=f"  Looked for:{looked}\n  `balsam init {db_directory}` puts one there that you can edit.",
    )


def copy_template(db_directory: str, settings: Settings) -> None:
    """Write a policy template into the DB, unless there is a policy there or in ~/.balsam. Raises OSError, SettingsError.

    Where there is a batch system, all queues of the template are off, since the names of the system's queues are unknown.
    """
    name = settings.QUEUE_POLICY
    try:
        find(db_directory, settings)
    except SettingsError:
        if name and name == os.path.basename(name):
            content = packaged(TEMPLATE)
            if select(settings).name != "LocalScheduler":
                content = content.replace(b"submit-jobs = on", b"submit-jobs = off")
            write_new(content, os.path.join(db_directory, name))


def parse(text: str, path: str) -> tuple[Queue, ...]:
    """Return the queues of a policy, in the order of the file. `path` is for messages. Raises SettingsError."""
    reader = configparser.RawConfigParser(default_section=_NO_DEFAULTS, delimiters=("=",))
    try:
        reader.read_string("\n".join(_indented(text)), path)
    except configparser.Error as exc:
        raise SettingsError(f"{path}: {_one_line(exc)}", hint=_MEND) from exc
    if not reader.sections():
        raise SettingsError(f"{path} has no section; each queue needs one, such as [default]", hint=_MEND)
    return tuple(_queue(name, reader[name], f"{path}, [{name}]") for name in reader.sections())


def _indented(text: str) -> Iterator[str]:
    """Yield the lines, those inside a JSON value indented: configparser ends a value at the first line that is not."""
    depth = 0
    for line in text.splitlines():
        if _HEADER.match(line):
            depth = 0
        yield f" {line}" if depth > 0 else line
        if not line.lstrip().startswith(("#", ";")):
            bare = re.sub(r'"[^"]*"', "", line)
            depth = max(0, depth + sum(map(bare.count, "[{")) - sum(map(bare.count, "]}")))


def _one_line(exc: configparser.Error) -> str:
    if isinstance(exc, configparser.MissingSectionHeaderError):
        return f"line {exc.lineno}: expected a section such as [default] before {exc.line!r}"
    if isinstance(exc, configparser.ParsingError):
        return "; ".join(f"line {number}: expected KEY = VALUE, found {line}" for number, line in exc.errors)
    if isinstance(exc, configparser.DuplicateOptionError):
        return f"line {exc.lineno}, [{exc.section}]: {exc.option} is given twice"
    if isinstance(exc, configparser.DuplicateSectionError):
        return f"line {exc.lineno}: there are two sections [{exc.section}]"
    return exc.message


# --- one section ------------------------------------------------------------------------------------------------------


def _queue(name: str, section: Mapping[str, str], where: str) -> Queue:
    for key in _KEYS:
        if key not in section:
            raise SettingsError(f"{where}: {key} is missing", hint=f"Each section needs: {', '.join(_KEYS)}.")
    _warn_of_unknown(section, _KEYS, where)
    if not name.isprintable() or name != name.strip():
        raise SettingsError(f"{where}: the name of a queue is printable and does not begin or end with a blank")
    is_on = _WORDS.get(section[_SUBMIT].lower())
    if is_on is None:
        _refuse(where, _SUBMIT, section[_SUBMIT], "on or off")
    most = section[_MOST]
    if not (most.isascii() and most.isdigit() and len(most) < 10 and int(most) > 0):
        _refuse(where, _MOST, most, "a whole number of 1 or more", f"`{_SUBMIT} = off` closes a queue to the service.")
    ranges = sorted(_ranges(section[_POLICY], f"{where}, {_POLICY}"))
    for lower, upper in zip(ranges, ranges[1:]):
        if upper.min_nodes <= lower.max_nodes:
            raise SettingsError(
                f"{where}, {_POLICY}: the node ranges {lower.min_nodes} to {lower.max_nodes} and {upper.min_nodes} to"
                f" {upper.max_nodes} overlap",
                hint="Each number of nodes may be in one range only.",
            )
    return Queue(name, is_on, int(most), tuple(ranges))


def _refuse(where: str, key: str, value: object, wanted: str, hint: str = "") -> NoReturn:
    raise SettingsError(f"{where}: {key} must be {wanted}, not {value!r}", hint=hint)


def _warn_of_unknown(found: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(found) - set(known))
    if unknown:
        warnings.warn(f"{where}: unknown keys are ignored: {', '.join(unknown)}", SettingsWarning, stacklevel=2)


def _ranges(text: str, where: str) -> list[Range]:
    try:
        found = json.loads(text, object_pairs_hook=_without_twins)
    except json.JSONDecodeError as exc:
        place = f"line {exc.lineno}, column {exc.colno} of the value"
        raise SettingsError(f"{where}: {exc.msg} ({place})", hint="The value is a JSON list of objects.") from exc
    except (ValueError, RecursionError) as exc:
        raise SettingsError(f"{where}: {exc}", hint="The value is a JSON list of objects.") from exc
    if not isinstance(found, list) or not found or not all(isinstance(item, dict) for item in found):
        raise SettingsError(f"{where} must be a JSON list of one or more objects, not {text!r:.100}")
    return [_range(item, f"{where}, object {number}") for number, item in enumerate(found, 1)]


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"a key is given twice in {json.dumps(dict(pairs))}")
    return found


def _range(item: Mapping[str, Any], where: str) -> Range:
    for key in (*_NODES, *_TIMES):
        if key not in item:
            raise SettingsError(f"{where}: {key} is missing", hint=f"Each needs: {', '.join((*_NODES, *_TIMES))}.")
    _warn_of_unknown(item, (*_NODES, *_TIMES), where)
    nodes = [_whole_nodes(item[key], key, where) for key in _NODES]
    hours = [_hours(item[key], key, where) for key in _TIMES]
    for (low, high), values in ((_NODES, nodes), (_TIMES, hours)):
        if values[0] > values[1]:
            raise SettingsError(f"{where}: {low} is {values[0]} and {high} is {values[1]}; the range is reversed")
    # A schedule uses whole minutes; 0.1 h are 6 of them, in spite of rounding errors of binary fractions.
    shortest, longest = max(1, math.ceil(60 * hours[0] - 1e-6)), math.floor(60 * hours[1] + 1e-6)
    if shortest > longest:
        raise SettingsError(f"{where}: there is no whole minute from min-time {hours[0]} to max-time {hours[1]} hours")
    return Range(nodes[0], nodes[1], shortest, longest)


def _whole_nodes(value: Any, key: str, where: str) -> int:
    if type(value) is not int or not 1 <= value <= _MAX_NUMBER:
        _refuse(where, key, value, f"a whole number from 1 to {_MAX_NUMBER}")
    return value


def _hours(value: Any, key: str, where: str) -> float:
    if isinstance(value, str):
        try:
            if value.strip().replace(".", "", 1).isdigit():
                raise ValueError(f"must have a unit, or be a number of hours without quotes, not {value!r}")
            value = clock.minutes(value) / 60
        except ValueError as exc:
            raise SettingsError(f"{where}: {key} {exc}") from None
    if type(value) not in (int, float) or not 0 <= value <= _MAX_NUMBER / 60:  # rejects NaN
        _refuse(where, key, value, f"a number of hours from 0 to {_MAX_NUMBER // 60}")
    return float(value)
