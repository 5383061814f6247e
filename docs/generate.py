"""Write the parts of the pages that come from the code into docs/generated; conf.py calls `write_all`.

Each function returns the text of one file. Nothing here needs Sphinx, so that the tests can read the same text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from runpy import run_path
from typing import Any

from balsam_lite.cli import group
from balsam_lite.core import errors, field_specs, settings, states
from balsam_lite.db.query.catalogue import CATALOGUE
from balsam_lite.db.query.fields import JOB
from balsam_lite.db.query.views import VIEWS

#: Other names of the fields of jobs.
ALIASES = {alias: name for alias, name in {**field_specs.ALIASES, **JOB.aliases}.items() if "__" not in name}
#: The kinds of fields in words.
KINDS = {
    "affinity": "``none`` or ``depth``",
    "amount": "number",
    "codes": "exit codes",
    "command": "command line",
    "count": "integer from 1",
    "count0": "integer from 0",
    "environ": "variables",
    "flag": "true or false",
    "id": "integer or null",
    "integer": "integer",
    "label": "text of one line",
    "minutes": "minutes",
    "key": "text, or none",
    "object": "JSON object",
    "path": "path",
    "place": "path or URL",
    "run_when": "word",
    "state": "state",
    "tags": "pairs of text",
    "text": "text",
}
EXIT_CODES = {
    0: "Done",
    1: "Error",
    2: "Wrong usage or input",
    3: "Not found: the job, application, site or batch job does not exist, or no job matches",
    75: "The DB was busy for too long; the same command may succeed a minute later",
    124: "Time limit reached while waiting",
}
ACTORS = {
    states.STEP: "Step: the launcher's work before and after a run",
    states.LAUNCHER: "Launcher, when it starts a run or a run ends",
    states.REAPER: "Reaper: another launcher, after the death of the one that held the job",
    states.HOOK: "Hook of the job",
    states.USER: "User, while no launcher holds the job",
}


def write_all(directory: Path) -> None:
    """Write every generated file into `directory`/generated; unchanged files keep their time."""
    target = directory / "generated"
    target.mkdir(exist_ok=True)
    for name, text in files().items():
        path = target / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def files() -> dict[str, str]:
    """Return the text of each generated file by its name."""
    return {
        "commands.txt": commands_table(),
        "settings.txt": settings_table(),
        "setting_choices.txt": setting_choices(),
        "states.txt": states_table(),
        "transitions.txt": transitions_table(),
        "job_fields.txt": fields_table(field_specs.JOB_FIELDS),
        "app_fields.txt": fields_table(field_specs.APP_FIELDS),
        "run_when.txt": definitions(field_specs.RUN_WHEN.items()),
        "exit_codes.txt": table(("code", "meaning"), [(f"``{code}``", text) for code, text in EXIT_CODES.items()], (10, 90)),
        "errors.txt": errors_table(),
        "reasons.txt": reasons_table(),
        "views.txt": views_tables(),
        "cpython_tests.txt": cpython_tests(),
        "states.svg": states_drawing(),
    }


def cpython_tests() -> str:
    """Return the tables of CPython's tests of executors that are left out, and of those that are changed."""
    tables = run_path(str(Path(__file__).parent.parent / "tests" / "cpython_suite.py"))
    reasons: dict[str, list[str]] = {}
    for name, reason in tables["SKIPPED"].items():
        reasons.setdefault(reason, []).append(f"``{name}``")
    left_out = table(("reason", "tests"), [(reason, ", ".join(names)) for reason, names in reasons.items()], (45, 55))
    changed = table(
        ("tests", "what is different"), [(f"``{name}``", text) for name, text in tables["ADAPTED"].items()], (35, 65)
    )
    return f"Left out:\n\n{left_out}\nChanged:\n\n{changed}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], widths: Sequence[int]) -> str:
    """Return a table of RST; widths are in percent."""
    lines = [".. list-table::", "   :header-rows: 1", "   :width: 100%", f"   :widths: {' '.join(map(str, widths))}", ""]
    for row in (header, *rows):
        lines += [f"   {'* -' if place == 0 else '  -'} {cell}".rstrip() for place, cell in enumerate(row)]
    return "\n".join(lines) + "\n"


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """Return a list of words with their meanings."""
    return "".join(f"``{word}``\n    {meaning[:1].upper()}{meaning[1:]}.\n" for word, meaning in pairs)


