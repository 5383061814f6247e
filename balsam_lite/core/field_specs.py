"""The fields of jobs and applications: each with its kind and default, and the checks on values that users give.

`JOB_FIELDS` is the one list of a job's columns; the schema, the models, `--json` and the printed forms follow it. All values
returned here are in the form in which SQLite stores them (JSON objects as text, truth values as 0 and 1).
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from typing import Any, Callable, NamedTuple

from . import states
from .errors import InvalidSpec, UnknownField, did_you_mean


class Field(NamedTuple):
    """A column of the job or app table."""

    name: str
    kind: str  # a key of _CHECKS
    default: Any
    settable: bool = True  # by users; others belong to the store
    meaning: str = ""  # for the documentation
    is_fixed: bool = False  # set when the job is added, and never changed


JOB_FIELDS = (
    # In the order in which the printed form lists them.
    Field("workflow", "label", "", meaning="Label that jobs share; also the directory above their working directories"),
    Field("name", "label", "", meaning="Name of the job; its output is NAME.out"),
    Field("description", "text", "", meaning="Free text"),
    Field("lease", "id", None, settable=False, meaning="Launcher that holds the job"),
    Field("input_files", "text", "*", meaning="Patterns of the parents' files that are linked into the working directory"),
    Field("stage_in_url", "place", "", meaning="Where input files are copied from before the run"),
    Field("stage_out_files", "text", "", meaning="Patterns of the files that are copied after the run"),
    Field("stage_out_url", "place", "", meaning="Where these files are copied to"),
    Field("wall_time_minutes", "minutes", 1, meaning="Estimated run time in minutes; 1 means unknown, and short"),
    Field("num_nodes", "count", 1, meaning="Number of nodes"),
    Field("coschedule_num_nodes", "count0", 0, meaning="Kept for Balsam 0.3; without effect"),
    Field("ranks_per_node", "count", 1, meaning="MPI ranks on each node"),
    Field("cpu_affinity", "affinity", "none", meaning="none or depth: bind each rank to separate CPUs"),
    Field("threads_per_rank", "count", 1, meaning="Threads of each rank"),
    Field("threads_per_core", "count", 1, meaning="Threads on each CPU core"),
    Field("node_packing_count", "count", 1, meaning="Maximum number of these jobs per node"),
    Field("environ_vars", "environ", "{}", meaning="Environment variables of the run"),
    Field("application", "label", "", meaning="Name of the application"),
    Field("args", "command", "", meaning="Arguments, appended to the application's command line"),
    Field("user_workdir", "path", "", meaning="Directory to run in, in place of one below data/"),
    Field("wait_for_parents", "flag", 1, meaning="Whether the job waits for its parents"),
    Field("post_error_handler", "flag", 0, meaning="Whether the postprocess hook handles errors"),
    Field("post_timeout_handler", "flag", 0, meaning="Whether the postprocess hook handles timeouts"),
    Field("auto_timeout_retry", "flag", 1, meaning="Whether the job runs again after a timeout"),
    Field("state", "state", states.CREATED, settable=False, meaning="State of the job"),
    Field("queued_launch_id", "id", None, meaning="Number of the launch that the service has planned for the job"),
    Field("data", "object", "{}", meaning="JSON object for your own use"),
    # Fields that the slides do not print.
    Field("tags", "tags", "{}", meaning="Labels, as pairs of text"),
    Field("parameters", "object", "{}", meaning="Values for the placeholders of the application's command template"),
    Field("gpus_per_rank", "amount", 0, meaning="GPUs of each rank; a fraction shares one"),
    Field("priority", "integer", 0, meaning="Jobs with a higher number start first"),
    Field("restart_limit", "count0", 10, meaning="Maximum number of restarts after timeouts and lost launchers"),
    Field("workdir", "text", "", settable=False, meaning="Working directory, below data/"),
    Field("return_code", "id", None, settable=False, meaning="Exit code of the last run; negative: the signal that ended it"),
    Field("attempt", "count0", 0, settable=False, meaning="How many times the job has been started"),
    Field("restarts", "count0", 0, settable=False, meaning="Number of restarts"),
    Field("unfinished_parents", "count0", 0, settable=False, meaning="0 when the parents let the job run"),
    Field("created", "count0", 0, settable=False, meaning="Time at which the job was added"),
    Field("origin", "text", "", settable=False, meaning="How the job was added"),
    # Since schema version 2; new columns come last, where ALTER TABLE puts them.
    Field("max_retries", "count0", 0, meaning="Maximum number of further runs after an error"),
    Field("retry_codes", "codes", "", meaning="Exit codes after which the job is retried; empty: all but 0"),
    Field("retries", "count0", 0, settable=False, meaning="Number of retries"),
    # Since schema version 3.
    Field("mpi_flags", "command", "", meaning="Further options of the MPI start command"),
    # Since schema version 5.
    Field("run_when", "run_when", "all_finished", meaning="Which ends of its parents let the job run"),
    Field("exit_0_is_done_after_stop", "flag", 0, meaning="Whether exit code 0 counts as done after a stop"),
    Field("start_after", "id", None, settable=False, meaning="Time before which no launcher takes the job"),
    Field("told_to_stop", "id", None, settable=False, meaning="Time at which the launcher told the run to stop"),
    # Since schema version 6.
    Field("keep_background", "flag", 0, meaning="Whether background processes go on after the run"),
    Field("launcher_deaths", "count0", 0, settable=False, meaning="Launchers that died while the job ran"),
    # Since schema version 8.
    Field("unique_key", "key", None, meaning="Text that only one job of the DB may have, set when it is added", is_fixed=True),
)

APP_FIELDS = (
    Field("name", "label", "", meaning="Name of the application"),
    Field("description", "text", "", meaning="Free text"),
    Field("executable", "command", "", meaning="Command line of the program"),
    Field("preprocess", "command", "", meaning="Hook that runs before the program"),
    Field("envscript", "path", "", meaning="Shell script that sets up the program's environment"),
    Field("postprocess", "command", "", meaning="Hook that runs after the program"),
    # Since schema version 4: fields of an application that is a Python class.
    Field("definition", "object", "{}", meaning="File and name of the Python class"),
    Field("command_template", "text", "", meaning="Command line with placeholders (jinja2)"),
    Field("parameters", "object", "{}", meaning="Placeholders, each with default and help text"),
    Field("environ_vars", "environ", "{}", meaning="Environment variables of all its runs"),
    Field("handle_error", "command", "", meaning="Hook that is called after an error"),
    Field("handle_timeout", "command", "", meaning="Hook that is called after a timeout"),
    # Since schema version 5.
    Field("exit_0_is_done_after_stop", "flag", 0, meaning="The job's field of this name, for all jobs"),
    # Since schema version 6.
    Field("keep_background", "flag", 0, meaning="The job's field of this name, for all jobs"),
)

JOB_FIELD = {field.name: field for field in JOB_FIELDS}
APP_FIELD = {field.name: field for field in APP_FIELDS}

#: Fields of a job that Balsam 0.7 names differently: ours -> its.
WORKSHOP_NAMES = {"application": "app", "wall_time_minutes": "wall_time_min"}
#: The same the other way round.
OUR_NAMES = {theirs: ours for ours, theirs in WORKSHOP_NAMES.items()}
#: Alternative names by which a field can be set in the constructor of a BalsamJob.
ALIASES = {"queued_launch": "queued_launch_id", "lock": "lease"}

#: How a launcher starts jobs; see `balsam launcher --help`.
JOB_MODES = ("serial", "mpi", "mixed")

#: The node resources of a job; launchers group waiting jobs by these. One index of the schema starts with them.
SHAPE_FIELDS = ("num_nodes", "ranks_per_node", "node_packing_count", "gpus_per_rank")

#: SQLite keeps 64-bit integers; counts have no reason to approach that.
_MAX_INTEGER = 2**53
#: Minimum of an amount that is not zero. A smaller share of a GPU is not useful, and could not be counted.
_MIN_AMOUNT = 0.001
_MAX_TEXT = 1_000_000
_MAX_KEY = 1000
_MAX_NAME = 255  # bytes, of one component of a path
_MAX_PATH = 3000  # bytes; Linux takes 4095, of which the DB's own path has a part


# --- kinds of values --------------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    if type(value) is str and value.isascii() and len(value) <= _MAX_TEXT and "\0" not in value:
        return value  # nearly always; adding a million jobs calls this ten million times
    if type(value) is not str:
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if not isinstance(value, str):
            raise ValueError(f"must be text, not {value!r}")
    if "\0" in value:
        raise ValueError("must not hold a NUL byte")
    if len(value) > _MAX_TEXT:
        raise ValueError(f"must not be longer than {_MAX_TEXT} characters, it has {len(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"must be valid Unicode, not {value!r}") from None
    return value


def _label(value: Any) -> str:
    if type(value) is str and value.isprintable() and len(value) <= _MAX_TEXT:
        return value  # NUL and surrogates are not printable
    value = _text(value)
    if not value.isprintable():
        raise ValueError(f"must be one line of printable characters, not {value!r}")
    return value


_QUOTING = re.compile(r"['\"\\\\]")


def _command(value: Any) -> str:
    value = _text(value)
    if not _QUOTING.search(value):
        return value
    try:
        split_command(value)
    except ValueError as exc:
        raise ValueError(f"cannot be split into words, as a shell does ({exc}): {value!r}") from None
    return value


def _path(value: Any) -> str:
    """Make a path absolute here, where the directory that it is relative to is known."""
    path = os.path.expanduser(_text(value))
    return path if path[:1] in ("", "/") else _absolute(path)


def _absolute(path: str) -> str:
    try:
        return os.path.normpath(os.path.join(os.getcwd(), path))
    except OSError as exc:
        raise ValueError(f"is relative, and the current directory cannot be read ({exc.strerror}): {path}") from None


#: A relative place to copy from or to: a path without leading `~` or `/`, and with no `:` before a slash, as URLs have.
_RELATIVE = re.compile(r"(?P<local>local:(?=[^/~])|(?![^/]*:))(?P<path>[^/~].*)", re.DOTALL)


def relative_path_of(place: str) -> str:
    """Return the relative path in a `stage_in_url` or `stage_out_url`; "" for anything else.

    >>> relative_path_of("data/*.in"), relative_path_of("local:out"), relative_path_of("scp:host:out"), relative_path_of("/x")
    ('data/*.in', 'out', '', '')
    """
    found = _RELATIVE.fullmatch(place)
    return found["path"] if found else ""


def _place(value: Any) -> str:
    """Check a URL or path to copy from or to; make a relative path absolute, using the current directory."""
    place = _text(value)
    path = place and relative_path_of(place)
    return f"{place.removesuffix(path)}{_absolute(path)}" if path else place


def _integer(value: Any) -> int:
    if type(value) is not int:
        try:
            whole = int(value)
            if isinstance(value, bool) or (whole != value and not isinstance(value, str)):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"must be a whole number, not {value!r}") from None
        value = whole
    if not -_MAX_INTEGER <= value <= _MAX_INTEGER:
        raise ValueError(f"is out of range: {value}")
    return value


def _count(value: Any, least: int = 1) -> int:
    value = _integer(value)
    if value < least:
        raise ValueError(f"must be {least} or more, not {value}")
    return value


def _minutes(value: Any) -> int:
    """Return whole minutes from a number, or from a text that `clock.whole_minutes` parses."""
    if type(value) is str and not (value.isascii() and value.isdigit()):
        from .clock import whole_minutes

        value = whole_minutes(value)
    return _count(value)


def _amount(value: Any) -> float:
    try:
        value = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"must be a number, not {value!r}") from None
    if not (math.isfinite(value) and 0 <= value <= _MAX_INTEGER):
        raise ValueError(f"must be a number of 0 or more, not {value}")
    if 0 < value < _MIN_AMOUNT:
        raise ValueError(f"must be 0 or at least {_MIN_AMOUNT}, not {value}")
    return int(value) if value == int(value) else value


_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


def _flag(value: Any) -> int:
    if isinstance(value, bool) or value in (0, 1):
        return int(value)
    if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return int(value.lower() in _TRUE)
    raise ValueError(f"must be True or False, not {value!r}")


def _codes(value: Any) -> str:
    """Return codes, separated by spaces or commas, or in a list; negative ones are signals. Stored as words in order."""
    try:
        words = _text(value).replace(",", " ").split() if isinstance(value, str) else value
        codes = sorted({int(word) for word in words})
    except (TypeError, ValueError):
        raise ValueError(f"must be return codes such as 1 75, not {value!r}") from None
    if codes and not -255 <= codes[0] <= codes[-1] <= 255:
        raise ValueError(f"must be return codes from -255 to 255, not {value!r}")
    return " ".join(map(str, codes))


def _affinity(value: Any) -> str:
    if value not in ("none", "depth"):
        raise ValueError(f"must be none or depth, not {value!r}")
    return str(value)


#: The values of `run_when`: the ends of parents that let a job run, with a sentence each.
RUN_WHEN = {
    "all_finished": "when every parent is JOB_FINISHED; it fails as soon as one is FAILED or USER_KILLED",
    "all_ended": "when every parent has ended, whether JOB_FINISHED, FAILED, USER_KILLED or removed",
    "any_finished": "as soon as one parent is JOB_FINISHED; it fails when all have ended and none is",
}


def _run_when(value: Any) -> str:
    if isinstance(value, str) and value in RUN_WHEN:
        return str(value)
    raise ValueError(f"must be one of {', '.join(RUN_WHEN)}, not {value!r}.{did_you_mean(value, RUN_WHEN)}")


#: Created once: `json.dumps` creates a new encoder at each call with non-default options.
_as_json = json.JSONEncoder(allow_nan=False, ensure_ascii=False).encode
_quoted = json.encoder.encode_basestring


def _object(value: Any) -> str:
    """Return a JSON object as text; `value` is a mapping or such text."""
    if holds_texts(value):
        return _object_of_texts(value)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as exc:
            raise ValueError(f"must be a JSON object; {exc}: {value!r}") from None
    if value is None:
        return "{}"
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a JSON object, not {value!r}")
    if not value:
        return "{}"
    text = _object_of_scalars(value)
    if text is not None:
        return _text(text)
    try:
        return _text(_as_json(dict(value)))
    except (TypeError, ValueError, RecursionError):
        return _text(_as_json(to_json(value)))


def _object_of_scalars(value: Mapping[Any, Any]) -> str | None:
    """Return the same as `_as_json` for texts and numbers, twice as fast; None if there is something else."""
    parts = []
    for key, word in value.items():
        kind = type(word)
        if type(key) is not str or not (kind is str or kind is int or (kind is float and math.isfinite(word))):
            return None
        parts.append(f"{_quoted(key)}: {_quoted(word) if kind is str else repr(word)}")
    return "{" + ", ".join(parts) + "}"


def holds_texts(value: Any) -> bool:
    """Return whether a value is a dict of texts by texts, as nearly all are."""
    if type(value) is not dict:
        return False
    for key, word in value.items():  # noqa: SIM110  `all` and a generator, or a set of all types, take twice the time
        if type(key) is not str or type(word) is not str:
            return False
    return True


def _object_of_texts(pairs: Mapping[str, str]) -> str:
    """Return the same as `_as_json`, five times faster: that creates a new encoder at each call."""
    text = "{" + ", ".join([f"{_quoted(key)}: {_quoted(word)}" for key, word in pairs.items()]) + "}"
    try:
        return _text(text)
    except ValueError as exc:
        raise ValueError(f"cannot be written as JSON ({exc}): {pairs!r}") from None


#: JSON has no NaN and no infinity: such a float is stored as {FLOAT_KEY: "nan"}, "inf" or "-inf".
FLOAT_KEY = "__float__"
_ODD_FLOATS = ("nan", "inf", "-inf")


def to_json(value: Any, path: str = "") -> Any:
    """Return `value` in JSON types: numpy scalars and arrays as numbers and lists, NaN and infinities as tagged values.

    Raises:
        ValueError: a value has no such form; `path` and the keys below it name the value.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {FLOAT_KEY: repr(float(value))}
    try:
        if isinstance(value, Mapping):
            return {_json_key(key): to_json(one, f"{path}.{key}" if path else str(key)) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [to_json(one, f"{path}[{place}]") for place, one in enumerate(value)]
    except RecursionError:
        raise ValueError(f"cannot be written as JSON: {path[:40]}… is nested too deeply, or contains itself") from None
    if callable(getattr(value, "tolist", None)):  # numpy, which is not imported for this
        return to_json(value.tolist(), path)
    raise ValueError(f"cannot be written as JSON: {path} is {value!r}, a {type(value).__name__}")


def _json_key(key: Any) -> Any:
    """Return a key that `json` turns into text."""
    key = key.tolist() if callable(getattr(key, "tolist", None)) else key
    if key is None or isinstance(key, (str, int, float)):
        return key
    raise ValueError(f"cannot be written as JSON: the key {key!r} is a {type(key).__name__}")


def read_object(stored: str) -> dict[str, Any]:
    """Return a stored JSON object as Python's values; undoes `to_json`."""
    found: dict[str, Any] = json.loads(stored, object_hook=_as_float) if FLOAT_KEY in stored else json.loads(stored)
    return found


def _as_float(found: dict[str, Any]) -> Any:
    return float(found[FLOAT_KEY]) if len(found) == 1 and found.get(FLOAT_KEY) in _ODD_FLOATS else found


def merge_texts(before: str, mine: str, theirs: str) -> dict[str, Any]:
    """Merge two writers' changes to a dict that both have read, key by key; for a key that both changed, use `mine`.

    Args:
        before: the dict that both have read. mine, theirs: the changed dicts. All as JSON text.
    """
    base, own, other = map(read_object, (before, mine, theirs))
    kept = {key: value for key, value in other.items() if key in own or key not in base}
    return {**kept, **{key: value for key, value in own.items() if key not in base or repr(base[key]) != repr(value)}}


def _tags(value: Any) -> str:
    if holds_texts(value) and "" not in value:
        text = _object_of_texts(value)
        if "\\u0000" not in text:
            return text
    return _object_of_texts(texts_by_text(json.loads(_object(value))))


def texts_by_text(value: Mapping[Any, Any]) -> dict[str, str]:
    """Return tags with numbers and truth values as text, as Balsam 0.7 does. Raise ValueError for any other value."""
    found = {}
    for key, word in value.items():
        if isinstance(word, (bool, int, float)):
            word = str(word)
        if not isinstance(key, str) or not isinstance(word, str) or not key:
            raise ValueError(f"must map text to text, not {key!r} to {word!r}")
        if "\0" in key or "\0" in word:  # SQLite's JSON functions end there
            raise ValueError(f"must not hold a NUL byte: {key!r}: {word!r}")
        found[key] = word
    return found


_VARIABLE = re.compile(r"[^=\0]+\Z")


def _environ(value: Any) -> str:
    """Return environment variables as a JSON object of text; `value` is a mapping, such text, or the slides' VAR1=a:VAR2=b.

    In the slides' form a colon separates two variables only where a name and `=` follow, so `PATH=/a:/b` stays whole.
    """
    return _environ_of_text(value) if isinstance(value, str) else _environ_of(value)


@lru_cache(maxsize=64)
def _environ_of_text(text: str) -> str:
    """Return environment variables given as text; the jobs of a campaign share a few such texts."""
    return _environ_of(text if text.lstrip().startswith("{") else parse_environ(text))


def _environ_of(value: Any) -> str:
    pairs = json.loads(_object(value))
    for name, word in pairs.items():
        if word == MASK and is_secret(name):
            raise ValueError(f"has no value for {name}: {MASK} is what listings show in its place")
        if not _VARIABLE.match(name):
            raise ValueError(f"has an impossible variable name: {name!r}")
        if not isinstance(word, str):
            pairs[name] = str(word)
        if "\0" in pairs[name]:
            shown = MASK if is_secret(name) else repr(word)
            raise ValueError(f"must not hold a NUL byte: {name}={shown}")
    return _as_json(pairs) if pairs else "{}"


#: Shown in listings and reports in place of a secret value.
MASK = "***"
_SECRET_WORDS = frozenset({"TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD"})


def is_secret(name: str) -> bool:
    """Return whether an environment variable is secret: a word of its name, split at underscores, is TOKEN, KEY or similar.

    So is the setting ON_EVENT, whose URLs hold passwords.

    >>> [is_secret(name) for name in ("HF_TOKEN", "api_key", "AWS_SECRET_ACCESS_KEY", "KEYBOARD", "MONKEY_ID")]
    [True, True, True, False, False]
    """
    return name == "BALSAM_ON_EVENT" or not _SECRET_WORDS.isdisjoint(name.upper().split("_"))


def masked(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return environment variables as listings and reports show them. Python receives the unmasked values."""
    return {name: MASK if is_secret(name) else value for name, value in variables.items()}


def masked_json(stored: str) -> str:
    """Return `masked` for stored variables, in stored form."""
    return _as_json(masked(json.loads(stored)))


def parse_environ(text: str) -> dict[str, str]:
    """Read the slides' `VAR1=a:VAR2=b`.

    >>> parse_environ("OMP_NUM_THREADS=1:PATH=/a:/b")
    {'OMP_NUM_THREADS': '1', 'PATH': '/a:/b'}
    """
    pairs: dict[str, str] = {}
    for part in re.split(r":(?=[A-Za-z_][A-Za-z0-9_]*=)", text) if text else []:
        name, equals, word = part.partition("=")
        if not equals or not name:
            raise ValueError(f"must look like VAR=VALUE, not {part!r}")
        pairs[name] = word
    return pairs


def _state(value: Any) -> str:
    return states.check_state(value)


def _key(value: Any) -> str | None:
    if value is None or value == "":
        return None
    text = _text(value)
    if len(text) > _MAX_KEY:
        raise ValueError(f"must not be longer than {_MAX_KEY} characters, it has {len(text)}: {text[:40]!r}…")
    return text


def _id(value: Any) -> int | None:
    return None if value is None else _integer(value)


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "text": _text, "label": _label, "command": _command, "path": _path, "place": _place, "integer": _integer, "count": _count,
    "count0": partial(_count, least=0), "amount": _amount, "flag": _flag, "affinity": _affinity, "object": _object,
    "tags": _tags, "environ": _environ, "codes": _codes, "state": _state, "id": _id, "run_when": _run_when, "minutes": _minutes,
    "key": _key,
}  # fmt: skip

#: Kinds whose stored form is JSON text; records return them as dicts.
JSON_KINDS = ("object", "tags", "environ")


def describe(field: Field) -> str:
    """Return the meaning and the default of a field, for `help()`.

    >>> describe(JOB_FIELD["num_nodes"])
    'Number of nodes. Default: 1.'
    """
    default = bool(field.default) if field.kind == "flag" else field.default
    return f"{field.meaning or field.name}. {f'Default: {default!r}.' if field.settable else 'Read-only.'}"


# --- jobs and apps ----------------------------------------------------------------------------------------------------


def known_field(name: str, fields: Mapping[str, Field] = JOB_FIELD, what: str = "job") -> Field:
    """Return the field with that name; UnknownField names the nearest one."""
    name = ALIASES.get(name, name)
    if name in fields:
        return fields[name]
    raise UnknownField.named(what, name, fields)


def checked(field: Field, value: Any, what: str = "job") -> Any:
    """Return `value` as `field` stores it. Raise InvalidSpec if it is invalid."""
    try:
        return _CHECKS[field.kind](value)
    except ValueError as exc:
        if isinstance(exc, InvalidSpec):
            raise
        raise InvalidSpec(f"{what} {field.name} {exc}") from None


def _own_field(name: str, fields: Mapping[str, Field], what: str) -> Field:
    field = known_field(name, fields, what)
    if not field.settable:
        raise InvalidSpec(f"{what} {field.name} is kept by balsam_lite and cannot be set")
    return field


def check_job(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given fields of one job, each in its stored form.

    Raises:
        UnknownField, InvalidSpec: with the field and the value; both are ValueErrors.
    """
    columns, _ = job_columns(tuple(values))
    return {column: checked(JOB_FIELD[column], value) for column, value in zip(columns, values.values())}


def job_columns(names: tuple[str, ...]) -> tuple[tuple[str, ...], list[Callable[[Any], Any]]]:
    """Return the columns of jobs given by the fields `names`, and the checks that turn their values into the stored form.

    Work that depends only on the names is done once, here; adding jobs calls the checks a million times.
    """
    fields = [_own_field(name, JOB_FIELD, "job") for name in names]
    columns = tuple(field.name for field in fields)
    if len(set(columns)) < len(columns):
        raise InvalidSpec(f"a job field is given twice, under two names: {', '.join(names)}")
    return columns, [_CHECKS[field.kind] for field in fields]


def check_app(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given fields of one application in stored form; a typed command line is first processed by `command_line`."""
    stored = {}
    for name, value in values.items():
        field = _own_field(name, APP_FIELD, "app")
        stored[field.name] = checked(field, value, "app")
    if "name" in stored and not stored["name"].strip():
        raise InvalidSpec("app name must not be empty")
    return stored


def new_job_id() -> str:
    """Return a random UUID4 as text. Its first 8 characters are the short id; the schema keeps those unique within a DB."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{_VARIANT[digits[16]]}{digits[17:20]}-{digits[20:]}"


_UUID = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def checked_job_id(value: Any) -> str:
    """Return a UUID as text, of any version; raise InvalidSpec if it is not a UUID."""
    text = str(value).lower()
    if not _UUID.fullmatch(text):
        raise InvalidSpec(f"job job_id must be a UUID, not {value!r}")
    return text


#: RFC 9562: the 17th hexadecimal digit of a version 4 UUID starts with the bits 10. `uuid.uuid4` takes five times as long.
_VARIANT = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}


_UNSAFE = re.compile(r"[\s/\0]+")


def workdir_name(workflow: str, name: str, job_id: str) -> str:
    """Return the working directory of a job below `data/`: `<workflow>/<name>_<id8>`; it cannot lead outside `data/`.

    Blanks and slashes become `_`; a name too long for the file system is cut (the short id keeps it unique).

    >>> workdir_name("test", "my run", "7df86c8b-f94b-4349-8ab6-a8afc85d8a9f")
    'test/my_run_7df86c8b'
    >>> workdir_name("../etc", "a/b", "7df86c8b-f94b-4349-8ab6-a8afc85d8a9f")
    '.._etc/a_b_7df86c8b'
    """
    leaf = f"{_component(name, _MAX_NAME - 40)}_{job_id[:8]}" if name.strip() else job_id[:8]
    folder = _component(workflow, _MAX_NAME)
    return f"{folder}/{leaf}" if folder else leaf


_PLAIN_WORKDIR = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)*", re.ASCII)
_SHORT = 200


def checked_workdir(value: Any) -> str:
    """Return a working directory that a user has chosen: a normalized path below `data/`.

    >>> checked_workdir("demo//hello/./1/")
    'demo/hello/1'

    Raises:
        InvalidSpec: it is absolute, leaves `data/`, or cannot be the name of a directory.
    """
    if type(value) is str and len(value) <= _SHORT and _PLAIN_WORKDIR.fullmatch(value):
        return value
    try:
        text = _text(value)
    except ValueError as exc:
        raise InvalidSpec(f"job workdir {exc}") from None
    if text.startswith("/"):
        raise InvalidSpec(f"job workdir must be below the data directory of its site. Cannot use absolute path: {text}")
    path = os.path.normpath(text) if text else ""
    if not path or not path.isprintable():
        raise InvalidSpec(f"job workdir must be a path of printable characters, not {text!r}")
    if path == os.curdir or path.split("/")[0] == os.pardir:
        raise InvalidSpec(f"job workdir must be a directory below the data directory of its site, which {text} is not")
    if any(len(part.encode()) > _MAX_NAME for part in path.split("/")) or len(path.encode()) > _MAX_PATH:
        raise InvalidSpec(f"job workdir is too long for a file system: {text[:80]}…")
    return path


def output_name(name: str) -> str:
    """Return the file in the working directory that receives the program's output: `<name>.out`.

    >>> output_name("my/run 1")
    'my_run 1.out'
    """
    safe = name.strip().replace("/", "_").encode()[: _MAX_NAME - 20].decode(errors="ignore")
    return f"{safe}.out" if safe else "job.out"


def _component(text: str, longest: int) -> str:
    if text.isalnum() and len(text) < 64:
        return text
    text = _UNSAFE.sub("_", text.strip())
    if text in (".", ".."):
        text = text.replace(".", "_")
    return text.encode()[:longest].decode(errors="ignore")


# --- command lines ----------------------------------------------------------------------------------------------------


_SHELL_SPECIAL = re.compile(r"['\"\\~]|[^ -\x7e]")


def split_command(line: str) -> list[str]:
    """Return the words of a command line, by the shell's quoting rules only; `~` at the start of a word is expanded.

    >>> split_command("echo 'a  b' c")
    ['echo', 'a  b', 'c']
    """
    if not _SHELL_SPECIAL.search(line):
        return line.split()
    return [os.path.expanduser(word) if word[:1] == "~" else word for word in shlex.split(line)]


def rows_with_defaults(rows: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """Yield each row of given fields, with the others set to their defaults (to print a job that is not stored yet)."""
    for row in rows:
        yield {field.name: row.get(field.name, field.default) for field in JOB_FIELDS}
