"""Show rows in notebooks: tables as HTML, progress bars (tqdm), data frames (pandas). Both packages are optional."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from .display import COLOURS, SIGNS, ink
from .errors import BalsamError

#: Characters of a value that a table shows.
_MAX_TEXT = 80
_LEFT = 'style="text-align:left"'


class FileLink(NamedTuple):
    """A value that is a file, to be opened from a notebook."""

    path: str


def output_link(data: str, workdir: str, name: str, job_id: str) -> FileLink | None:
    """Return the output of a job whose working directory is below the directory `data`; None if there is none yet."""
    from . import field_specs, job_files

    output = field_specs.output_name(name)
    path = job_files.find(os.path.join(data, workdir), output, job_id, job_files.is_generated(workdir, job_id))
    return FileLink(path) if os.path.exists(path) else None


def html_of(value: Any) -> str:
    """Return the HTML that shows a value: a state with its colour and sign, a file as a link.

    >>> html_of("<b>"), html_of({"k": 1})
    ('&lt;b&gt;', '{&quot;k&quot;: 1}')
    """
    import json
    from html import escape

    if isinstance(value, FileLink):
        # The server of a notebook opens files below its directory by their relative paths.
        near = os.path.relpath(value.path)
        address = value.path if near.startswith(os.pardir) else near
        return f'<a href="{escape(address)}" target="_blank">{escape(os.path.basename(value.path))}</a>'
    text = "" if value is None else json.dumps(value) if isinstance(value, (dict, list)) else str(value)
    if text in COLOURS:
        style = f"background:{COLOURS[text]};color:{ink(COLOURS[text])};padding:0 .4em;border-radius:4px;white-space:nowrap"
        return f'<span style="{style}">{SIGNS[text]} {text}</span>'
    return escape(text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…")


def html_table(rows: Sequence[Mapping[str, Any]], total: int, what: str) -> str:
    """Return a table of rows, which have the same keys, with the number of all of them."""
    from html import escape

    shown = f"The first {len(rows)} of {total:,} {what}" if len(rows) < total else f"{total:,} {what}"
    names = "".join(f"<th {_LEFT}>{escape(name)}</th>" for name in (rows[0] if rows else ()))
    lines = "".join(f"<tr>{''.join(f'<td {_LEFT}>{html_of(value)}</td>' for value in row.values())}</tr>" for row in rows)
    table = f"<table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table>" if rows else ""
    return f"<div><div>{escape(shown)}{':' * bool(rows)}</div>{table}</div>"


def html_form(what: str, fields: Mapping[str, Any]) -> str:
    """Return a table with a line for each field of one object."""
    from html import escape

    lines = "".join(
        f"<tr><th {_LEFT}>{escape(name)}</th><td {_LEFT}>{html_of(value)}</td></tr>" for name, value in fields.items()
    )
    return f"<div><div><b>{escape(what)}</b></div><table><tbody>{lines}</tbody></table></div>"


# --- optional packages ------------------------------------------------------------------------------------------------


def data_frame(rows: Iterable[Sequence[Any]], columns: Sequence[str], times: Container[str] = ()) -> Any:
    """Return rows of these columns as a pandas DataFrame: whole numbers and flags of which some are missing stay what they are.

    Args:
        times: columns with microseconds since the epoch, or datetimes, which become times in UTC.

    Raises:
        BalsamError: pandas cannot be imported; with the command that installs it.
    """
    try:
        import pandas
    except ImportError as exc:
        raise BalsamError(
            f"A data frame needs pandas, which cannot be imported: {exc}", hint="Install it with: pip install pandas"
        ) from exc
    values = list(zip(*rows)) or [()] * len(columns)
    return pandas.DataFrame(
        {name: _series(pandas, one, name in times) for name, one in zip(columns, values)}, columns=list(columns)
    )


#: The types of values of a column that may be missing -> the type of pandas with missing values.
_NULLABLE = {int: "Int64", bool: "boolean"}


def _series(pandas: Any, values: Sequence[Any], is_time: bool) -> Any:
    """Return a column; what `None` stands for is missing."""
    kinds = {type(value) for value in values if value is not None}
    if is_time and kinds <= {int}:
        epoch = pandas.Timestamp(0, tz="UTC")
        known = pandas.array(values, dtype="Int64") if values else []
        return (
            pandas.Series(pandas.to_datetime(known, unit="us", utc=True))
            if kinds
            else pandas.Series([pandas.NaT] * len(values), dtype=pandas.DatetimeTZDtype("us", epoch.tz))
        )
    try:
        if len(kinds) == 1 and None in values and (kind := _NULLABLE.get(next(iter(kinds)))):
            return pandas.Series(pandas.array(values, dtype=kind))
        if kinds == {int, float}:
            return pandas.Series([None if value is None else float(value) for value in values], dtype="float64")
    except OverflowError:  # a whole number that needs more than 64 bits, such as a seed
        return pandas.Series(list(values), dtype="object")
    return pandas.Series(list(values))


def is_notebook() -> bool:
    """Return whether this process runs the cells of a notebook. Imports nothing."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")


@contextmanager
def progress_bar(total: int, is_wanted: bool | None, what: str) -> Iterator[Callable[[int], object]]:
    """Show a progress bar while the block runs; call what this gives with each further number of things done.

    Args:
        is_wanted: None: in notebooks, if tqdm is installed.

    Raises:
        BalsamError: a bar is wanted, and tqdm cannot be imported.
    """
    bar = _bar(total, what, is_required=bool(is_wanted)) if is_wanted or (is_wanted is None and is_notebook()) else None
    try:
        yield (lambda number: None) if bar is None else bar.update
    finally:
        if bar is not None:
            bar.close()


def _bar(total: int, what: str, is_required: bool) -> Any:
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without ipywidgets tqdm warns, and shows a bar of text
            from tqdm.auto import tqdm
    except ImportError as exc:
        if not is_required:
            return None
        raise BalsamError(
            f"A progress bar needs tqdm, which cannot be imported: {exc}", hint="Install it with: pip install tqdm"
        ) from exc
    return tqdm(total=total, unit=what, dynamic_ncols=True)
