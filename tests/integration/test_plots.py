"""Plots: their numbers, the files, what a terminal shows, and `balsam plot`."""

from __future__ import annotations

import json
import os
import random
import re
import struct
import sys
import time
import warnings
import zlib
from collections import Counter
from xml.etree import ElementTree

import pytest
from helpers import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from balsam_lite.cli import plot as plot_command
from balsam_lite.cli.main import main
from balsam_lite.cli.plot import moment
from balsam_lite.core import display, states
from balsam_lite.core.errors import BalsamError, InvalidSpec, NotFound
from balsam_lite.db.engine import directories
from balsam_lite.db.query import campaign as queries
from balsam_lite.db.store import apps, insert
from balsam_lite.plots import campaign, charts, drawing, figures, graph, scales, svg, text
from balsam_lite.plots.campaign import ALL, Campaign, Window
from balsam_lite.plots.charts import KINDS, Size
from balsam_lite.plots.text import Style

S = 1_000_000
#: 2026-05-31 12:00:00 UTC
T0 = 1_780_228_800 * S

ENDS = {"RUN_DONE": ("JOB_FINISHED", 0, ""), "RUN_ERROR": ("FAILED", 3, ""), "RUN_TIMEOUT": ("RESTART_READY", -15, "limit")}


def life(job, created, *runs, state="RUN_DONE", weight=1.0, node="", app="hello", parents=()):
    """A job that was created then and ran in these spans, in seconds; the last run ended in that state (RUNNING: not yet).

    (rows of the job with its runs, changes of its state, dependencies)
    """
    rows, moves, before = [], [(T0 + created * S, "", "CREATED")], "CREATED"
    for place, (start, end) in enumerate(runs, 1):
        ended = state if place == len(runs) else "RUN_TIMEOUT"
        moves.append((T0 + start * S, before, "RUNNING"))
        final, code, cause = ENDS.get(ended, ("RUNNING", None, ""))
        if ended != "RUNNING":
            moves += [(T0 + end * S, "RUNNING", ended), (T0 + end * S, ended, final)]
        rows.append((T0 + start * S, None if ended == "RUNNING" else T0 + end * S, code, cause))
        before = final
    job_row = [job, T0 + created * S, before, "w", app, "", weight]
    waits = [T0 + created * S, *(end for _, end, _, _ in rows)]
    facts = [[*job_row, *row, node, 1000 * job, 5 * S, since] for row, since in zip(rows, waits)]
    return facts or [[*job_row, None, None, None, None, None, None, None, None]], moves, [(one, job) for one in parents]


def campaign_of(*lives, batch_jobs=(), now=T0 + 100 * S, window=ALL, site="here"):
    made = Campaign(now, window)
    made.sites.append(site)
    for rows, moves, dependencies in lives:
        made.add_runs(rows)
        made.names.append(f"job{rows[0][0]}")
        for time_us, left, entered in moves:
            if time_us <= window.end:
                made.add_changes([[max(time_us, window.start) >> made.shift, left, entered, 1]])
        for parent, child in dependencies:
            made.parents.append(parent)
            made.children.append(child)
    made.batch_jobs += batch_jobs
    return made


def lives_of_few():
    """Three jobs on two nodes, of which one fails."""
    return [
        life(1, 0, (10, 30), weight=0.5, node="n1"),
        life(2, 0, (10, 50), state="RUN_ERROR", weight=2, node="n[1-2]", app="sim"),
        life(3, 5, (30, 60), weight=0.5, node="n1", parents=[1, 2]),
    ]


def few(**more):
    return campaign_of(*lives_of_few(), **more)


def many(jobs, places=300, **more):
    chance = random.Random(7)
    free = [0] * places
    lives = []
    for job in range(jobs):
        place = job % places
        start = free[place]
        free[place] += chance.randint(10, 60)
        state = "RUN_DONE" if chance.random() < 0.9 else "RUN_ERROR"
        lives.append(life(job + 1, 0, (start, free[place]), state=state, node=f"n{place // 10}"))
    return campaign_of(*lives, now=T0 + max(free) * S, **more)


def picture_of(kind, of, size=Size()):
    return KINDS[kind][0](of, "here", size)


def shown(kind, of, width=80, blocks=True):
    style = Style(width, blocks)
    return text.lines(picture_of(kind, of, style.fineness), style)


BATCH_JOBS = [(T0, T0 + 40 * S, 2), (T0 + 30 * S, None, 4), (None, None, 8)]

# --- numbers ----------------------------------------------------------------------------------------------------------


