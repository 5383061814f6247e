"""Settings: built-in defaults, overridden by ~/.balsam/settings.json, by settings.json in the DB, by the environment.

This module reads files and never writes any. An unknown key is a warning (a newer or older version may know it), a missing
key takes its default, and a broken file is an error with file, line and reason.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from .errors import SettingsError

FILE_NAME = "settings.json"
HOME_VARIABLE = "BALSAM_HOME"
ENVIRONMENT_PREFIX = "BALSAM_"


class SettingsWarning(UserWarning):
    """A settings file contains an unused entry."""


class Settings(NamedTuple):
    """All settings with their defaults. The names are the keys of settings.json, and of the environment with prefix BALSAM_."""

    SCHEDULER_CLASS: str = ""
    SCHEDULER_SUBMIT_EXE: str = ""
    SCHEDULER_STATUS_EXE: str = ""
    SCHEDULER_CANCEL_EXE: str = ""
    SCHEDULER_TIMEOUT_S: float = 60.0
    DEFAULT_PROJECT: str = "datascience"
    SERVICE_PERIOD: int = 10
    NUM_TRANSITION_THREADS: int = 5
    MAX_CONCURRENT_MPIRUNS: int = 1000
    MPI_FLAVOUR: str = ""
    MPI_RUN_EXE: str = ""
    MPI_RUN_TEMPLATE: str = ""
    LOG_HANDLER_LEVEL: str = "INFO"
    LOG_BACKUP_COUNT: int = 5
    LOG_FILE_SIZE_LIMIT: int = 100 * 1024 * 1024
    QUEUE_POLICY: str = "policy.ini"
    JOB_TEMPLATE: str = ""
    CPUS_PER_NODE: int = 0
    GPUS_PER_NODE: int = -1
    GPU_VARIABLES: str = "CUDA_VISIBLE_DEVICES"
    MAX_LOCAL_LAUNCHES: int = 1
    HOOK_TIME_LIMIT_S: int = 300
    KILL_GRACE_S: float = 10.0
    USER_KILL_GRACE_S: float = 0.7
    START_DELAY_S: float = 1.0
    WORKER_MAX_CALLS: int = 10_000
    WORKER_MAX_MIB: int = 2048
    IDLE_TTL_S: float = 10.0
    SUSPECT_WAIT_S: float = 3600.0
    TROUBLE_TTL_S: float = 600.0
    HEARTBEAT_S: float = 10.0
    LEASE_EXPIRY_S: float = 120.0
    BUSY_TIMEOUT_S: float = 60.0
    ERROR_TAIL_LINES: int = 16
    ON_EVENT: str = ""
    ON_EVENT_INTERVAL_S: float = 60.0
    ON_EVENT_TIMEOUT_S: float = 30.0
    ON_EVENT_END_S: float = 2.0
    STUCK_AFTER_S: float = 3600.0

    @property
    def end_margin_s(self) -> float:
        """Return how many seconds before its batch job ends a launcher stops: the jobs' grace and the last transaction."""
        return self.KILL_GRACE_S + 5.0

    @property
    def beat_s(self) -> float:
        """Return the heartbeat interval of lease holders: at most a quarter of the expiry, even if only that is changed."""
        return min(self.HEARTBEAT_S, self.LEASE_EXPIRY_S / 4)

    @classmethod
    def load(cls, db_directory: str | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the settings that apply to `db_directory` (None: outside any DB).

        Raises:
            SettingsError: a file is broken or contains a value of the wrong kind; nothing is replaced or repaired.
        """
        values: dict[str, Any] = {}
        for directory in (home(environ), db_directory):
            if directory is not None:
                values.update(_read(os.path.join(directory, FILE_NAME)))
        for key in cls._fields:
            variable = ENVIRONMENT_PREFIX + key
            if variable in environ:
                values[key] = _from_text(key, environ[variable], f"the environment variable {variable}")
        return cls(**values)


#: The meaning of each setting, with the special values of some. The documentation prints this table.
MEANINGS = {
    "SCHEDULER_CLASS": "Batch system: one of the names below; empty: the first whose commands are on PATH, else LocalScheduler",
    "SCHEDULER_SUBMIT_EXE": "Command that submits a batch job; empty: the scheduler's own, found on PATH",
    "SCHEDULER_STATUS_EXE": "Command that lists batch jobs; empty: the scheduler's own, found on PATH",
    "SCHEDULER_CANCEL_EXE": "Command that cancels a batch job; empty: the scheduler's own, found on PATH",
    "SCHEDULER_TIMEOUT_S": "Seconds after which a command of the scheduler counts as failed",
    "DEFAULT_PROJECT": "Project (account) to charge when a launch names none",
    "SERVICE_PERIOD": "Seconds between two turns of the service",
    "NUM_TRANSITION_THREADS": "Number of scripts and file transfers that a launcher runs at once before and after runs",
    "MAX_CONCURRENT_MPIRUNS": "Maximum number of MPI jobs that one launcher runs at once",
    "MPI_FLAVOUR": "MPI start command: one of the names below; empty: the one that is found on PATH",
    "MPI_RUN_EXE": "Program, with options if need be, in place of the flavour's own; empty: found on PATH",
    "MPI_RUN_TEMPLATE": "Command line (jinja2) of any other MPI start command; overrides MPI_FLAVOUR",
    "LOG_HANDLER_LEVEL": "Least severe messages that a launcher logs",
    "LOG_BACKUP_COUNT": "Number of older pieces of a log that are kept",
    "LOG_FILE_SIZE_LIMIT": "Size in bytes at which a launcher starts a new log file",
    "QUEUE_POLICY": "Policy file of the service, relative to the directory of the settings file",
    "JOB_TEMPLATE": "Template of job scripts, relative to the DB or to ~/.balsam; empty: the scheduler's own",
    "CPUS_PER_NODE": "CPUs of each node; 0: as many as the machine has",
    "GPUS_PER_NODE": "GPUs of each node; -1: as many as the machine has",
    "GPU_VARIABLES": "Variables that tell a job its GPUs, separated by spaces or commas",
    "MAX_LOCAL_LAUNCHES": "Maximum number of batch jobs that the local scheduler runs at once",
    "HOOK_TIME_LIMIT_S": "Seconds after which a hook is ended",
    "KILL_GRACE_S": "Seconds between SIGTERM and SIGKILL when a launcher ends",
    "USER_KILL_GRACE_S": "Seconds between SIGTERM and SIGKILL when a user kills a job",
    "START_DELAY_S": "Seconds from the last add_job or add_dependency of a process to the start of its jobs; 0: none",
    "WORKER_MAX_CALLS": "Number of calls of an executor after which the process that makes them is replaced; 0: no limit",
    "WORKER_MAX_MIB": "Memory in MiB above which, after a call, the process that has made it is replaced; 0: no limit",
    "IDLE_TTL_S": "Seconds that a launcher without work waits for more",
    "SUSPECT_WAIT_S": "Seconds after which jobs at whose side launchers died run before all others, and apart from them",
    "TROUBLE_TTL_S": "Seconds after which a launcher ends that runs nothing and can start nothing",
    "HEARTBEAT_S": "Seconds between two heartbeats of a launcher; at most a quarter of LEASE_EXPIRY_S is used",
    "LEASE_EXPIRY_S": "Seconds without a heartbeat after which a launcher on another host counts as dead",
    "BUSY_TIMEOUT_S": "Seconds to wait for a DB that other processes are writing to",
    "ERROR_TAIL_LINES": "Last lines of a failed run's output that go into the job's history",
    "ON_EVENT": "Shell command that gets a notification as JSON on stdin, or URLs for apprise; empty: no notifications",
    "ON_EVENT_INTERVAL_S": "Minimum seconds between two notifications of the same kind; one counts all that happened meanwhile",
    "ON_EVENT_TIMEOUT_S": "Seconds after which a call of ON_EVENT is ended",
    "ON_EVENT_END_S": "Seconds that a launcher or service waits at its end for the last calls of ON_EVENT, before it ends them",
    "STUCK_AFTER_S": "Seconds after which a DB is stuck if nothing runs though jobs wait; 0: never",
}

_DEFAULTS = Settings()
#: Settings that make no sense at zero.
_POSITIVE = {
    "SERVICE_PERIOD", "NUM_TRANSITION_THREADS", "MAX_CONCURRENT_MPIRUNS", "MAX_LOCAL_LAUNCHES", "HOOK_TIME_LIMIT_S",
    "HEARTBEAT_S", "LEASE_EXPIRY_S", "BUSY_TIMEOUT_S", "LOG_FILE_SIZE_LIMIT", "SCHEDULER_TIMEOUT_S", "ON_EVENT_TIMEOUT_S",
}  # fmt: skip
#: Settings that may be negative: -1 has a special meaning.
_LOWEST = {"GPUS_PER_NODE": -1}
#: Settings with a fixed set of words; "" leaves the choice open. The code that reads them has the same list; a test compares.
CHOICES = {
    "SCHEDULER_CLASS": ("", "CobaltScheduler", "LocalScheduler", "PBSScheduler", "SlurmScheduler"),
    "LOG_HANDLER_LEVEL": ("DEBUG", "INFO", "WARNING", "WARN", "ERROR", "CRITICAL"),
    "MPI_FLAVOUR": ("", "aprun", "intel", "jsrun", "mpich", "openmpi", "pals", "srun"),
}
#: Thirty years in seconds. Python's own waiting fails at a few centuries.
_MAX_INTEGER = 10**9


def home(environ: Mapping[str, str] = os.environ) -> str:
    """Return the user's own settings directory, ~/.balsam unless BALSAM_HOME is set. It may not exist."""
    return environ.get(HOME_VARIABLE) or os.path.expanduser("~/.balsam")


_FIX_HINT = "Fix the file, or move it away to go on with the defaults."


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path} cannot be read: {exc}") from exc
    try:
        found = json.loads(text)
    except json.JSONDecodeError as exc:
        raise SettingsError(f"{path}, line {exc.lineno}, column {exc.colno}: {exc.msg}", hint=_FIX_HINT) from exc
    except (ValueError, RecursionError) as exc:  # a number of thousands of digits, a thousand brackets
        raise SettingsError(f"{path} cannot be read: {exc}", hint=_FIX_HINT) from exc
    if not isinstance(found, dict):
        raise SettingsError(f"{path}, line 1: expected an object {{…}}, found {type(found).__name__}")
    unknown = sorted(set(found) - set(Settings._fields))
    if unknown:
        warnings.warn(f"{path}: unknown settings are ignored: {', '.join(unknown)}", SettingsWarning, stacklevel=3)
    return {key: _checked(key, value, path, text) for key, value in found.items() if key in Settings._fields}


