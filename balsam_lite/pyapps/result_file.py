"""What a function that is a job returned or raised: a file in the job's working directory, beside its order.

Jobs may share a directory, so the file is named by the job. Its first line is JSON and says of which attempt it is; behind it
is the pickled outcome (see `call.Outcome`), which nobody but the asking process has to read.
"""

from __future__ import annotations

import json
import os
from typing import BinaryIO, NamedTuple

from ..core.errors import RemoteError

#: The first line is no longer than that.
_LONGEST_LINE = 1000
#: Of a report, which may have to go through ssh.
LARGEST_BYTES = 16 * 1024 * 1024
#: Of the pickled outcome in it.
LARGEST_OUTCOME_BYTES = LARGEST_BYTES - _LONGEST_LINE


class Author(NamedTuple):
    """Which attempt has left a report, and whether its function did well."""

    job_id: str
    attempt: int
    good: bool


def file_name(job_id: str) -> str:
    """How the file is called."""
    return f".balsam-{job_id[:8]}.pkl"


def leave(path: str, author: Author, outcome: bytes) -> None:
    """Write it, whole or not at all, unless another rank of that attempt has reported a failure. Raises OSError.

    The first failure is the one to be told, and counts more than what rank 0 has returned meanwhile.
    """
    temporary = f"{path}.{os.uname().nodename}.{os.getpid()}"  # ranks on two hosts may have the same pid
    with open(temporary, "wb") as file:
        file.write(json.dumps(author._asdict()).encode() + b"\n" + outcome)
        file.flush()
        os.fsync(file.fileno())  # a finished job survives a power cut, so its result has to
    try:
        if not _linked(temporary, path):
            before = _author_of(path)
            if before is None or before[:2] != author[:2] or (before.good and not author.good):
                os.replace(temporary, path)
    finally:
        if os.path.lexists(temporary):
            os.unlink(temporary)


def _linked(temporary: str, path: str) -> bool:
    """Let it appear under that name; False if there is such a file."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            return False
        os.replace(temporary, path)
    return True


def _author_of(path: str) -> Author | None:
    """None if the file is none of ours, or gone."""
    try:
        with open(path, "rb") as file:
            return _first_line(file)
    except OSError:
        return None


def _first_line(file: BinaryIO) -> Author | None:
    try:
        return Author(**json.loads(file.readline(_LONGEST_LINE)))
    except (ValueError, TypeError):
        return None


def read(path: str, job_id: str, attempt: int) -> bytes | None:
    """The pickled outcome of that attempt; None if it has left none.

    Raises:
        RemoteError: it is larger than LARGEST_BYTES, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            author = _first_line(file)
            if author is None or author[:2] != (job_id, attempt):
                return None
            size = os.fstat(file.fileno()).st_size
            if size > LARGEST_BYTES:
                raise RemoteError(
                    f"The result of the job has {size} bytes; more than {LARGEST_BYTES} are not handed over.",
                    hint=f"It is in {path}. Let the function write a file and return its path.",
                )
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise RemoteError(f"The result of the job cannot be read: {exc}") from exc
