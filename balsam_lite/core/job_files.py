"""The program's files in a job's working directory: its output, and the lists of its parents.

`<name>.out` is always created anew; an existing file is renamed ("put aside") to `<name>.out.1`, `.2` …, and no file is ever
truncated. A working directory with a generated name belongs to one job. In any other directory, a job that finds it in use
writes through a hidden hard link, `.balsam-<id8>.out`, by which its output is found under any later name. The job that created
the directory has no such link until another one needs the name.

BALSAM_PARENT_IDS and BALSAM_PARENT_STATES are variables, or files if these would be too long.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

from .files import write_atomic

#: Attempts to get the name of the output, against other jobs that start in the same directory at the same moment.
_MAX_TRIES = 100
#: Prefix of the link to the output of the one job without a hidden link, because it created the directory.
_FIRST = ".balsam-first-"


def is_generated(workdir: str, job_id: str) -> bool:
    """Return whether a working directory has a generated name, which no other job shares. See `schema.OWN_WORKDIR`."""
    return workdir[-8:] == job_id[:8]


def put_aside(path: str, number: int = 1) -> str:
    """Rename a file to `<path>.<number>`, or with the next free number; return its new path, "" if there is none.

    Overwrites nothing, even when several processes do this concurrently: the new name is reserved first. Raises OSError.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return ""
    if not stat.S_ISREG(mode):
        return ""
    number = _free_number(path, number)
    while True:
        target = f"{path}.{number}"
        try:
            os.close(_made(target))
            break
        except FileExistsError:
            number += 1
    try:
        os.rename(path, target)
    except FileNotFoundError:  # another process was faster
        os.unlink(target)
        return ""
    return target


def _free_number(path: str, number: int) -> int:
    """Return a number from `number` on that was free a moment ago; takes few checks even after many files."""
    step = 1
    while os.path.lexists(f"{path}.{number + step - 1}"):
        step *= 2
    taken = step // 2  # number + taken - 1 is taken, or there is none
    while step - taken > 1:
        middle = (taken + step) // 2
        if os.path.lexists(f"{path}.{number + middle - 1}"):
            taken = middle
        else:
            step = middle
    return number + step - 1


def renew(directory: str, output: str, job_id: str, attempt: int, is_generated: bool) -> str:
    """Put aside a file with the name of a job's output; return the name of the file to which its program appends.

    The output of the job's own earlier attempt becomes `<output>.<its number>` if that is free. Raises OSError.
    """
    path, number = os.path.join(directory, output), max(1, attempt - 1)
    if is_generated:
        if not (_is_empty(path) and (attempt == 1 or os.path.lexists(f"{path}.{number}"))):  # left by a failed start
            put_aside(path, number)
        return output
    own, first = os.path.join(directory, link_name(job_id)), os.path.join(directory, _FIRST + output)
    is_mine = attempt > 1 and not os.path.lexists(own) and not os.path.lexists(first)
    if _is_same(path, own):
        if _is_empty(path):
            return link_name(job_id)
        put_aside(path, number)
    with suppress(FileNotFoundError):
        os.unlink(own)
    os.close(_made(own))
    return link_name(job_id) if give_name(own, path, number if is_mine else 1, first) else output


def give_name(own: str, path: str, number: int = 1, first: str = "") -> bool:
    """Link the file `own` as `path`, and put aside a file with that name, as `<path>.<number>` if that is free.

    A file put aside is linked as `first`, unless that exists. If no link can be created, `own` is removed, False is returned,
    and opening `path` for appending reports the reason.
    """
    for _ in range(_MAX_TRIES):
        moved = put_aside(path, number)
        if moved and first:
            with suppress(OSError):
                os.link(moved, first, follow_symlinks=False)
        number = 1
        try:
            os.link(own, path)
            return True
        except FileExistsError:  # another job was faster
            try:  # stat once, as another job may rename it between two
                if not stat.S_ISREG(os.lstat(path).st_mode):
                    break
            except FileNotFoundError:
                continue
        except OSError:  # a file system without hard links
            break
    os.unlink(own)
    return False


