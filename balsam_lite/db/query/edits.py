"""Read what users and scripts changed in jobs: the rows that `store.actions` writes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from typing import Any

from ...core import field_specs

#: Columns of the state, which no user edits; `undo` restores them. `state` comes first.
OF_STATE = ("state", "restarts", "retries", "launcher_deaths", "failure")
_ENVIRON = "environ_vars."
_EDITS = f"""SELECT edit.job, action.time, edit.field, coalesce(edit_text.text, edit.old), action.fields, edit.attempt,
        author.user, author.host, author.command
    FROM edit CROSS JOIN action ON action.id = edit.action JOIN author ON author.id = action.author
        LEFT JOIN edit_text ON edit_text.id = edit.shared
    WHERE edit.job IN (SELECT value FROM json_each(?)) AND edit.field NOT IN ({", ".join(map(repr, OF_STATE))})
    ORDER BY edit.job, action.id, edit.field"""


def edits(cx: sqlite3.Connection, jobs: Iterable[int]) -> list[dict[str, Any]]:
    """Return the edits of the fields of these jobs, by job and oldest first.

    Each has `job` (the number), `timestamp` (microseconds), `field` (`data.x` is a key of an object), `old` and `new` (None: no
    value, or no such key), `attempt` (the last one before it: the new value holds from the next one on), and by whom it was
    made: `user`, `host` and `command`. Secret environment variables are masked.
    """
    found = []
    for job, time, field, old, fields, attempt, *who in cx.execute(_EDITS, (json.dumps(list(jobs)),)):
        new = json.loads(fields).get(field)
        if "." in field:
            old, new = (None if text is None else json.loads(text) for text in (old, new))
        elif (known := field_specs.JOB_FIELD.get(field)) and known.kind == "flag":
            old, new = bool(old), bool(new)
        if field.startswith(_ENVIRON) and field_specs.is_secret(field[len(_ENVIRON) :]):
            old, new = (value and field_specs.MASK for value in (old, new))
        named = dict(zip(("user", "host", "command"), who))
        found.append({"job": job, "timestamp": time, "field": field, "old": old, "new": new, "attempt": attempt, **named})
    return found
