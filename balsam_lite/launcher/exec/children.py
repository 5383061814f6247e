"""User code as processes: preparations for their start (`spawner` starts them), and how they ended."""

from __future__ import annotations

import os
import signal

from ...core.errors import SpawnFailed

# --- starting ---------------------------------------------------------------------------------------------------------

_found_programs: dict[tuple[str, bytes], str] = {}


def find_program(name: str, search: bytes | None, directory: str) -> str:
    """Return the path of a program, found as a shell in `directory` would whose PATH is `search` (None: not set).

    Raises:
        SpawnFailed: there is none.
    """
    if "/" in name:
        return name
    path = os.defpath.encode() if search is None else search
    found = _found_programs.get((name, path))
    if found is None or not os.access(found, os.X_OK):
        import shutil  # spawn helpers import this module

        found = shutil.which(name, path=os.fsdecode(path))
        if found is None:
            raise SpawnFailed(f"{name}: command not found (PATH is {os.fsdecode(path)})")
        if not os.path.isabs(found):
            return os.path.join(directory, found)
        _found_programs[name, path] = found
    return found


def make_directory(path: str, root: str) -> bool:
    """Make a working directory and the directories above it, but never `root` itself; return whether it is new.

    `root` is the DB's data/. If it is missing, its file system is not mounted, and mounting it later would hide the results.

    Raises:
        SpawnFailed: with the reason.
    """
    try:
        os.mkdir(path)
    except FileExistsError:
        return False
    except OSError:
        try:
            if path.startswith(f"{root}/"):
                os.stat(root)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.mkdir(path)
        except FileExistsError:
            return False
        except OSError as exc:
            raise SpawnFailed(f"the working directory cannot be made: {exc}") from exc
    return True


def is_shell(pid: int) -> bool:
    """Return whether a process is still a bash: with a single command, bash becomes that program. False if unknown."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
            return file.read().strip() == "bash"
    except OSError:
        return False


def tail(path: str, lines: int, limit: int = 16_384) -> str:
    """Return the last `lines` lines of a file of any size and bytes, at most `limit` bytes; "" if it cannot be read."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            text = file.read(limit)
    except (OSError, ValueError):
        return ""
    kept = text.decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}").splitlines()[-lines:]
    return "\n".join(kept)


def reason(code: int) -> str:
    """Return why a program with that return code has failed.

    >>> reason(3), reason(-9)
    ('nonzero return 3', 'killed by signal 9 (SIGKILL)')
    """
    if code >= 0:
        return f"nonzero return {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    return f"killed by signal {-code} ({name})"