def test_throughput_has_the_jobs_done_and_their_rate():
    picture = picture_of("throughput", few(), Size(columns=50))
    done, rate = picture.charts
    assert (done.axis.first, done.axis.last) == (T0 + 10 * S, T0 + 60 * S)
    assert [value for at, value in enumerate(done.series[0].values) if at in (18, 21, 48, 49)] == [0, 1, 1, 2]
    assert sum(rate.series[0].values) * 50 / 60 / 50 == pytest.approx(2), "the area below the rate is the number of jobs"
    assert picture.title == "2 jobs done at here, 2.4 per minute"


def test_the_rate_leaves_out_the_time_between_launches():
    day = 86400
    of = campaign_of(
        *(life(job, 0, (job, job + 1)) for job in range(60)), *(life(60 + n, 0, (day + n, day + n + 1)) for n in range(60))
    )
    assert picture_of("throughput", of).title == "120 jobs done at here, 1 per second while jobs ran (2 min of 24 h)"


def test_utilization_is_the_mean_of_nodes_in_each_piece_of_time():
    (chart,) = picture_of("utilization", few(batch_jobs=BATCH_JOBS), Size(columns=10)).charts
    assert chart.series[0].values == pytest.approx([0, 2.5, 2.5, 2.5, 2.5, 0.5, 0, 0, 0, 0])
    assert chart.line.values == pytest.approx([2, 2, 2, 6, 4, 4, 4, 4, 4, 4])


def test_jobs_are_counted_in_each_state_from_their_creation_on():
    counts, running = picture_of("states", few(), Size(columns=60)).charts
    at = {series.name: [series.values[second] for second in (1, 6, 11, 31, 51, 59)] for series in counts.series}
    assert at == {
        "CREATED": [2, 3, 1, 0, 0, 0], "RUNNING": [0, 0, 2, 2, 1, 0],
        "JOB_FINISHED": [0, 0, 0, 1, 1, 2], "FAILED": [0, 0, 0, 0, 1, 1],
    }  # fmt: skip
    assert max(running.series[0].values) == 2


