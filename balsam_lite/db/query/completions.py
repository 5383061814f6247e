"""Words that a shell offers while a command is typed. Each query takes one index and stops after a screenful."""

from __future__ import annotations

import sqlite3

from ..engine.schema import VISIBLE
from .queries import id_condition

_LIMIT = 50


def tags_from(cx: sqlite3.Connection, start: str) -> list[str]:
    """Return tags as KEY=VALUE that begin with `start`; those that no job has any more may be among them."""
    key, equals, value = start.partition("=")
    if equals:
        sql = "SELECT key || '=' || value FROM tag WHERE key = ? AND substr(value, 1, ?) = ? ORDER BY value LIMIT ?"
        rows = cx.execute(sql, (key, len(value), value, _LIMIT))
    else:
        sql = "SELECT key || '=' || value FROM tag WHERE key >= ? AND substr(key, 1, ?) = ? ORDER BY key, value LIMIT ?"
        rows = cx.execute(sql, (key, len(key), key, _LIMIT))
    return [row[0] for row in rows]


def short_ids_from(cx: sqlite3.Connection, start: str) -> list[str]:
    """Return the first 8 characters of job ids that begin with `start`; the newest jobs if it is empty."""
    if not start:
        found = cx.execute(f"SELECT substr(job_id, 1, 8) FROM job WHERE {VISIBLE} ORDER BY id DESC LIMIT ?", (_LIMIT,))
        return [row[0] for row in found]
    condition, parameters = id_condition(start)
    sql = f"SELECT substr(job_id, 1, max(8, ?)) FROM job WHERE {condition} AND {VISIBLE} LIMIT ?"
    return [row[0] for row in cx.execute(sql, (len(start), *parameters, _LIMIT))]
