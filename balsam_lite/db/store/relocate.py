"""What a DB says about where it lies itself, for one that was moved. All functions run inside the caller's transaction."""

from __future__ import annotations

import sqlite3

#: Columns that may hold an absolute path below the DB's directory. Other text of users is theirs.
_PATHS = (
    ("job", "user_workdir"), ("job", "workdir"), ("job", "stage_in_url"), ("job", "stage_out_url"), ("batch_job", "command"),
    ("batch_job", "log"),
)  # fmt: skip
#: What of an application is run or read, in which a path of the DB's directory may be meant.
_COMMANDS = ("executable", "preprocess", "postprocess", "envscript", "command_template", "definition")


def relocate(cx: sqlite3.Connection, old: str, new: str) -> int:
    """Let the paths that begin with the directory `old` begin with `new` instead. Returns how many were changed."""
    changed = 0
    for table, column in _PATHS:
        changed += cx.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?",
            (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
        ).rowcount
    return changed


def apps_with(cx: sqlite3.Connection, directory: str) -> list[str]:
    """The names of the applications that run or read something below that directory."""
    where = " OR ".join(f"instr({column}, ?)" for column in _COMMANDS)
    query = f"SELECT name FROM app WHERE {where} ORDER BY id"
    return [row[0] for row in cx.execute(query, [f"{directory}/"] * len(_COMMANDS))]