def commands_table() -> str:
    """Return the commands in the sections of `balsam --help`."""
    text = ""
    for section, commands in group.SECTIONS.items():
        rows = [(f"``balsam {name}``", entry.summary[:1].upper() + entry.summary[1:]) for name, entry in commands.items()]
        text += f"**{section}**\n\n{table(('command', 'what it does'), rows, (30, 70))}\n"
    return text


def settings_table() -> str:
    """Return the settings with their defaults."""
    defaults = settings.Settings()._asdict()
    rows = [(f"``{key}``", f"``{json.dumps(defaults[key])}``", text) for key, text in settings.MEANINGS.items()]
    return table(("key", "default", "meaning"), rows, (26, 22, 52))


def setting_choices() -> str:
    """Return the words that some settings are limited to."""
    return definitions((key, ", ".join(f"``{word}``" for word in words if word)) for key, words in settings.CHOICES.items())


def states_table() -> str:
    """Return the states with their meanings."""
    return table(
        ("state", "meaning"),
        [(f"``{name}``", text[:1].upper() + text[1:]) for name, text in states.DESCRIPTIONS.items()],
        (26, 74),
    )


def transitions_table() -> str:
    """Return who moves a job from which state to which; moves to any state are one row."""
    text = ""
    for actor, what in ACTORS.items():
        rows = []
        for source in states.STATES:
            targets = states.targets(source, actor)
            everywhere = set(targets) == set(states.STATES) - {states.RUNNING}
            words = "any state but ``RUNNING``" if everywhere else ", ".join(f"``{name}``" for name in targets)
            rows += [(f"``{source}``", words)] if targets else []
        if len({words for _, words in rows}) == 1 and len(rows) == len(states.STATES):
            rows = [("any", rows[0][1])]
        text += f"**{what}**\n\n{table(('from', 'to'), rows, (26, 74))}\n"
    return text


def fields_table(fields: Iterable[field_specs.Field]) -> str:
    """Return the fields of a job or an application."""
    rows = []
    for field in fields:
        aliases = [alias for alias, name in ALIASES.items() if name == field.name and field in field_specs.JOB_FIELDS]
        names = [f"``{name}``" for name in (field.name, *aliases)]
        default = _default(field) if field.settable else "(not settable)"
        rows.append((", ".join(names), KINDS[field.kind], default, field.meaning))
    return table(("field", "kind", "default", "meaning"), rows, (26, 18, 18, 38))


def _default(field: field_specs.Field) -> str:
    value: Any = field.default
    if field.kind == "flag":
        value = bool(value)
    elif field.kind in field_specs.JSON_KINDS:
        value = json.loads(value)
    return "" if value in ("", {}) or value is None else f"``{value}``"


def errors_table() -> str:
    """Return the exceptions of the package with their exit codes."""
    found = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.BalsamError)]
    rows = [
        (f"``{kind.__name__}``", str(kind.exit_code), _bases(kind), (kind.__doc__ or "").splitlines()[0].rstrip("."))
        for kind in found
    ]
    return table(("exception", "exit code", "is also a", "meaning"), rows, (24, 12, 24, 40))


def _bases(kind: type) -> str:
    return ", ".join(f"``{base.__name__}``" for base in kind.__bases__ if base is not Exception)


def reasons_table() -> str:
    """Return the catalogue of reasons, with the names of the values that their sentences have."""
    rows = [(f"``{code}``", *(re.sub(r"\{(\w+)[^}]*\}", _value, text) for text in kind)) for code, kind in CATALOGUE.items()]
    return table(("code", "reason", "what to do"), rows, (18, 42, 40))


def views_tables() -> str:
    """Return a section for each view, with its columns."""
    parts = []
    for view in VIEWS:
        rows = [(f"``{column.name}``", column.description) for column in view.columns]
        columns = table(("column", "meaning"), rows, (25, 75))
        parts.append(f"{view.name}\n{'-' * len(view.name)}\n\n{view.meaning[0].upper()}{view.meaning[1:]}.\n\n{columns}")
    return "\n".join(parts)


def _value(found: re.Match[str]) -> str:
    return "" if found[1] in ("more", "few", "where") else found[1].upper()


# --- the drawing of the states ----------------------------------------------------------------------------------------

