"""Plots: the curves behind them, the files, what a terminal shows, and `balsam plot`."""

from __future__ import annotations

import os
import random
import re
import struct
import sys
import time
import warnings
import zlib
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balsam_lite.cli.main import main
from balsam_lite.cli.plot import moment
from balsam_lite.core.errors import BalsamError, InvalidSpec, NotFound
from balsam_lite.db.engine import directories
from balsam_lite.db.store import apps, insert
from balsam_lite.plots import figures, kinds, text, timeline
from balsam_lite.plots.kinds import PlotData
from balsam_lite.plots.text import Style
from balsam_lite.plots.timeline import ALL, Changes, Curve, Window

S = 1_000_000
#: 2026-05-31 12:00:00 UTC
T0 = 1_780_228_800 * S


def life(job, created, *runs, state="RUN_DONE", weight=1.0):
    """The changes of a job that was created then and ran in these spans, in seconds; the last run ended in that state."""
    yield T0 + created * S, "", "CREATED", job, None
    before = "CREATED"
    for place, (start, end) in enumerate(runs, 1):
        ended = state if place == len(runs) else "RUN_TIMEOUT"
        last = {"RUN_DONE": "JOB_FINISHED", "RUN_ERROR": "FAILED"}.get(ended, "RESTART_READY")
        yield T0 + start * S, before, "RUNNING", job, weight
        yield T0 + end * S, "RUNNING", ended, job, None
        yield T0 + end * S, ended, last, job, None
        before = last


def changes_of(*lives):
    made = Changes()
    for one in lives:
        made.add(one)
    return made


def few():
    """Three jobs on two places, of which one fails."""
    return changes_of(
        life(1, 0, (10, 30), weight=0.5), life(2, 0, (10, 50), state="RUN_ERROR", weight=2), life(3, 5, (30, 60), weight=0.5)
    )


def many(jobs, places=300):
    chance = random.Random(7)
    free = [0] * places
    made = Changes()
    for job in range(jobs):
        place = job % places
        start = free[place]
        free[place] += chance.randint(10, 60)
        made.add(life(job + 1, 0, (start, free[place]), state="RUN_DONE" if chance.random() < 0.9 else "RUN_ERROR"))
    return made


def plot_of(kind, changes, batch_jobs=(), now=T0 + 100 * S, window=ALL):
    return kinds.prepared(kind, [PlotData(changes, list(batch_jobs))], "here", now, window)


BATCH_JOBS = [(T0, T0 + 40 * S, 2), (T0 + 30 * S, None, 4), (None, None, 8)]

# --- curves -----------------------------------------------------------------------------------------------------------