def find(directory: str, output: str, job_id: str, is_generated: bool) -> str:
    """Return the path of a job's output, which another job may have put aside since. It need not exist."""
    if not is_generated:
        for name in (link_name(job_id), _FIRST + output):
            path = os.path.join(directory, name)
            if os.path.lexists(path):
                return path
    return os.path.join(directory, output)


def path_of(directory: str, file: str, output: str, job_id: str) -> str | None:
    """Return the path of a file in a job's working directory, of its output wherever that is now; None if it is outside."""
    inside = os.path.normpath(os.path.join(os.sep, file)).lstrip(os.sep)
    if os.path.isabs(file) or os.path.normpath(file) != inside:
        return None
    return (
        find(directory, output, job_id, is_generated(directory, job_id))
        if inside == output
        else os.path.join(directory, inside)
    )


def path_of_inode(path: str, inode: int) -> str | None:
    """Return the path, or that of the file put aside from it, that has an inode; None if there is none."""
    folder, name = os.path.split(path)
    with suppress(OSError):
        if os.stat(path).st_ino == inode:
            return path
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(f"{name}.") and entry.inode() == inode:
                return entry.path
    return None


def link_name(job_id: str, suffix: str = "out") -> str:
    """Return the name of a job's hidden link to its output, or to the log of its script."""
    return f".balsam-{job_id[:8]}.{suffix}"


def _made(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)


def _is_empty(path: str) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == 0


def _is_same(one: str, other: str) -> bool:
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except OSError:
        return False


IDS, STATES = "BALSAM_PARENT_IDS", "BALSAM_PARENT_STATES"
#: Used instead of a variable that would be too long: the path of a file with the same list.
IDS_FILE, STATES_FILE = f"{IDS}_FILE", f"{STATES}_FILE"
#: All variables about parents.
NAMES = (IDS, IDS_FILE, STATES, STATES_FILE)

#: Bytes of `NAME=value` and the NUL after it. Source: execve(2) of Linux man-pages 6.03, MAX_ARG_STRLEN.
MAX_VARIABLE_BYTES = 32 * os.sysconf("SC_PAGE_SIZE") if sys.platform.startswith("linux") else 128 * 1024
#: Bytes of all variables and words together, each with a pointer. Source: the same page; 6 MiB whatever the stack limit.
_MAX_TOTAL_BYTES = 6 * 1024 * 1024
_POINTER_BYTES = 8


def total_bytes() -> int:
    """Return how many bytes a program's variables and words may have together."""
    limit = os.sysconf("SC_ARG_MAX")
    return min(limit, _MAX_TOTAL_BYTES) if limit > 0 else _MAX_TOTAL_BYTES


def size_of(variable: bytes) -> int:
    """Return how many of those bytes `NAME=value`, or a word, takes."""
    return len(variable) + 1 + _POINTER_BYTES


def variables(parents: Sequence[tuple[str, str]], workdir: str, job_id: str, room_bytes: int | None = None) -> dict[str, str]:
    """Return the variables for a job with these parents, given as (UUID, state).

    Args:
        room_bytes: what all variables and words may still take together; None: each may have its maximum length.
    """
    found: dict[str, str] = {}
    for name, values in zip((IDS, STATES), _columns(parents)):
        text = json.dumps(values)
        size = len(name) + len(text) + 2
        if size <= MAX_VARIABLE_BYTES and (room_bytes is None or size + _POINTER_BYTES <= room_bytes):
            found[name] = text
        else:
            found[f"{name}_FILE"] = f"{workdir}/.balsam-{job_id[:8]}.{name[len('BALSAM_') :].lower()}.json"
            size = len(name) + len(found[f"{name}_FILE"]) + 7
        if room_bytes is not None:
            room_bytes -= size + _POINTER_BYTES
    return found


def _columns(parents: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    return [job_id for job_id, _ in parents], [state for _, state in parents]


def write_files(parents: Sequence[tuple[str, str]], found: Mapping[str, str]) -> None:
    """Write the files that `variables` names; readers see a complete one or none. Raises OSError."""
    for name, values in zip((IDS_FILE, STATES_FILE), _columns(parents)):
        path = found.get(name)
        if path is not None:
            write_atomic(path, json.dumps(values))
