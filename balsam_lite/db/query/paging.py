"""The jobs that match, page by page in the order of their numbers; a page costs the same wherever it is.

Reading with an offset would go through all jobs before a page, and `IN (the jobs with a tag)` would collect all of those for
each. So a page begins behind the last number of the one before, and where tags are given SQLite walks through the jobs of the
rarest of them in the order of its index. Each function runs inside the caller's transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from .conditions import (
    Row,
    Term,
    Where,
    along_tag,
    are_named,
    given,
    listed,
    of_jobs,
    rarest_first,
    take_tags,
    unknown,
)
from .selection import (
    JOB_COLUMNS,
    columns_sql,
    read_rows,
)


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
    is_named = are_named(asked)
    tags = [] if is_named else take_tags(asked)
    # The index on states gives those of one in order, and would sort those of several for each page. Where there was a full
    # page already, the next one is not far, so that going through the jobs finds it.
    has_one_state = len(listed(asked.get("state", ()))) == 1
    condition = of_jobs(asked, is_ordered=bool(tags or (after and not has_one_state)))
    if tags:
        source, parameters = along_tag(tags, condition)
        return Term(f"SELECT {columns} FROM {source} AND given.job > ? ORDER BY given.job", [*parameters, after])
    sql, parameters = condition
    plain = "+" if is_named else ""
    source = "job" if asked else "job NOT INDEXED"
    return Term(f"SELECT {columns} FROM {source} WHERE {sql} AND {plain}job.id > ? ORDER BY job.id", [*parameters, after])