def test_runs_are_in_lanes_of_their_nodes():
    (chart,) = picture_of("gantt", few()).charts
    assert chart.names == ["n1", "", "n2"]
    spans = {(row, (start - T0) // S, (end - T0) // S) for row, start, end, _ in chart.bars}
    assert spans == {(0, 10, 30), (1, 10, 50), (2, 10, 50), (0, 30, 60)}


def test_nodes_have_the_share_of_the_time_in_which_they_were_busy():
    picture = picture_of("nodes", few())
    assert picture.title == "2 nodes at here, busy 90 % of the time"
    assert [(row.name, row.value, row.text) for row in picture.charts[0].rows] == [
        ("n1", 100, "100 %, 3 runs, 1 failed"), ("n2", 80, "80 %, 1 run, 1 failed"),
    ]  # fmt: skip


def test_durations_and_waiting_times_are_grouped_by_application():
    (chart,) = picture_of("durations", few()).charts
    assert [(row.name, row.total, row.quantiles) for row in chart.rows] == [
        ("hello", 2, (20, 30, 30, 30)), ("sim", 1, (40, 40, 40, 40)),
    ]  # fmt: skip
    (chart,) = picture_of("waiting", few()).charts
    assert [(row.name, row.quantiles[0], row.quantiles[3]) for row in chart.rows] == [("hello", 10, 25), ("sim", 10, 10)]
    (chart,) = picture_of("memory", few()).charts
    assert [chart.shown(row.quantiles[3]) for row in chart.rows] == ["3.0 kB", "2.0 kB"]


def test_a_run_whose_end_is_not_known_has_no_duration():
    rows, moves, _ = life(1, 0, (10, 500), node="n1")
    rows[0][10] = "launcher died"
    rows[0][9] = None
    of = campaign_of((rows, moves, []), life(2, 0, (10, 20)))
    (chart,) = picture_of("durations", of).charts
    assert [(row.total, row.quantiles[3]) for row in chart.rows] == [(1, 10)]


def test_failures_are_counted_by_cause_and_by_node():
    lives = [life(job, 0, (0, 10), state="RUN_ERROR", node=f"n{job % 3}") for job in range(1, 31)]
    for place, (rows, _, _) in enumerate(lives):
        rows[0][5] = "exit code 3" if place < 20 else "signal 9 (SIGKILL)"
    picture = picture_of("failures", campaign_of(*lives, life(31, 0, (0, 10))))
    assert picture.title == "30 of 31 jobs failed at here"
    assert [[(row.name, row.value) for row in chart.rows] for chart in picture.charts] == [
        [("exit code 3", 20), ("signal 9 (SIGKILL)", 10)], [("n1", 10), ("n2", 10), ("n0", 10)],
    ]  # fmt: skip


def test_the_graph_has_parents_left_of_their_children():
    (found,) = picture_of("dag", few()).charts
    assert [(node.name, node.x, node.state) for node in found.nodes] == [
        ("job1", 0, "JOB_FINISHED"), ("job2", 0, "FAILED"), ("job3", 1, "JOB_FINISHED"),
    ]  # fmt: skip
    assert found.edges == [(0, 2, 1), (1, 2, 1)]


def test_a_large_graph_is_condensed_to_applications_and_workflows():
    lives = [life(job, 0, app="ab"[job % 2], parents=[job - 1] if job % 2 == 0 else []) for job in range(1, 601)]
    (found,) = picture_of("dag", campaign_of(*lives)).charts
    assert found.is_condensed
    assert [(node.name, node.below, node.states) for node in found.nodes] == [
        ("b", "w", {"CREATED": 300}),
        ("a", "w", {"CREATED": 300}),
    ]
    assert found.edges == [(0, 1, 300)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=40))
def test_every_node_of_a_graph_has_a_place_of_its_own_even_in_circles(pairs):
    edges = sorted({(parent, child, 1) for parent, child in pairs if parent != child})
    places = graph._layout(13, edges)
    assert len(set(places)) == 13
    if all(parent < child for parent, child, _ in edges):
        assert all(places[parent][0] < places[child][0] for parent, child, _ in edges)


def test_a_window_cuts_what_is_shown_and_knows_what_was_before():
    window = Window(T0 + 20 * S, T0 + 40 * S)
    (chart,) = picture_of("gantt", few(window=window)).charts
    assert (chart.axis.first, chart.axis.last) == window
    assert picture_of("throughput", few(window=window)).title.startswith("1 job done")
    counts, _ = picture_of("states", few(window=window)).charts
    assert {series.name: series.values[0] for series in counts.series}["RUNNING"] == 2


def test_what_still_runs_lasts_until_now():
    (chart,) = picture_of("gantt", campaign_of(life(1, 0, (5, 0), state="RUNNING"))).charts
    assert [(start - T0, end - T0, states.STATES[code]) for _, start, end, code in chart.bars] == [(5 * S, 100 * S, "RUNNING")]


def test_jobs_of_two_sites_with_one_number_and_node_are_two():
    both = [campaign_of(life(1, 0, (a, b), node="n1"), site=site) for site, a, b in (("x", 0, 10), ("y", 5, 15))]
    (chart,) = picture_of("gantt", campaign.merged(both)).charts
    assert chart.names == ["x: n1", "y: n1"]


def test_a_run_without_a_recorded_node_is_named_so():
    (chart,) = picture_of("gantt", campaign_of(life(1, 0, (0, 10)))).charts
    assert chart.names == ["node unknown"]


def test_changes_are_counted_in_coarser_bins_where_they_are_many():
    of = many(20_000)
    assert len(of.changes) <= 30_000
    (counts, _) = picture_of("states", of, Size(columns=100)).charts
    assert {sum(values) for values in zip(*(series.values for series in counts.series))} == {20_000}
    assert sum(series.values[-1] for series in counts.series if series.name in ("JOB_FINISHED", "FAILED")) == 20_000


spans = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), min_size=1, max_size=40)


@settings(max_examples=50, deadline=None)
@given(spans)
def test_runs_in_one_lane_never_overlap(found):
    of = campaign_of(*(life(job, 0, (start, start + length), node="n1") for job, (start, length) in enumerate(found, 1)))
    runs, nodes, lanes, names = charts._placed(of)
    last = Counter()
    for run, lane in zip(runs, lanes):
        assert last[lane] <= of.starts[run]
        last[lane] = of.ends[run]
    assert (names, set(nodes)) == (["n1"], {0})
    moments = range(T0, T0 + 71 * S, S)
    assert max(lanes) + 1 <= max(sum(start <= t <= end for start, end in zip(of.starts, of.ends)) for t in moments)


@settings(max_examples=50, deadline=None)
@given(spans, st.integers(1, 30))
def test_means_keep_the_whole_and_are_never_negative(found, columns):
    axis = scales.TimeAxis(0, 70, [], "")
    values = charts.means(((start, start + length, 0.1) for start, length in found), axis, columns)
    assert sum(values) * 70 / columns == pytest.approx(0.1 * sum(length for _, length in found), abs=1e-6)
    assert min(values) >= 0