def test_the_curves_of_three_jobs_are_these():
    changes = few()
    assert timeline.finished(changes) == Curve([T0 + 30 * S, T0 + 60 * S], range(1, 3))
    runs = timeline.runs(changes, T0 + 100 * S)
    used = timeline.in_use(runs)
    assert [((time - T0) // S, value) for time, value in zip(*used)] == [(10, 2.5), (30, 2.5), (50, 0.5), (60, 0)]
    assert list(timeline.lanes(runs)) == [0, 1, 0]
    available = timeline.available(BATCH_JOBS, T0 + 100 * S)
    assert [((time - T0) // S, value) for time, value in zip(*available)] == [(0, 2), (30, 6), (40, 4), (100, 0)]
    assert timeline.mean(used, T0, T0 + 100 * S) == pytest.approx((20 * 2.5 + 20 * 2.5 + 10 * 0.5) / 100)


def test_jobs_are_counted_in_each_state_from_their_creation_on():
    counts = timeline.counts(few())
    assert [(time - T0) // S for time in counts.times] == [0, 5, 10, 30, 50, 60]
    assert counts.by_state == {
        "CREATED": [2, 3, 1, 0, 0, 0], "RUNNING": [0, 0, 2, 2, 1, 0],
        "JOB_FINISHED": [0, 0, 0, 1, 1, 2], "FAILED": [0, 0, 0, 0, 1, 1],
    }  # fmt: skip


def test_a_window_cuts_what_is_shown_and_knows_what_was_before():
    window = Window(T0 + 20 * S, T0 + 40 * S)
    runs = timeline.runs(few(), T0 + 100 * S, window)
    assert [((s - T0) // S, (e - T0) // S) for s, e in zip(runs.starts, runs.ends)] == [(20, 30), (20, 40), (30, 40)]
    assert timeline.finished(few(), window).times == [T0 + 30 * S]
    assert timeline.counts(few(), window).by_state["RUNNING"] == [2]


def test_what_still_runs_lasts_until_now():
    changes = Changes()
    changes.add([(T0, "PREPROCESSED", "RUNNING", 1, 3.0)])
    runs = timeline.runs(changes, T0 + 9 * S)
    assert (list(runs.ends), timeline.state_name(runs.codes[0])) == ([T0 + 9 * S], "RUNNING")


def test_a_run_begins_when_its_program_was_started_and_not_when_it_was_claimed():
    changes = Changes()
    changes.add([(T0, "PREPROCESSED", "RUNNING", job, 1.0, None) for job in (1, 2, 3)])
    changes.add([(T0 + 5 * S, "RUNNING", "RUN_DONE", 1, None, T0 + 2 * S), (T0 + 5 * S, "RUNNING", "RUN_DONE", 2, None, None)])
    changes.add([(T0 + 5 * S, "RUNNING", "RUN_DONE", 3, None, T0 - 9 * S)])  # a clock that was put right
    runs = timeline.runs(changes, T0 + 9 * S)
    assert [(s - T0) // S for s in runs.starts] == [0, 0, 2]


def test_a_job_that_was_claimed_and_never_started_has_not_run():
    changes = Changes()
    changes.add([(T0, "PREPROCESSED", "RUNNING", job, 1.0, None) for job in (1, 2)])
    changes.add([(T0 + S, "RUNNING", "RESTART_READY", 1, None, 0), (T0 + S, "RUNNING", "RESTART_READY", 2, None, None)])
    assert list(timeline.runs(changes, T0 + 9 * S).ends) == [T0 + S]


def test_jobs_of_two_sites_with_one_number_are_two():
    both = [PlotData(changes_of(life(1, 0, (a, b))), []) for a, b in ((0, 10), (5, 15))]
    (runs,) = kinds.prepared("gantt", both, "", T0 + 99 * S).content
    assert [(e - s) // S for s, e in zip(runs.starts, runs.ends)] == [10, 10]


def test_changes_in_any_order_make_the_same_runs():
    rows = [row for one in (life(1, 0, (10, 30)), life(2, 0, (5, 9), (9, 20))) for row in one]
    expected = timeline.runs(changes_of(rows), T0)
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        assert timeline.runs(changes_of(rows), T0) == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 100)), min_size=1, max_size=400), st.integers(1, 20))
def test_a_thinned_curve_keeps_its_peaks_and_ends_and_makes_up_nothing(steps, pieces):
    curve = Curve(sorted(time for time, _ in steps), [value for _, value in steps])
    thin = timeline.thinned(curve, pieces)
    points = list(zip(*curve))
    assert len(thin.times) <= 4 * pieces
    assert set(zip(*thin)) <= set(points)
    assert (thin.times[0], thin.times[-1], thin.values[-1]) == (curve.times[0], curve.times[-1], curve.values[-1])
    assert (min(thin.values), max(thin.values)) == (min(curve.values), max(curve.values))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), min_size=1, max_size=40))
def test_runs_in_one_lane_never_overlap(spans):
    spans = sorted((start, start + length) for start, length in spans)
    codes = [0] * len(spans)
    lanes = timeline.lanes(timeline.Runs([s for s, _ in spans], [e for _, e in spans], codes, codes))
    last = {}
    for (start, end), lane in zip(spans, lanes):
        assert last.get(lane, start) <= start
        last[lane] = end
    assert max(lanes) + 1 <= max(sum(s <= t <= e for s, e in spans) for t, _ in spans)


# --- figures ----------------------------------------------------------------------------------------------------------


def words_in(path):
    return [node.text for node in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text") if node.text]


LABELS = {
    "throughput": ["Jobs done"],
    "utilization": ["Nodes", "in use", "available"],
    "states": ["Jobs", "CREATED", "RUNNING", "JOB_FINISHED", "FAILED"],
    "gantt": ["Lane (runs side by side)", "RUN_DONE", "RUN_ERROR"],
}


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_axes_have_labels_with_units_and_a_legend(tmp_path, kind):
    path = str(tmp_path / "x.svg")
    plot_of(kind, few(), BATCH_JOBS).save(path)
    words = words_in(path)
    assert set(LABELS[kind]) <= set(words)
    assert any(re.fullmatch(r"Time since 2026-05-31 12:00:\d\d UTC \(seconds\)", word) for word in words)
    assert any("here" in word for word in words)


def test_the_unit_of_time_follows_the_span():
    spans = {60 * S: "seconds", 3600 * S: "minutes", 10 * 3600 * S: "hours", 40 * 86400 * S: "days"}
    assert {span: timeline.unit(span)[0] for span in spans} == spans


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


def test_a_png_and_a_pdf_are_whole(tmp_path):
    plot = plot_of("utilization", few(), BATCH_JOBS)
    plot.save(str(tmp_path / "x.PNG"))
    assert png_size(tmp_path / "x.PNG") == (1440, 760)
    plot.save(str(tmp_path / "x.pdf"))
    data = (tmp_path / "x.pdf").read_bytes()
    assert data.startswith(b"%PDF-")
    assert data.rstrip().endswith(b"%%EOF")
    assert sorted(os.listdir(tmp_path)) == ["x.PNG", "x.pdf"]


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_single_moment_can_be_drawn(kind):
    changes = changes_of(life(1, 0, (0, 0)))
    plot = plot_of(kind, changes, now=T0)
    plot.as_figure(*plot.content, plot.title).draw_without_rendering()
    assert len(plot.lines(Style())) > 3


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_many_runs_make_small_files_soon(tmp_path, kind):
    changes = many(20_000)  # 80 000 events
    started = time.process_time()
    plot = plot_of(kind, changes, [(T0, None, 400)], now=max(changes.times))
    plot.save(str(tmp_path / "x.svg"))
    plot.lines(Style())
    assert time.process_time() - started < 15
    assert os.path.getsize(tmp_path / "x.svg") < 600_000


def test_an_image_of_runs_shows_which_state_covers_most():
    """The left half of many lanes is done, the right half are errors, and the upper half of the lanes is empty there."""
    changes = Changes()
    for lane in range(1100):
        changes.add(life(2 * lane + 1, 0, (0, 50)))
        if lane < 550:
            changes.add(life(2 * lane + 2, 0, (50, 100), state="RUN_ERROR"))
    changes.add(life(9999, 0, (0, 50)))
    changes.add(life(9998, 0, (0, 50)))
    for extra in range(600):
        changes.add(life(10_000 + extra, 0, (0, 50)))
    (runs,) = plot_of("gantt", changes).content
    figure = figures.gantt(runs, "")
    (image,) = figure.axes[0].images
    picture = image.get_array()
    rows, columns = picture.shape[:2]
    assert rows <= 400
    done, error = (tuple(bytes.fromhex(figures.COLOURS[state][1:])) for state in ("RUN_DONE", "RUN_ERROR"))
    left, right = picture[rows // 8, columns // 4], picture[rows // 8, columns * 3 // 4]
    assert tuple(left[:3] * 255) == pytest.approx(done)
    assert tuple(right[:3] * 255) == pytest.approx(error)
    assert left[3] == pytest.approx(1)
    assert picture[rows - 1, columns * 3 // 4, 3] == 0


def test_runs_much_shorter_than_a_pixel_are_seen():
    """A white rim would cover them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    short = [life(job, 0, (1000 * job, 1000 * job + 1)) for job in range(1, 101)]
    changes = changes_of(life(101, 0, (-30_000, -10_000)), *short)  # the axis covers what is shorter than it at the very left
    plot = plot_of("gantt", changes, now=max(changes.times))
    figure = plot.as_figure(*plot.content, "")
    figure.axes[0].get_legend().remove()
    (bars,) = figure.axes[0].collections
    assert list(bars.get_linewidths()) == [0.4] + [0.0] * 100
    figure.set_dpi(200)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = memoryview(canvas.buffer_rgba())
    row = [tuple(picture[picture.shape[0] // 2, column, channel] for channel in range(3)) for column in range(picture.shape[1])]
    coloured = [max(colour) - min(colour) > 60 for colour in row]
    assert sum(now and not before for before, now in zip([False, *coloured], coloured)) == 101


def test_a_few_errors_among_very_many_runs_are_seen():
    """Each cell has a dozen runs, of which one in ten fails: none fails in most of any cell."""
    changes = many(20_000, places=20)
    plot = plot_of("gantt", changes, now=max(changes.times))
    (image,) = plot.as_figure(*plot.content, "").axes[0].images
    picture = image.get_array()
    seen = picture[picture[..., 3] > 0.5][:, :3] * 255
    red = tuple(bytes.fromhex(figures.COLOURS["RUN_ERROR"][1:]))
    assert (abs(seen - red).max(axis=1) < 2).mean() == pytest.approx(0.1, abs=0.03)
    cells = "".join(line[10:] for line in plot.lines(Style(100))[1:-4])
    assert cells.count("E") / len(cells.replace(" ", "")) == pytest.approx(0.1, abs=0.03)


def test_a_title_is_taken_as_it_is(tmp_path):
    title = "tags: price=$x_$ \\frac, 東京"
    plot_of("gantt", few())._replace(title=title).save(str(tmp_path / "x.svg"))
    assert title in words_in(tmp_path / "x.svg")


def test_no_two_states_share_a_colour():
    assert set(figures.COLOURS) == set(timeline.states.STATES)
    assert len(set(figures.COLOURS.values())) == len(figures.COLOURS)


def test_a_file_that_is_there_stays_when_drawing_fails(tmp_path):
    path = tmp_path / "x.svg"
    path.write_text("old")

    class Broken:
        def savefig(self, name, **_):
            with open(name, "w") as file:
                file.write("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(BalsamError, match=r"the disk of .* is full"):
        figures.save(Broken(), str(path))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.svg"]


# --- text -------------------------------------------------------------------------------------------------------------


def test_a_terminal_shows_throughput():
    assert plot_of("throughput", few()).lines(Style(34, blocks=False)) == """\
2 jobs done at here, 2.4 per minute
          jobs done
       3 |
         |
         |
         |
         |
       2 |                       #
         |                       #
         |                       #
         |                       #
         |                       #
       1 |         ###############
         |         ###############
         |         ###############
         |         ###############
         |         ###############
         +------------------------
          0     12.5  25        50
          Time since 2026-05-31 12:00:10 UTC (seconds)""".splitlines()  # fmt: skip


def test_a_terminal_shows_runs_in_lanes():
    assert plot_of("gantt", few()).lines(Style(35)) == """\
3 runs of jobs at here
       1 │EEEEEEEEEEEEEEEEEEEE
       0 │█████████████████████████
         └─────────────────────────
          0     12.5  25    37.5 50
          Time since 2026-05-31 12:00:10 UTC (seconds)
          Lanes of runs that ended in:  ░▒▓█ RUN_DONE   E RUN_ERROR""".splitlines()  # fmt: skip


def test_a_terminal_shows_each_state_in_a_line():
    lines = plot_of("states", few()).lines(Style(60, blocks=False))
    shown = {line.split()[0]: line.split()[-2:] for line in lines[2:6]}
    assert shown == {"CREATED": ["3", "0"], "RUNNING": ["2", "0"], "JOB_FINISHED": ["2", "2"], "FAILED": ["1", "1"]}
    assert all(len(line) <= 60 and line.isascii() for line in lines)


def test_a_terminal_shows_nodes_below_those_available():
    lines = plot_of("utilization", few(), BATCH_JOBS).lines(Style(60))
    assert lines[0] == "Nodes in use at here, 29.2 % of those available"
    assert "╌" in "".join(lines[2:17])
    assert "█" in lines[16]
    assert all(len(line) <= 60 for line in lines)


@settings(deadline=None)
@given(st.floats(0, 1e9, allow_nan=False))
def test_a_scale_is_round_and_large_enough(least):
    step = text._step(least)
    assert least * (1 - 1e-9) <= step <= max(3 * least, 1)
    assert step < 1 or step == int(step)


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
    events = [event for number in (1, 2, 3) for event in list(LIVES[number]())[1:]]
    with database.write() as cx:
        sql = "INSERT INTO event (time, from_state, to_state, job) VALUES (?, ?, ?, ?)"
        cx.executemany(sql, [event[:4] for event in sorted(events, key=lambda event: event[0])])
        cx.execute("UPDATE job SET created = ?", (T0,))
    database.close()
    monkeypatch.setenv("BALSAM_DB_PATH", directory)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "60")
    return directory


LIVES = {
    1: lambda: life(1, 0, (10, 30)),
    2: lambda: life(2, 0, (10, 50), state="RUN_ERROR"),
    3: lambda: life(3, 0, (30, 60)),
}


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


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        (["--tag", "k=v"], 2), (["--id", "3"], 1), (["--id", "j3"], 1), (["--id", "j1", "--id", "3"], 2),
        (["--name", "j1", "--name", "j3"], 2), (["--wf", "w"], 3),
        (["--app", "hello", "--tag", "k=v", "--id", "2"], 1), (["--before", "2026-05-31 12:00:20"], 2),
        (["--after", "2026-05-31T14:00:45+02:00"], 2), (["--state", "CREATED"], 3),
    ],
)  # fmt: skip
def test_filters_choose_the_jobs(site, capsys, words, runs):
    assert balsam("plot", "gantt", *words) == 0
    assert capsys.readouterr().out.startswith(f"{runs} run")


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
    for kind in kinds.KINDS:
        assert balsam("plot", kind) == 3
        assert re.match("Error: No such job has .* in the time .* nothing to plot", capsys.readouterr().err)


def test_without_matplotlib_the_command_says_how_to_install_it(site, capsys, monkeypatch, tmp_path):
    for name in ("matplotlib", "matplotlib.figure", "numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    assert balsam("plot", "gantt", "-o", "x.png") == 1
    assert "pip install 'balsam_lite[plot]'" in capsys.readouterr().err
    for kind in kinds.KINDS:
        assert balsam("plot", kind) == 0
    assert not (tmp_path / "x.png").exists()


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
        plot_of("throughput", Changes())


# --- several sites ----------------------------------------------------------------------------------------------------


@pytest.fixture
def far(site, monkeypatch):
    """The same site once more, behind an ssh that is this process: all goes through the words of the wire."""
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
])  # fmt: skip
def test_sites_behind_ssh_are_in_the_picture_and_one_that_fails_is_named(site, far, capsys, kind, title):
    assert balsam("plot", kind, "--site", "all") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == title
    assert err == "Warning: site gone could not be read: no host answers\n"


def test_pages_are_read_to_the_end(site, monkeypatch):
    from balsam_lite.db.engine import registry
    from balsam_lite.db.query import select
    from balsam_lite.plots import kinds
    from balsam_lite.sites.fanout import open_site

    there = open_site(registry.at(site))
    whole = kinds.read(there, "states", {})
    monkeypatch.setattr(select, "EVENTS_PER_PAGE", 2)
    monkeypatch.setattr(kinds, "PAGE", 1)
    monkeypatch.setattr(kinds, "MAX_NAMED_JOBS", 1)
    assert len(whole.changes) == 12
    for where, number in (({}, 12), ({"workflow": "w"}, 12), ({"name": "j1"}, 4), ({"name": ["j1", "j2"]}, 8)):
        assert len(kinds.read(there, "states", where).changes) == number
    assert timeline.counts(kinds.read(there, "states", {}).changes) == timeline.counts(whole.changes)