LEFT, MIDDLE = 130, 400
ROW, WIDTH, HEIGHT, TOP = 58, 180, 32, 24
#: Place of each state: middle of its box in x, and row. FAILED is a bar at the right, USER_KILLED is below.
PLACES = {
    states.CREATED: (MIDDLE, 0),
    states.AWAITING_PARENTS: (LEFT, 1),
    states.READY: (MIDDLE, 2),
    states.STAGED_IN: (MIDDLE, 3),
    states.PREPROCESSED: (MIDDLE, 4),
    states.RESTART_READY: (LEFT, 5),
    states.RUNNING: (MIDDLE, 6),
    states.RUN_TIMEOUT: (LEFT, 7),
    states.RUN_ERROR: (LEFT, 8),
    states.RUN_DONE: (MIDDLE, 9),
    states.POSTPROCESSED: (MIDDLE, 10),
    states.JOB_FINISHED: (MIDDLE, 11),
}
BAR = 640


def drawn_edges() -> Iterator[tuple[str, str]]:
    """Yield the moves that launchers make and the drawing shows.

    Left out: moves that only pass over states in which there is nothing to do, the way back to AWAITING_PARENTS, and the way
    back of a job that was claimed and not started.
    """
    order = list(PLACES)
    forward = [name for name in order if PLACES[name][0] == MIDDLE]
    for actor in (states.STEP, states.LAUNCHER, states.REAPER):
        for source in states.STATES:
            for target in states.targets(source, actor):
                is_back = target == states.AWAITING_PARENTS and source != states.CREATED
                is_return = actor == states.REAPER and target not in (states.RESTART_READY, states.FAILED)
                both = source in forward and target in forward
                is_skip = both and forward.index(target) > forward.index(source) + 1
                if not (is_back or is_return or is_skip):
                    yield source, target


def states_drawing() -> str:
    """Return the states and the moves between them as SVG."""
    bottom = TOP + 12 * ROW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {bottom + 50}" font-family="sans-serif" font-size="14">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#555"/></marker></defs>',
        f'<rect width="720" height="{bottom + 50}" fill="#ffffff"/>',
    ]
    for source, target in dict.fromkeys(drawn_edges()):
        parts.append(_arrow(source, target))
    for name, (x, row) in PLACES.items():
        colour = {states.RUNNING: "#fff3c4", states.JOB_FINISHED: "#d3efd7"}.get(name, "#e8eef7")
        parts.append(_box(name, x - WIDTH // 2, TOP + row * ROW, WIDTH, HEIGHT, colour))
    parts.append(_box(states.FAILED, BAR, TOP, 70, 10 * ROW + HEIGHT, "#f8d7d7"))
    parts.append(_box(states.USER_KILLED, LEFT - WIDTH // 2, TOP + 11 * ROW, WIDTH, HEIGHT, "#f8d7d7"))
    words = "A user may kill a job that has not ended, and put one that is not running into any state but RUNNING."
    parts.append(f'<text x="{LEFT - WIDTH // 2}" y="{bottom + 20}" font-size="13" fill="#333">{words}</text></svg>')
    return "\n".join(parts) + "\n"


def _box(name: str, x: int, y: int, width: int, height: int, colour: str) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{colour}" stroke="#555"/>'
        f'<text x="{x + width / 2:g}" y="{y + height / 2 + 5:g}" text-anchor="middle" fill="#111">{name}</text>'
    )


def _arrow(source: str, target: str) -> str:
    """Return the arrow between two states: down a column, to the bar at the right, or from one column to the other."""
    x, row = PLACES[source]
    middle = TOP + row * ROW + HEIGHT / 2
    if target == states.FAILED:
        return _path(f"M{x + WIDTH / 2:g},{middle:g} H{BAR}")
    to_x, to_row = PLACES[target]
    to_middle = TOP + to_row * ROW + HEIGHT / 2
    if x == to_x and to_row < row:  # back, past the boxes between
        side = x - WIDTH / 2
        bend = side - 12 * (row - to_row)
        return _path(f"M{side:g},{middle:g} C{bend:g},{middle:g} {bend:g},{to_middle:g} {side:g},{to_middle:g}")
    if x == to_x:
        return _path(f"M{x},{middle + HEIGHT / 2:g} V{to_middle - HEIGHT / 2:g}")
    sign = 1 if to_x > x else -1
    start, end = x + sign * WIDTH / 2, to_x - sign * WIDTH / 2
    y, to_y, half = middle + 6 * sign, to_middle + 6 * sign, (start + end) / 2
    return _path(f"M{start:g},{y:g} C{half:g},{y:g} {half:g},{to_y:g} {end:g},{to_y:g}")


def _path(path: str) -> str:
    return f'<path d="{path}" fill="none" stroke="#555" stroke-width="1.4" marker-end="url(#tip)"/>'