@settings(deadline=None)
@given(st.floats(1e-9, 1e12, allow_nan=False), st.integers(1, 8), st.booleans())
def test_ticks_are_round_few_and_reach_the_top(top, most, is_whole):
    ticks = scales.value_ticks(top, most, is_whole)
    assert ticks[0] == 0
    assert ticks[-1] >= top * (1 - 1e-6)
    assert 2 <= len(ticks) <= most + 2
    assert f"{ticks[1]:.6e}"[0] in "125"
    assert set(f"{ticks[1]:.6e}".split("e")[0][1:]) <= set(".0")
    assert not is_whole or ticks[1] == int(ticks[1])


@settings(deadline=None)
@given(st.integers(0, 2**51), st.integers(0, 10**15))
def test_ticks_of_time_are_round_and_inside(first, length):
    axis = scales.time_axis(first, first + length)
    assert 1 <= len(axis.ticks) <= 10
    assert axis.ticks[0] == (0, "0")
    assert all(0 <= time_us <= axis.last - axis.first for time_us, _ in axis.ticks)


def test_the_unit_of_time_follows_the_span():
    found = {60 * S: "seconds", 3600 * S: "minutes", 10 * 3600 * S: "hours", 40 * 86400 * S: "days"}
    assert {span: re.search(r"\((\w+)\)$", scales.time_axis(0, span).label)[1] for span in found} == found


# --- figures ----------------------------------------------------------------------------------------------------------


