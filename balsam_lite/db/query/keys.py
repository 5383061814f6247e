"""Find jobs by their unique_key."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence
from typing import Any

from ..engine.schema import HAS_KEY, VISIBLE


def jobs_with(cx: sqlite3.Connection, keys: Collection[str], columns: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Return these columns of the jobs that have one of these keys, by key."""
    sql = f"""SELECT unique_key, {", ".join(columns)} FROM job
        WHERE {HAS_KEY} AND unique_key IN (SELECT value FROM json_each(?)) AND {VISIBLE}"""
    return {key: tuple(values) for key, *values in cx.execute(sql, (json.dumps(list(keys)),))} if keys else {}


def count_below(cx: sqlite3.Connection, start: str) -> dict[str, int]:
    """Return the number of jobs with a key START/WORD or START/WORD/…, by WORD."""
    rest = f"substr(unique_key, {len(start) + 2})"
    sql = f"""SELECT substr({rest}, 1, instr({rest} || '/', '/') - 1) AS word, count(*) FROM job
        WHERE {HAS_KEY} AND unique_key >= ? AND unique_key < ? AND {VISIBLE} GROUP BY word"""
    return dict(cx.execute(sql, (f"{start}/", f"{start}0")).fetchall())  # 0 is the character after /
