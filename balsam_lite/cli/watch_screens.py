"""The screens of `balsam watch`, by textual (the extra `ui`)."""

from __future__ import annotations

import shlex
import time
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import StringIO
from typing import Any, ClassVar, NamedTuple

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen, Screen
from textual.widgets import DataTable, Footer, Input, Log, Static, TabbedContent, TabPane

from ..core import states
from ..core.clock import SECOND_US, spoken
from ..core.errors import BalsamError
from ..db.query.filters import all_of, condition_from_text
from ..launcher.reporting import RecentRate
from ..sites.interface import Row, SiteInterface
from . import explain, output, show

#: Looks at the DB take at most 1/N of the time.
_SPACING = 25
#: While nothing happens, the pause between two looks grows up to this many times the chosen one.
_IDLE_PAUSES = 4
#: Maximum number of jobs in a table.
_MAX_ROWS = 100
#: Number of looks that the curves show.
_CURVE = 300
#: Columns that a scroll bar takes.
_BAR = 2
#: Seconds between two looks at the output of a job.
_OUTPUT_PERIOD_S = 1.0
#: Maximum number of lines of output that are kept, and with how many it begins.
_MAX_LINES, _FIRST_LINES = 5000, 200
_COLOURS = {states.JOB_FINISHED: "green", states.FAILED: "red", states.USER_KILLED: "magenta", states.RUNNING: "cyan"}

Where = Mapping[str, Any]


class Tab(NamedTuple):
    """A table of the first screen."""

    title: str
    columns: tuple[str, ...]
    rows: Callable[[Row], list[tuple[str, Sequence[Any]]]]  # key and cells, from an overview


def _text(value: Any, style: str = "") -> Text:
    """Return a cell: names come from users, and may hold anything."""
    return Text(output.one_line(str(value)), style=style, no_wrap=True)


def _state(name: str) -> Text:
    return _text(name, _COLOURS.get(name, ""))


def _jobs(rows: Iterable[Row]) -> list[tuple[str, Sequence[Any]]]:
    return [(str(row["id"]), (row["id"], _text(row["name"]), _text(row["workflow"]), _state(row["state"]))) for row in rows]


def _running(found: Row) -> list[tuple[str, Sequence[Any]]]:
    return [
        (
            str(row["id"]),
            (
                row["id"],
                _text(row["name"]),
                _text(row["workflow"]),
                _text(row["node"] or "?"),
                spoken(max(0.0, (found["time"] - row["last_update"]) / SECOND_US)),
                row["attempt"],
            ),
        )
        for row in found["running"]
    ]


def _failures(found: Row) -> list[tuple[str, Sequence[Any]]]:
    return [(cause, (jobs, _text(cause))) for cause, jobs in found["failures"].items()]


def _launches(found: Row) -> list[tuple[str, Sequence[Any]]]:
    return [
        (
            row["name"],
            (
                _text(row["name"]),
                _text(row["state"]),
                f"{row['used']:.3g}/{row['nodes']}" if row["state"] == "running" else row["nodes"] or "",
                row["jobs"] or "",
                "" if row["minutes"] is None else spoken(max(0.0, row["minutes"]) * 60),
                _text(row["words"]),
            ),
        )
        for row in found["launches"]
    ]


def _workflows(found: Row) -> list[tuple[str, Sequence[Any]]]:
    rows: list[tuple[str, Sequence[Any]]] = []
    for name, counts in found["workflows"]:
        total, ended = sum(counts.values()), sum(counts.get(state, 0) for state in states.END_STATES)
        cells = (total, f"{100 * ended // total} %", counts.get(states.RUNNING, 0), counts.get(states.FAILED, 0))
        rows.append((name, (_text(name or "(none)"), *cells)))
    return rows


#: The tables of the first screen, by name.
TABS = {
    "running": Tab("Running", ("id", "name", "workflow", "node", "runs for", "attempt"), _running),
    "failures": Tab("Failures", ("jobs", "cause"), _failures),
    "launches": Tab("Launches", ("launch", "state", "nodes", "jobs", "time", "remark"), _launches),
    "workflows": Tab("Workflows", ("workflow", "jobs", "ended", "running", "failed"), _workflows),
    "jobs": Tab("Jobs", ("id", "name", "workflow", "state"), lambda found: _jobs(found["jobs"])),
}