def words_in(path):
    return [node.text for node in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text") if node.text]


LABELS = {
    "throughput": ["Jobs done", "Jobs done per minute"],
    "utilization": ["Nodes", "in use", "available"],
    "states": ["Jobs", "Jobs running", "CREATED", "RUNNING", "JOB_FINISHED", "FAILED"],
    "gantt": ["Nodes", "n1", "n2", "RUN_DONE", "RUN_ERROR"],
    "nodes": ["Busy, in percent of the time in which jobs ran", "n1", "80 %, 1 run, 1 failed"],
    "durations": ["Duration", "hello", "20 s"],
    "waiting": ["Waited", "hello", "10 s"],
    "memory": ["Memory", "sim", "2.0 kB"],
    "failures": ["Failed jobs by cause", "Failed runs by node", "n2"],
    "dag": ["✓ job1", "✗ job2", "✓ JOB_FINISHED"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_axes_have_labels_with_units_and_a_legend(tmp_path, kind):
    path = str(tmp_path / "x.svg")
    figures.save(picture_of(kind, few(batch_jobs=BATCH_JOBS)), path)
    words = words_in(path)
    assert set(LABELS[kind]) <= set(words)
    if kind in ("throughput", "utilization", "states", "gantt"):
        assert any(re.fullmatch(r"Time since 2026-05-31 12:00:\d\d UTC \(seconds\)", word) for word in words)
    assert any("here" in word for word in words)


def png_size(path):
    """Width and height, after a look at every checksum in the file."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    place, pixels = 8, b""
    while place < len(data):
        length, name = struct.unpack(">I4s", data[place : place + 8])
        body = data[place + 8 : place + 8 + length]
        assert zlib.crc32(name + body) == struct.unpack(">I", data[place + 8 + length : place + 12 + length])[0]
        pixels += body if name == b"IDAT" else b""
        place += 12 + length
    zlib.decompress(pixels)
    return struct.unpack(">II", data[16:24])


@pytest.mark.parametrize("kind", KINDS)
def test_a_png_and_a_pdf_are_whole(tmp_path, kind):
    picture = picture_of(kind, few(batch_jobs=BATCH_JOBS))
    figures.save(picture, str(tmp_path / "x.PNG"))
    width, height = png_size(tmp_path / "x.PNG")
    assert width >= 1520
    assert height >= 150
    figures.save(picture, str(tmp_path / "x.pdf"))
    data = (tmp_path / "x.pdf").read_bytes()
    assert data.startswith(b"%PDF-")
    assert data.rstrip().endswith(b"%%EOF")
    assert sorted(os.listdir(tmp_path)) == ["x.PNG", "x.pdf"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_moment_can_be_drawn(kind):
    of = campaign_of(life(1, 0, (0, 0), state="RUN_ERROR" if kind == "failures" else "RUN_DONE"), now=T0)
    ElementTree.fromstring(svg.svg(drawing.drawing(picture_of(kind, of)), "x"))
    assert len(shown(kind, of)) >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_many_runs_make_small_files_soon(tmp_path, kind):
    of = many(20_000, batch_jobs=[(T0, None, 400)])
    started = time.process_time()
    figures.save(picture_of(kind, of), str(tmp_path / "x.svg"))
    shown(kind, of)
    assert time.process_time() - started < 15
    assert os.path.getsize(tmp_path / "x.svg") < 300_000


def test_a_few_errors_among_very_many_runs_are_seen():
    """Each cell has a dozen runs, of which one in ten fails: none fails in most of any cell."""
    of = many(20_000, places=200)
    (chart,) = picture_of("gantt", of, Size(columns=100, rows=10)).charts
    codes = Counter(states.STATES[cell.code] for row in chart.cells for cell in row if cell.code is not None)
    assert codes["RUN_ERROR"] / sum(codes.values()) == pytest.approx(0.1, abs=0.03)
    cells = "".join(line.partition("│")[2] for line in shown("gantt", of, 100))
    assert cells.count("E") / len(cells.replace(" ", "")) == pytest.approx(0.1, abs=0.03)


def test_runs_much_shorter_than_a_pixel_are_seen(tmp_path):
    short = [life(job, 0, (1000 * job, 1000 * job + 1)) for job in range(1, 101)]
    (chart,) = picture_of("gantt", campaign_of(*short, now=T0 + 200_000 * S)).charts
    (boxes,) = [shape for shape in drawing.drawing(charts.Picture("", [chart])).shapes if isinstance(shape, drawing.Boxes)]
    assert len(boxes.boxes) == 100
    assert min(width for _, _, width, _ in boxes.boxes) >= 0.8


def test_few_running_jobs_are_seen_among_very_many():
    jobs = [life(job, 0) for job in range(1, 100_000)]
    of = campaign_of(*jobs, life(100_000, 0, (10, 0), state="RUNNING"))
    lines = shown("states", of)
    assert re.match(r"RUNNING +▁{3,} +1 +1$", next(line for line in lines if line.startswith("RUNNING")))
    assert any("Jobs running" in line for line in lines)
    assert any(line.lstrip().startswith("1 │") and "█" in line for line in lines), "on a scale of their own"


def test_all_states_of_a_terminal_chart_share_one_scale():
    of = campaign_of(*(life(job, 0) for job in range(1, 91)), *(life(job, 0, (0, 5)) for job in range(91, 101)))
    rows = {line.split()[0]: line for line in shown("states", of) if line.split()[0] in states.STATES}
    assert "█" in rows["CREATED"]
    assert not set("▂▃▄▅▆▇█") & set(rows["JOB_FINISHED"])


def test_a_title_is_taken_as_it_is(tmp_path):
    title = "tags: price=$x_$ \\frac, 東京 <b>&"
    figures.save(picture_of("gantt", few())._replace(title=title), str(tmp_path / "x.svg"))
    assert title in words_in(tmp_path / "x.svg")
    figures.save(picture_of("gantt", few())._replace(title=title), str(tmp_path / "x.png"))


def test_no_two_states_share_a_colour_and_all_have_signs():
    assert set(display.COLOURS) == set(states.STATES) == set(display.SIGNS)
    assert len(set(display.COLOURS.values())) == len(display.COLOURS)


HOSTILE = 'a"]; x -> y\\ <b>&\n`#'


def test_names_are_quoted_in_the_languages_of_graphs(tmp_path):
    of = campaign_of(life(1, 0), life(2, 0, parents=[1]))
    of.names[0] = HOSTILE
    picture = picture_of("dag", of)
    for name in ("x.dot", "x.mmd"):
        figures.save(picture, str(tmp_path / name))
    dot = (tmp_path / "x.dot").read_text()
    (label,) = re.findall(r'^  n0 \[label="((?:[^"\\\n]|\\.)*)", fillcolor="#\w+", fontcolor="\w+"\];$', dot, re.M)
    assert label.replace("\\n", "\n").replace('\\"', '"').replace("\\\\", "\\") == f"· {HOSTILE}\nhello\nCREATED"
    assert "n0 -> n1;" in dot
    (label,) = re.findall(r'^  n0\["([^"\n]*)"\]:::CREATED$', (tmp_path / "x.mmd").read_text(), re.M)
    plain = re.sub(r"#(\d+);", lambda found: chr(int(found[1])), label.replace("<br>", "\n"))
    assert plain == f"· {HOSTILE}\nhello\nCREATED"


def test_a_file_that_is_there_stays_when_drawing_fails(tmp_path):
    path = tmp_path / "x.png"
    path.write_text("old")

    class Broken:
        def savefig(self, name, **_):
            with open(name, "w") as file:
                file.write("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(BalsamError, match=r"the disk of .* is full"):
        figures._save_with_matplotlib(Broken(), str(path), "png")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.png"]


# --- text -------------------------------------------------------------------------------------------------------------


def test_a_terminal_shows_throughput_with_round_numbers():
    assert shown("throughput", few(), 34, blocks=False) == """\
2 jobs done at here, 2.4 per minute
          Jobs done
       2 |                       #
         |                       #
         |                       #
         |                       #
       1 |         ###############
         |         ###############
         |         ###############
         |         ###############
         +------------------------
          Jobs done per minute
      30 |         =             =
         |         #             #
      20 |         #             #
         |         #             #
         |         #             #
      10 |         #             #
         |         #             #
         |         #             #
         +------------------------
         0        20        40
          Time since 2026-05-31 12:00:10 UTC (seconds)""".splitlines()  # fmt: skip


def test_a_terminal_shows_runs_by_node():
    lines = shown("gantt", few(), 54)
    assert [line[:2] for line in lines[2:5]] == ["n1", "  ", "n2"]
    assert [set(line[4:]) for line in lines[2:5]] == [{"█"}, {"E"}, {"E"}]
    assert [len(line[4:]) for line in lines[2:5]] == [50, 41, 41], "a cell of which a part is covered is shown"
    assert lines[-1].split("  ")[-2:] == ["░▒▓█ RUN_DONE", " E RUN_ERROR"]


def test_a_terminal_shows_nodes_below_those_available():
    lines = shown("utilization", few(batch_jobs=BATCH_JOBS), 60)
    assert lines[0] == "Nodes in use at here, 29.2 % of those available"
    assert "╌" in "".join(lines[2:17])
    assert "█" in lines[16]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [30, 60, 200])
def test_every_kind_fits_the_terminal_in_ascii_too(kind, width):
    lines = shown(kind, few(batch_jobs=BATCH_JOBS), width, blocks=False)
    assert all(line.isascii() for line in lines)
    if width >= 60:
        assert max(map(len, lines)) <= width


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A site with the three jobs, of which two have the tag k=v."""
    directory = str(tmp_path / "here")
    database = directories.create(directory)
    with database.write() as cx:
        apps.add_app(cx, {"name": "hello", "executable": "echo"})
    jobs = [{"name": f"j{n}", "workflow": "w", "application": "hello", "tags": {"k": "v"} if n < 3 else {}} for n in (1, 2, 3)]
    insert.add_jobs(database, jobs)
    lives = [life(1, 0, (10, 30)), life(2, 0, (10, 50), state="RUN_ERROR"), life(3, 0, (30, 60))]
    events = sorted((move[0], *move[1:], job) for job, (_, moves, _) in enumerate(lives, 1) for move in moves[1:])
    with database.write() as cx:
        cx.executemany("INSERT INTO event (time, from_state, to_state, job) VALUES (?, ?, ?, ?)", events)
        runs = [(row[0], *row[7:11]) for rows, _, _ in lives for row in rows]
        sql = "INSERT INTO run (job, attempt, started, ended, return_code, cause, nodes) VALUES (?, 1, ?, ?, ?, ?, 'n1')"
        cx.executemany(sql, runs)
        cx.execute("UPDATE job SET created = ?", (T0,))
        cx.execute("UPDATE job SET state = 'FAILED' WHERE id = 2")
        cx.execute("INSERT INTO dependency VALUES (1, 3)")
    database.close()
    monkeypatch.setenv("BALSAM_DB_PATH", directory)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "60")
    return directory


def balsam(*words):
    with warnings.catch_warnings():
        return main(list(words))


def test_the_command_plots_in_the_terminal(site, capsys):
    assert balsam("plot", "throughput") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "2 jobs done at here, 2.4 per minute"
    assert max(map(len, out.splitlines())) == 60
    assert err == ""
    assert balsam("plot", "states", "--site", "all") == 0
    assert "JOB_FINISHED" in capsys.readouterr().out


def test_the_command_names_all_kinds(capsys):
    assert set(plot_command.KINDS) == set(KINDS)
    assert balsam("plot", "--help") == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.split()} >= set(KINDS)


def test_every_kind_of_a_db(site, capsys):
    for kind in KINDS:
        assert balsam("plot", kind) == (3 if kind == "memory" else 0)
        out, _ = capsys.readouterr()
        assert ("here" in out) == (kind != "memory")


CHART_KEYS = {
    "time": {"chart", "label", "start", "end", "series"}, "lanes": {"chart", "label", "start", "end", "rows", "runs"},
    "bars": {"chart", "label", "rows"},
    "distributions": {"chart", "label", "edges", "rows"}, "graph": {"chart", "nodes", "edges"},
}  # fmt: skip


def test_the_numbers_are_json_with_the_documented_keys(site, capsys):
    page = (ROOT / "docs" / "json.rst").read_text().partition("\nPlots\n")[2]
    for kind in KINDS:
        if kind == "memory":
            continue
        assert balsam("plot", kind, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert list(found) == ["title", "charts"]
        for chart in found["charts"]:
            assert set(chart) == CHART_KEYS[chart["chart"]]
            rows = [row for key in ("series", "rows", "runs", "nodes") for row in chart.get(key, ())]
            for key in {*chart, *(key for row in rows for key in row)}:
                assert f"``{key}``" in page
    assert balsam("plot", "nodes", "--json") == 0
    assert [row["value"] for row in json.loads(capsys.readouterr().out)["charts"][0]["rows"]] == [100]
    assert balsam("plot", "nodes", "--json", "-o", "x.svg") == 2


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        (["--tag", "k=v"], 2), (["--id", "3"], 1), (["--id", "j3"], 1), (["--id", "j1", "--id", "3"], 2),
        (["--name", "j1", "--name", "j3"], 2), (["--wf", "w"], 3),
        (["--app", "hello", "--tag", "k=v", "--id", "2"], 1), (["--before", "2026-05-31 12:00:20"], 2),
        (["--after", "2026-05-31T14:00:45+02:00"], 2), (["--state", "CREATED"], 2),
    ],
)  # fmt: skip
def test_filters_choose_the_jobs(site, capsys, words, runs):
    assert balsam("plot", "gantt", *words) == 0
    assert capsys.readouterr().out.startswith(f"{runs} run")


