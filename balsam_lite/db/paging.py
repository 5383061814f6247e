"""The jobs that match, page by page in the order of their numbers; a page costs the same wherever it is.

Reading with an offset would go through all jobs before a page, and `IN (the jobs with a tag)` would collect all of those for
each. So a page begins behind the last number of the one before, and where tags are given SQLite walks through the jobs of the
rarest of them in the order of its index. Each function runs inside the caller's transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from .selection import (
    JOB_COLUMNS,
    JOB_CONDITIONS,
    Row,
    Term,
    Where,
    columns_sql,
    given,
    listed,
    pairs,
    rarest_first,
    read_rows,
    selection,
    unknown,
)

#: By these SQLite finds few jobs.
_SELECTIVE = frozenset({"id", "parent_id", "uuid", "batch_job_id"})
_TAG = "(SELECT id FROM tag WHERE key = ? AND value = ?)"


def jobs_page(cx: sqlite3.Connection, where: Where, fields: Sequence[str], after: int, size: int) -> list[Row]:
    """By number the first `size` of the jobs that match and have a number above `after`, with these fields, or [] for all.

    Raises:
        UnknownField, InvalidSpec, InvalidStateError.
    """
    for name in fields:
        if name not in JOB_COLUMNS:
            raise unknown(f"jobs have no field {name!r}.", name, JOB_COLUMNS)
    columns = {name: JOB_COLUMNS[name] for name in fields} or JOB_COLUMNS
    sql, parameters = page_statement(cx, where, after, columns_sql(columns))
    return list(read_rows(cx.execute(f"{sql} LIMIT ?", [*parameters, size]), columns))


def page_statement(cx: sqlite3.Connection, where: Where, after: int, columns: str) -> Term:
    """The query for a page of jobs, without its end."""
    asked = given(rarest_first(cx, where))
    tags = pairs(asked.pop("tags", {}))
    # The index on states gives those of one in order, and would sort those of several for each page. Where there was a full
    # page already, the next one is not far, so that going through the jobs finds it.
    has_one_state = len(listed(asked.get("state", ()))) == 1
    sql, parameters = selection("job", JOB_CONDITIONS, asked, is_ordered=bool(tags or (after and not has_one_state)))
    if not tags:
        plain = "" if _SELECTIVE.isdisjoint(asked) else "+"
        source = "job NOT INDEXED" if sql == "1" else "job"
        return Term(f"SELECT {columns} FROM {source} WHERE {sql} AND {plain}job.id > ? ORDER BY job.id", [*parameters, after])
    first, *others = tags
    has_others = "".join(f" AND EXISTS (SELECT 1 FROM job_tag WHERE tag = {_TAG} AND job = job.id)" for _ in others)
    return Term(
        f"""SELECT {columns} FROM job_tag AS given CROSS JOIN job ON job.id = given.job
            WHERE given.tag = {_TAG} AND given.job > ?{has_others} AND {sql} ORDER BY given.job""",
        [*first, after, *(word for pair in others for word in pair), *parameters],
    )