#: What is written before the curves.
_RATE, _USE = " jobs/s ", " nodes in use "
_HEIGHTS = " ▁▂▃▄▅▆▇█"

_KEYS = """\
1 2 3 4 5   the tables: running, failures, launches, workflows, jobs
Enter       open a job; show the jobs of a cause or of a workflow
/           filter: parts of names, workflow=w1, num_nodes__gte=4
Escape      back; without the filter
k           kill the selected job, after a question
r           run the selected job again, after a question
q           end

Nothing is written until you press k or r and agree."""


# --- small screens ----------------------------------------------------------------------------------------------------


class Consent(ModalScreen[bool]):
    """A question that `y` answers with yes, and any other key with no."""

    DEFAULT_CSS = """
    Consent { align: center middle; }
    Consent Static { width: auto; max-width: 78; padding: 1 2; border: round $primary; background: $surface; }
    """

    def __init__(self, text: str, hint: str) -> None:
        super().__init__()
        self._words = f"{text}\n\n{hint}"

    def compose(self) -> ComposeResult:
        yield Static(self._words, markup=False)

    def on_key(self, event: Any) -> None:
        event.stop()
        self.dismiss(event.key == "y")


class _Acting:
    """What screens do with a job on request: the only places where `watch` writes."""

    app: App[None]
    there: SiteInterface

    def selected(self) -> Row | None:
        """Return id, name and job_id of the job that is meant."""
        raise NotImplementedError

    def action_kill(self) -> None:
        self._ask("Kill", lambda where: f"killed {self.there.kill(where)['killed']} job(s)")

    def action_rerun(self) -> None:
        self._ask("Run again", lambda where: f"put back {self.there.rerun(where)['jobs']} job(s)")

    def _ask(self, verb: str, act: Callable[[Where], str]) -> None:
        job = self.selected()
        if job is None:
            self.app.notify("No job is selected.", markup=False)
            return

        def do(agreed: bool | None) -> None:
            if agreed:
                self.app.run_worker(lambda: self._do(act, {"id": job["id"]}), thread=True, group="act")

        self.app.push_screen(Consent(f"{verb} {output.cute_id(job['name'], job['job_id'])}?", "y: yes, any other key: no"), do)

    def _do(self, act: Callable[[Where], str], where: Where) -> None:
        try:
            words, severity = act(where), "information"
        except BalsamError as exc:
            words, severity = str(exc), "error"
        self.app.call_from_thread(self.app.notify, output.many_lines(words), severity=severity, markup=False)


# --- one job ----------------------------------------------------------------------------------------------------------