@pytest.mark.parametrize(("words", "jobs"), [(["--id", "3"], 1), (["--tag", "k=v"], 2), (["--state", "FAILED"], 1), ([], 3)])
def test_filters_choose_the_changes_of_state(site, capsys, words, jobs):
    assert balsam("plot", "states", *words) == 0
    assert re.match(f"{jobs} jobs? at here", capsys.readouterr().out)


def test_the_command_writes_a_figure_over_an_old_one(site, capsys, tmp_path):
    (tmp_path / "x.svg").write_text("old")
    assert balsam("plot", "gantt", "-o", "x.svg", "--tag", "k=v") == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("", "Wrote x.svg\n")
    assert {"RUN_DONE", "--tag k=v"} <= set(words_in(tmp_path / "x.svg"))
    assert sorted(os.listdir(tmp_path)) == ["here", "x.svg"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["-o", "x.gif"], 2, r"\.png, \.svg, \.pdf"),
        (["-o", "x.dot"], 2, r"\.png, \.svg, \.pdf"),
        (["-o", "none/x.png"], 1, "there is no directory none"),
        (["-o", "here.png"], 1, "is a directory"),
        (["--tag", "k"], 2, "NAME=VALUE"),
        (["--state", "FAILD"], 2, "Did you mean 'FAILED'"),
        (["--after", "soon"], 2, "'soon' is not a time"),
        (["--after", "1h", "--before", "2h"], 2, "later"),
        (["--wf", "other"], 3, "No such job has run"),
        (["--after", "1m"], 3, "No such job has run"),
        (["--site", "nowhere"], 3, "nowhere"),
    ],
)  # fmt: skip
def test_what_cannot_be_plotted_is_said(site, capsys, tmp_path, words, code, said):
    (tmp_path / "here.png").mkdir()
    assert balsam("plot", "gantt", *words) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(said, err)