def _checked(key: str, value: Any, path: str, text: str) -> Any:
    default = getattr(_DEFAULTS, key)
    wanted = type(default)
    where = f"{path}, line {text[: max(text.find(json.dumps(key)), 0)].count(chr(10)) + 1}: {key}"
    if wanted is float and type(value) is int:
        value = float(value) if abs(value) <= _MAX_INTEGER else float("inf")
    if type(value) is not wanted:
        raise SettingsError(f"{where} must be {_KIND[wanted]}, not {value!r}")
    return _in_range(key, value, where)


def _in_range(key: str, value: Any, where: str) -> Any:
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise SettingsError(f"{where} must be valid text without NUL, not {value!a}")
        choices = CHOICES.get(key)
        if choices and value.lower() not in map(str.lower, choices):
            raise SettingsError(f"{where} must be one of {' '.join(filter(None, choices))}, not {value!r}")
        return value
    if key in _POSITIVE:
        if not 0 < value <= _MAX_INTEGER:
            raise SettingsError(f"{where} must be greater than 0 and at most {_MAX_INTEGER}, not {value!r}")
    elif not _LOWEST.get(key, 0) <= value <= _MAX_INTEGER:  # NaN is not
        raise SettingsError(f"{where} must be from {_LOWEST.get(key, 0)} to {_MAX_INTEGER}, not {value!r}")
    return value


def _from_text(key: str, text: str, where: str) -> Any:
    wanted = type(getattr(_DEFAULTS, key))
    try:
        return _in_range(key, wanted(text), where)
    except ValueError as exc:
        if isinstance(exc, SettingsError):
            raise
        raise SettingsError(f"{where} must be {_KIND[wanted]}, not {text!r}") from exc


_KIND = {int: "a whole number", float: "a number", str: "text"}