class JobScreen(_Acting, Screen[None]):
    """One job: its fields, why it waits or failed, and its output as it is written."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "app.pop_screen", "Back"),
        Binding("1", "tab('show')", "Job", show=False),
        Binding("2", "tab('explain')", "Why", show=False),
        Binding("3", "tab('output')", "Output", show=False),
        Binding("k", "kill", "Kill"),
        Binding("r", "rerun", "Run again"),
    ]

    def __init__(self, there: SiteInterface, job: Row) -> None:
        super().__init__()
        self.there, self._job = there, job
        self._place: list[int] = [job["id"]]
        self._error = ""

    def compose(self) -> ComposeResult:
        yield Static(output.cute_id(self._job["name"], self._job["job_id"]), id="head", markup=False)
        with TabbedContent(id="parts"):
            with TabPane("Job", id="show"):
                yield Log(id="show-text")
            with TabPane("Why", id="explain"):
                yield Log(id="explain-text")
            with TabPane("Output", id="output"):
                yield Log(id="output-text", max_lines=_MAX_LINES)
        yield Footer()

    def on_mount(self) -> None:
        self._look()

    def selected(self) -> Row | None:
        return self._job

    def action_tab(self, name: str) -> None:
        self.query_one("#parts", TabbedContent).active = name

    def on_tabbed_content_tab_activated(self, event: TabbedContent.TabActivated) -> None:
        self.query_one(f"#{event.pane.id}-text", Log).focus()  # so that the arrow keys scroll it

    @work(thread=True, exclusive=True, group="job")
    def _look(self) -> None:
        """Read the job and what it has written since the last look; from a thread."""
        began = time.monotonic()
        try:
            rows = self.there.details([self._job["id"]])
            reasons = self.there.explain({"id": self._job["id"]}, each=True)["jobs"] if rows else []
            pieces = self.there.outputs([self._place], "", _FIRST_LINES)
        except BalsamError as exc:
            rows, reasons, pieces = [], [], [{"error": str(exc), "data": "", "place": self._place}]
        screen = StringIO()
        for row in rows:
            show.print_job(self.there, row, "", screen, max(self.size.width - _BAR, 1))
        lines = screen.getvalue().splitlines() or ["It is not there any more."]
        self.app.call_from_thread(self._show, lines, reasons, pieces, time.monotonic() - began)

    def _show(self, lines: list[str], reasons: list[Row], pieces: list[Row], cost_s: float) -> None:
        if not self.is_attached:
            return
        width = max(self.size.width - _BAR, 1)
        self._put("show-text", lines)
        self._put("explain-text", [line for row in reasons for line in explain.lines_of(row, "", width)])
        log = self.query_one("#output-text", Log)
        for piece in pieces:
            if piece["error"] and piece["error"] != self._error:
                log.write_line(output.one_line(piece["error"]))
            elif not piece["error"]:
                self._place = piece["place"]
                log.write(output.many_lines(b64decode(piece["data"]).decode(errors="replace")))
            self._error = piece["error"]
        self.set_timer(max(_OUTPUT_PERIOD_S, _SPACING * cost_s), self._look)

    def _put(self, widget: str, lines: Sequence[str]) -> None:
        log = self.query_one(f"#{widget}", Log)
        if list(log.lines) != list(lines):
            log.clear()
            log.write_lines(lines)


# --- the first screen -------------------------------------------------------------------------------------------------


class OverviewScreen(_Acting, Screen[None]):
    """All that goes on at one site.

    Args:
        there: the site.
        where: conditions on the jobs.
        interval_s: seconds between two looks.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(str(n + 1), f"tab('{name}')", tab.title, show=False) for n, (name, tab) in enumerate(TABS.items())),
        # Before the table that has the focus, which may not be the one that is shown yet.
        Binding("enter", "open", "Open", show=False, priority=True),
        Binding("slash", "filter", "Filter"),
        Binding("k", "kill", "Kill"),
        Binding("r", "rerun", "Run again"),
        Binding("escape", "no_filter", "All", show=False),
        Binding("question_mark", "keys", "Keys", key_display="?"),
    ]

    def __init__(self, there: SiteInterface, where: Where, interval_s: float) -> None:
        super().__init__()
        self.there, self._where, self._filter, self._interval_s = there, where, "", interval_s
        self._rate: RecentRate | None = None
        self._rates: deque[float] = deque(maxlen=_CURVE)
        self._use: deque[float] = deque(maxlen=_CURVE)
        self._found: Row = {}
        self._ended = (0.0, 0)  # when, how many
        self._look_id = 0
        self._pause_s = interval_s
        self._shown: dict[str, Any] = {}  # what each line and table shows

    def compose(self) -> ComposeResult:
        yield Static(id="head", markup=False)
        yield Static(id="counts")
        yield Static(id="progress", markup=False)
        yield Static(id="curves", markup=False)
        yield Input(id="filter", placeholder="conditions, such as state=FAILED workflow=w1; Enter", select_on_focus=True)
        with TabbedContent(id="tables"):
            for name, tab in TABS.items():
                with TabPane(tab.title, id=name):
                    table: DataTable[Any] = DataTable(id=f"{name}-rows", cursor_type="row", zebra_stripes=True)
                    yield table
        yield Footer()

    def on_mount(self) -> None:
        for name, tab in TABS.items():
            self._table(name).add_columns(*tab.columns)
        self._table("running").focus()
        self._look()

    # --- looking ------------------------------------------------------------------------------------------------------

    @property
    def conditions(self) -> Where:
        """The conditions of the command and of the filter."""
        return all_of(self._where, *(_condition(word) for word in shlex.split(self._filter)))

    @work(thread=True, exclusive=True, group="look")
    def _look(self) -> None:
        """Read what goes on; from a thread, as a site may be slow."""
        self._look_id += 1
        number, began = self._look_id, time.monotonic()
        found: Row = {}
        trouble = ""
        try:
            where = self.conditions
            found = self.there.overview(where, _MAX_ROWS)
            if self.active == "jobs":
                found["jobs"] = self.there.page(where, ("id", "job_id", "name", "workflow", "state"), size=_MAX_ROWS)
        except BalsamError as exc:
            trouble = str(exc).partition("\n")[0]
        self.app.call_from_thread(self._show, number, found, trouble, time.monotonic() - began)

    def _show(self, number: int, found: Row, trouble: str, cost_s: float) -> None:
        if number != self._look_id or not self.is_attached:  # another one has begun meanwhile
            return
        is_idle = not found or (not found["running"] and {**self._found, "time": 0} == {**found, "time": 0})
        self._pause_s = min(2 * self._pause_s, _IDLE_PAUSES * self._interval_s) if is_idle else self._interval_s
        self.set_timer(max(self._pause_s, _SPACING * cost_s), self._look)
        name = self.there.entry.name or self.there.entry.path
        chosen = f"  [{' '.join(shlex.split(self._filter))}]" if self._filter else ""
        now = time.strftime("%H:%M:%S")
        self._write("head", output.one_line(f" balsam watch  {name}{chosen}  {now}{trouble and f'  {trouble}'}"))
        if not found:
            return
        self._found = found
        counts = found["states"]
        self._write("counts", _counts(counts))
        self._write("progress", self._progress(counts, found))
        width = max((self.size.width - len(_RATE) - len(_USE)) // 2, 1)
        rates, use = curve(self._rates, width), curve(self._use, width, 1.0)
        self._write("curves", f"{_RATE}{rates}{_USE}{use}")
        self._fill(self.active)

    def _write(self, line: str, content: Any) -> None:
        """Show one of the upper lines, unless it is shown already."""
        if self._shown.get(line) != content:
            self._shown[line] = content
            self.query_one(f"#{line}", Static).update(content, layout=False)

    def _progress(self, counts: Mapping[str, int], found: Row) -> str:
        """Return the line with percentage, rate, time left, and add to the curves."""
        now, total = time.monotonic(), sum(counts.values())
        ended = sum(counts.get(state, 0) for state in states.END_STATES)
        self._rate = self._rate or RecentRate(now, ended)
        self._rate.note(now, ended)
        before, earlier = self._ended
        if before:
            self._rates.append(max(0.0, (ended - earlier) / max(now - before, 0.01)))
        self._ended = (now, ended)
        nodes = sum(row["nodes"] for row in found["launches"] if row["state"] == "running")
        used = sum(row["used"] for row in found["launches"])
        self._use.append(used / nodes if nodes else 0.0)
        rate = max(self._rate.per_s, 0.0)
        words = [f" {ended} of {total} ended" + (f" ({100 * ended // total} %)" if total else ""), f"{rate:.1f} jobs/s"]
        words += [f"about {spoken(max((total - ended) / rate, 1))} left"] if rate and total > ended else []
        words += [f"{used:.3g} of {nodes} nodes in use"] if nodes else ["no launcher runs"] * (total > ended)
        return ", ".join(words)

    def _fill(self, name: str) -> None:
        """Show the rows of a table, and keep the selection."""
        table = self._table(name)
        if name == "jobs" and "jobs" not in self._found:
            return
        rows = TABS[name].rows(self._found)
        if self._shown.get(name) == rows:
            return
        self._shown[name] = rows
        key, line = self._selected_key(table), table.cursor_row
        table.clear()
        keys = [row_key for row_key, _ in rows]
        for row_key, cells in rows:
            table.add_row(*cells, key=row_key)
        if keys:
            table.move_cursor(row=keys.index(key) if key in keys else min(line, len(keys) - 1), animate=False)

    # --- keys ---------------------------------------------------------------------------------------------------------

    @property
    def active(self) -> str:
        """The name of the table that is shown."""
        return self.query_one("#tables", TabbedContent).active or "running"

    def _table(self, name: str) -> DataTable[Any]:
        return self.query_one(f"#{name}-rows", DataTable)

    def _selected_key(self, table: DataTable[Any]) -> str | None:
        if not table.row_count:
            return None
        return table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value

    def selected(self) -> Row | None:
        key = self._selected_key(self._table(self.active))
        rows = self._found.get(self.active) if self.active in ("running", "jobs") else None
        return next((row for row in rows or () if str(row["id"]) == key), None)

    def action_tab(self, name: str) -> None:
        self.query_one("#tables", TabbedContent).active = name

    def on_tabbed_content_tab_activated(self) -> None:
        self._table(self.active).focus()  # also before the first look: else the keys would go to the hidden filter
        if self._found:
            self._fill(self.active)
            if self.active == "jobs":
                self._look()

    def on_data_table_row_selected(self) -> None:
        self.action_open()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Return whether a key does that now: Enter in the filter is for the filter."""
        return not (action == "open" and self.query_one("#filter", Input).has_focus)

    def action_open(self) -> None:
        """Open the selected job, or show the jobs of the selected cause or workflow."""
        job, key = self.selected(), self._selected_key(self._table(self.active))
        if job is not None:
            self.app.push_screen(JobScreen(self.there, job))
        elif key is not None and self.active in ("failures", "workflows"):
            field = "failure" if self.active == "failures" else "workflow"
            self._choose(shlex.quote(f"{field}__exact={key}"))
            self.action_tab("jobs")

    def action_filter(self) -> None:
        asked = self.query_one("#filter", Input)
        asked.value = self._filter
        asked.add_class("asked")
        asked.focus()

    def action_no_filter(self) -> None:
        self.query_one("#filter", Input).remove_class("asked")
        self._table(self.active).focus()
        self._choose("")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.input.remove_class("asked")
        self._table(self.active).focus()
        self._choose(event.value)

    def _choose(self, words: str) -> None:
        """Filter by these conditions from now on, unless they are not understood."""
        before, self._filter = self._filter, words.strip()
        try:
            _ = self.conditions
        except (BalsamError, ValueError) as exc:
            self._filter = before
            self.notify(output.many_lines(str(exc)), severity="error", markup=False)
        if self._filter != before:
            self._rate, self._ended = None, (0.0, 0)
            self._rates.clear()
            self._look()

    def action_keys(self) -> None:
        self.app.push_screen(Consent(_KEYS, "Any key: back"))


def curve(values: Iterable[float], width: int, top: float = 0.0) -> str:
    """Return the last values as a curve of that many characters; `top` is the largest one, 0: that of the values.

    >>> curve([0, 0.01, 0.5, 1], 6)
    '   ▁▄█'
    """
    shown = list(values)[-width:]
    top = top or max(shown, default=0.0) or 1.0
    heights = (0 if value <= 0 else max(1, min(round(8 * value / top), 8)) for value in shown)
    return "".join(_HEIGHTS[height] for height in heights).rjust(width)


def _condition(word: str) -> Where:
    """Return the condition of a word of the filter: NAME=VALUE, or a part of a job's name."""
    return condition_from_text(word) if "=" in word else {"name__icontains": word}


def _counts(counts: Mapping[str, int]) -> Text:
    found = Text(" ", no_wrap=True, overflow="ellipsis")
    for state in states.STATES:
        if counts.get(state):
            found.append(f"{counts[state]} {state}  ", _COLOURS.get(state, ""))
    return found


class WatchApp(App[None]):
    """The application.

    Args:
        there: the site.
        where: conditions on the jobs.
        interval_s: seconds between two looks.
    """

    CSS = """
    Screen { overflow: hidden; }
    TabbedContent, ContentSwitcher, TabPane, DataTable, Log { height: 1fr; }
    #head, #counts, #progress, #curves { height: 1; }
    #head { background: $primary; color: $text; }
    #filter { display: none; height: 1; border: none; padding: 0; }
    #filter.asked { display: block; }
    TabPane { padding: 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("q", "quit", "End")]
    ENABLE_COMMAND_PALETTE = False
    TITLE = "balsam watch"

    def __init__(self, there: SiteInterface, where: Where, interval_s: float) -> None:
        super().__init__()
        self._first = OverviewScreen(there, where, interval_s)

    def on_mount(self) -> None:
        self.push_screen(self._first)