def test_an_empty_site_says_so_for_each_kind(tmp_path, monkeypatch, capsys):
    directories.create(str(tmp_path / "db")).close()
    monkeypatch.setenv("BALSAM_DB_PATH", str(tmp_path / "db"))
    for kind in KINDS:
        assert balsam("plot", kind) == 3
        assert re.match(r"Error: (No such job has .*|There is no such job.*)", capsys.readouterr().err)


def test_without_matplotlib_the_command_says_how_to_install_it(site, capsys, monkeypatch, tmp_path):
    for name in ("matplotlib", "matplotlib.figure", "numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    assert balsam("plot", "gantt", "-o", "x.png") == 1
    assert "pip install 'balsam_lite[plot]'" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
    assert balsam("plot", "gantt", "-o", "x.svg") == 0, "which needs none"


def test_text_is_ascii_where_the_output_can_have_nothing_else(site, monkeypatch, capsysbinary):
    import io

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert balsam("plot", "utilization") == 0
    assert raw.getvalue().isascii()
    assert b"#####" in raw.getvalue()


def test_moments_are_read_as_people_write_them():
    noon = T0
    for written in ("2026-05-31 12:00", "2026-05-31T12:00:00Z", "2026-05-31T14:00+02:00"):
        assert moment(written, 0) == noon
    assert moment("90s", noon) == moment("1.5m", noon) == noon - 90 * S
    assert moment("2d ago", noon) == noon - 2 * 86400 * S
    for nonsense in ("", "2h30", "yesterday", "2026-13-01", "-5m"):
        with pytest.raises(InvalidSpec):
            moment(nonsense, noon)


def test_nothing_to_plot_is_no_file():
    with pytest.raises(NotFound):
        picture_of("throughput", campaign_of())


# --- several sites ----------------------------------------------------------------------------------------------------


@pytest.fixture
def far(site, monkeypatch):
    """The same site again, through an ssh that is this process: all goes through the protocol."""
    from balsam_lite.core.errors import SiteUnreachable
    from balsam_lite.core.subprocess_run import Completed
    from balsam_lite.db.engine import registry
    from balsam_lite.sites.rpc.protocol import respond
    from balsam_lite.sites.rpc.remote import RemoteSite

    def run(self, request, timeout_s):
        if self.entry.name == "gone":
            raise SiteUnreachable("no host answers")
        return Completed([], 0, respond(request), "")

    monkeypatch.setattr(RemoteSite, "_run", run)
    registry.add(site, "here")
    registry.add(site, "there", "far.example.org")
    registry.add(site, "gone", "gone.example.org")


@pytest.mark.parametrize(("kind", "title"), [
    ("throughput", "4 jobs done at here, there, 4.8 per minute"), ("utilization", "Nodes in use at here, there"),
    ("states", "6 jobs at here, there by state"), ("gantt", "6 runs of jobs at here, there"),
    ("failures", "2 of 6 jobs failed at here, there"), ("dag", "6 jobs at here, there, 2 dependencies"),
])  # fmt: skip
def test_sites_behind_ssh_are_in_the_picture_and_one_that_fails_is_named(site, far, capsys, kind, title):
    assert balsam("plot", kind, "--site", "all") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == title
    assert err == "Warning: site gone could not be read: no host answers\n"


def test_pages_are_read_to_the_end(site, monkeypatch):
    from balsam_lite.db.engine import registry
    from balsam_lite.sites.fanout import open_site

    there = open_site(registry.at(site))
    parts = ("changes", "edges", "batch_jobs")
    whole = campaign.read(there, {}, parts, T0)
    monkeypatch.setattr(queries, "EVENTS_PER_PAGE", 2)
    monkeypatch.setattr(queries, "JOBS_PER_PAGE", 1)
    assert sum(whole.changes.values()) == 12
    for where, number in (({}, 12), ({"workflow": "w"}, 12), ({"name": "j1"}, 4), ({"name": ["j1", "j2"]}, 8)):
        found = campaign.read(there, where, parts, T0)
        assert (sum(found.changes.values()), len(found.starts)) == (number, number // 4)
    found = campaign.read(there, {}, parts, T0)
    assert (found.changes, found.jobs, found.parents) == (whole.changes, whole.jobs, whole.parents)


def test_a_job_waits_since_it_could_run(site, monkeypatch):
    from balsam_lite.db.engine import registry
    from balsam_lite.sites.fanout import open_site

    there = open_site(registry.at(site))
    with there.database.write() as cx:
        sql = "INSERT INTO event (job, time, from_state, to_state) VALUES (?, ?, ?, ?)"
        cx.execute(sql, (3, T0 + 22 * S, "AWAITING_PARENTS", "READY"))
        cx.execute(sql, (1, T0 + 70 * S, "JOB_FINISHED", "RESTART_READY"))
        cx.execute("INSERT INTO run (job, attempt, started) VALUES (1, 2, ?)", (T0 + 75 * S,))
    found = campaign.read(there, {}, (), T0 + 99 * S)
    assert [(found.jobs[job], wait // S) for job, wait in zip(found.job, found.waits)] == [(1, 10), (1, 5), (2, 10), (3, 8)]
