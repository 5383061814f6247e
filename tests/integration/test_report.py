"""`balsam report`: what the page has, and that a real browser shows, sorts, filters and prints it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import Browser
from elsewhere import small_disk
from helpers import Balsam

from balsam_lite.core.display import COLOURS, ink
from balsam_lite.core.process_table import Holder
from balsam_lite.db.engine import directories
from balsam_lite.db.engine.registry import SiteEntry
from balsam_lite.db.query import campaign as pages
from balsam_lite.db.store import apps, insert, leases
from balsam_lite.plots import report as reports
from balsam_lite.plots.charts import KINDS
from balsam_lite.sites.local import LocalSite

S = 1_000_000
#: 2026-05-31 12:00:00 UTC
T0 = 1_780_228_800 * S
HOSTILE = "<img src=x onerror='window.hacked=1'></script><script>window.hacked=1</script>&\""


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DB with 40 jobs that have run on four nodes: job n took n seconds, every tenth failed, and one has a hostile name."""
    directory = tmp_path / "campaign"
    database = directories.create(str(directory))
    with database.write() as cx:
        apps.add_app(cx, {"name": "sim", "executable": "/opt/sim --fast", "environ_vars": {"API_TOKEN": "s3cret", "MODE": "x"}})
    names = {7: HOSTILE, 8: "prize"}
    jobs = [{"name": names.get(n, f"j{n}"), "workflow": f"w{n % 2}", "application": "sim"} for n in range(1, 41)]
    insert.add_jobs(database, jobs)
    with database.write() as cx:
        cx.execute("UPDATE job SET created = ?", (T0,))
        cx.execute("INSERT INTO failure (cause, jobs) VALUES ('exit code 3', 4)")
        for job in range(1, 41):
            start, end, code = T0 + job * S, T0 + 2 * job * S, 3 * (job % 10 == 0)
            sql = "INSERT INTO run (job, attempt, nodes, started, ended, return_code, max_memory) VALUES (?, 1, ?, ?, ?, ?, ?)"
            cx.execute(sql, (job, f"n{job % 4}", start, end, code, job * 1_000_000))
            moves = [("CREATED", "RUNNING"), ("RUNNING", "RUN_ERROR" if code else "RUN_DONE")]
            moves.append((moves[-1][1], "FAILED" if code else "JOB_FINISHED"))
            sql = "INSERT INTO event (job, time, from_state, to_state) VALUES (?, ?, ?, ?)"
            cx.executemany(sql, [(job, start if new == "RUNNING" else end, old, new) for old, new in moves])
            cx.execute(
                "UPDATE job SET state = ?, attempt = 1, failure = ? WHERE id = ?", (moves[-1][1], 1 if code else None, job)
            )
    database.close()
    monkeypatch.setenv("BALSAM_DB_PATH", str(directory))
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Page(HTMLParser):
    """The ids, the rows of the table of jobs, and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_report_is_of_one_moment_while_launchers_write(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "JOBS_PER_PAGE", 10)
    site = LocalSite(SiteEntry(0, "campaign", str(db / "campaign")))
    read_page, pages_read = site.runs, []

    def runs(*words: object) -> list[object]:
        """Let another connection add a job before the first pages."""
        if len(pages_read) < 4:
            writer = directories.open_database(str(db / "campaign"))
            insert.add_jobs(writer, [{"name": "late", "application": "sim"}])
            writer.close()
        pages_read.append(words)
        return read_page(*words)

    monkeypatch.setattr(site, "runs", runs)
    found = reports.read(site, {}, T0)
    assert len(pages_read) > 3 and len(found.campaign.jobs) == 40


def test_the_page_has_every_kind_of_plot_the_record_and_no_link_to_another_file(db: Path, run_balsam: Balsam) -> None:
    assert run_balsam("report", "-o", "x.html") == (0, "", "Wrote x.html\n")
    page = page_of(db / "x.html")
    assert set(KINDS) | {"summary", "table", "record"} <= set(page.ids)
    assert all(link.startswith("#") for link in page.links)
    for words in ("Report of campaign", "/opt/sim --fast", "4 of 40 jobs failed", "exit code 3", "Applications"):
        assert words in page.text
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org/2000/svg)", (db / "x.html").read_text())


def test_values_of_secret_variables_are_masked(db: Path, run_balsam: Balsam) -> None:
    run_balsam("report", "-o", "x.html")
    text = (db / "x.html").read_text()
    assert "MODE=x" in text
    assert "API_TOKEN=" in text
    assert "s3cret" not in text


def test_the_record_names_launchers_with_versions_modules_and_what_their_environment_has_of_its_own(
    db: Path, run_balsam: Balsam
) -> None:
    found = {
        "modules": ["gcc/12"],
        "versions": {"Python": "3.11.4"},
        "environment_difference": {"OMP_NUM_THREADS": [None, "8"]},
    }
    database = directories.open_database(str(db / "campaign"))
    with database.write() as cx:
        lease = leases.open_lease(cx, "launcher", Holder("node7", "x", 1, "1"), "4711", T0)
        cx.execute("UPDATE lease SET environment = ? WHERE id = ?", (json.dumps(found), lease))
    database.close()
    run_balsam("report", "-o", "x.html")
    page = page_of(db / "x.html")
    for words in ("node7", "4711", "gcc/12", "Python 3.11.4", "OMP_NUM_THREADS=8"):
        assert words in page.text


def test_conditions_choose_the_jobs_and_are_named(db: Path, run_balsam: Balsam) -> None:
    assert run_balsam("report", "--wf", "w1", "--before", "2026-05-31 13:00", "-o", "x.html")[0] == 0
    page = page_of(db / "x.html")
    assert "--wf w1 --before 2026-05-31 13:00" in page.text
    assert "20 jobs done" in page.text
    assert run_balsam("report", "--id", "3", "-o", "x.html")[0] == 0, "digits are the number, as in plot"
    assert "1 job done" in page_of(db / "x.html").text


def test_a_report_of_no_jobs_says_so(db: Path, run_balsam: Balsam, tmp_path: Path) -> None:
    code, out, err = run_balsam("report", "--wf", "w11", "-o", "x.html")
    assert (code, out, os.path.exists("x.html")) == (3, "", False)
    assert "No job matches --wf w11. Did you mean 'w1'?" in err
    directories.create(str(tmp_path / "empty")).close()
    assert run_balsam("--db", str(tmp_path / "empty"), "report", "-o", "y.html")[0] == 0
    assert "No job matches." in page_of(db / "y.html").text


def test_a_minus_writes_to_standard_output(db: Path, balsam_argv: list[str]) -> None:
    done = subprocess.run([*balsam_argv, "report", "-o", "-"], capture_output=True, timeout=60, check=True)
    assert done.stdout.startswith(b"<!DOCTYPE html>")
    assert done.stdout.rstrip().endswith(b"</html>")
    assert done.stderr == b""


def test_an_old_report_is_replaced_whole_and_stays_when_the_disk_is_full(db: Path, run_balsam: Balsam) -> None:
    (db / "x.html").write_text("old")
    assert run_balsam("report", "-o", "x.html")[0] == 0
    assert (db / "x.html").read_text() != "old"
    assert sorted(os.listdir(db)) == ["campaign", "x.html"]
    with small_disk(db / "small", "32k") as disk:
        (disk / "x.html").write_text("old")
        code, out, err = run_balsam("report", "-o", str(disk / "x.html"))
        assert (code, out) == (1, "")
        assert re.search(r"x\.html cannot be written: the disk of .* is full", err)
        assert (os.listdir(disk), (disk / "x.html").read_text()) == (["x.html"], "old")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("none/x.html", "there is no directory none"),
        ("campaign", "is a directory"),
        ("/proc/x.html", "/proc/x.html cannot be written"),
    ],
)
def test_a_file_that_cannot_be_written_is_named(db: Path, run_balsam: Balsam, path: str, said: str) -> None:
    code, out, err = run_balsam("report", "-o", path)
    assert (code, out) == (1, "")
    assert said in err


def test_the_table_has_the_failed_jobs_and_then_the_slowest(
    db: Path, run_balsam: Balsam, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "MAX_JOBS", 7)
    run_balsam("report", "-o", "x.html")
    numbers = re.findall(r'<tr data-s="\w+"><td>#(\d+) ', (db / "x.html").read_text())
    assert numbers == ["40", "30", "20", "10", "39", "38", "37"]
    assert "7 of 40 jobs" in page_of(db / "x.html").text


def test_a_site_behind_ssh_and_one_here_are_in_one_report(
    db: Path, run_balsam: Balsam, monkeypatch: pytest.MonkeyPatch
) -> None:
    from balsam_lite.core.subprocess_run import Completed
    from balsam_lite.db.engine import registry
    from balsam_lite.sites.rpc.protocol import respond
    from balsam_lite.sites.rpc.remote import RemoteSite

    monkeypatch.setattr(RemoteSite, "_run", lambda self, request, timeout_s: Completed([], 0, respond(request), ""))
    registry.add(str(db / "campaign"), "here")
    registry.add(str(db / "campaign"), "there", "far.example.org")
    assert run_balsam("report", "--site", "all", "-o", "x.html") == (0, "", "Wrote x.html\n")
    text = (db / "x.html").read_text()
    assert "8 of 80 jobs failed at here, there" in text
    assert "<td>there #40 j40" in text
    assert "there: n1" in text


def test_ink_can_be_read_on_every_colour() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))

    for colour in COLOURS.values():
        two = sorted((luminance(colour), luminance({"#000": "#000000", "#fff": "#ffffff"}[ink(colour)])))
        assert (two[1] + 0.05) / (two[0] + 0.05) >= 4.5, f"the contrast that WCAG 2.1 asks for, on {colour}"


# --- in a browser -----------------------------------------------------------------------------------------------------

#: The numbers of the jobs in the table that are visible, in their order.
_SHOWN = """[...document.querySelectorAll('#jobs tbody tr')].filter(row => !row.hidden && row.offsetHeight)
    .map(row => +row.cells[0].textContent.match(/#(\\d+)/)[1])"""


@pytest.fixture
def browser(db: Path, run_balsam: Balsam, tmp_path: Path):
    run_balsam("report", "-o", "x.html")
    with Browser(tmp_path / "profile") as page:
        page.open(db / "x.html")
        yield page


def test_a_browser_shows_the_page_without_errors_and_asks_for_nothing_else(browser: Browser, db: Path) -> None:
    assert browser.errors == []
    assert browser.requests == [(db / "x.html").as_uri()]
    assert browser.evaluate("document.querySelectorAll('figure svg').length") == 10
    assert (
        browser.evaluate("Math.min(...[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().height))")
        > 80
    )


def test_names_with_html_are_shown_and_not_executed(browser: Browser) -> None:
    assert browser.evaluate("typeof window.hacked") == "undefined"
    assert browser.evaluate("document.images.length") == 0
    cell = browser.evaluate("[...document.querySelectorAll('#jobs td')].map(c => c.textContent).find(t => t.startsWith('#7 '))")
    assert cell.startswith("#7 <img src=x onerror='window.hacked=1'></script><script>")


def test_the_table_is_sorted_by_a_click_and_by_the_keyboard(browser: Browser) -> None:
    runtime = "#jobs th:nth-child(8) button"
    browser.click(runtime)
    assert browser.evaluate(_SHOWN)[:3] == [40, 39, 38], "numbers begin with the largest"
    assert browser.evaluate("document.querySelector('#jobs th:nth-child(8)').ariaSort") == "descending"
    browser.click(runtime)
    assert browser.evaluate(_SHOWN)[:3] == [1, 2, 3]
    browser.evaluate("document.querySelector('#jobs th:nth-child(1) button').focus()")
    browser.press("Enter")
    assert browser.evaluate(_SHOWN)[:3] == [1, 2, 3], "#9 is before #10"
    browser.press("Tab")
    browser.press("Space")
    assert browser.evaluate("document.activeElement.parentNode.ariaSort") == "ascending"
    assert browser.evaluate("document.querySelector('#jobs tbody tr').cells[1].textContent") == "w0"


def test_the_table_is_filtered_by_words_and_by_state(browser: Browser) -> None:
    assert browser.evaluate("document.getElementById('count').textContent") == "40 of 40 jobs match"
    browser.click("#find")
    browser.type("PRI ze".replace(" ", ""))
    assert browser.evaluate(_SHOWN) == [8]
    assert browser.evaluate("document.getElementById('count').textContent") == "1 of 40 jobs match"
    browser.evaluate("document.getElementById('find').value = ''; document.getElementById('find').focus()")
    browser.press("Tab")
    browser.type("")
    browser.evaluate("s = document.getElementById('state'); s.value = 'FAILED'; s.dispatchEvent(new Event('change'))")
    assert browser.evaluate(_SHOWN) == [40, 30, 20, 10]
    assert browser.evaluate("[...document.getElementById('state').options].map(o => o.text)") == [
        "all",
        "JOB_FINISHED",
        "FAILED",
    ]
    browser.click("#jobs th:nth-child(8) button")
    browser.click("#jobs th:nth-child(8) button")
    assert browser.evaluate(_SHOWN) == [10, 20, 30, 40], "sorting keeps the filter"


def test_of_very_many_jobs_the_first_are_visible_until_all_are_asked_for(
    db: Path, run_balsam: Balsam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "VISIBLE_JOBS", 6)
    run_balsam("report", "-o", "x.html")
    with Browser(tmp_path / "profile") as browser:
        browser.open(db / "x.html")
        assert browser.evaluate(_SHOWN) == [40, 30, 20, 10, 39, 38]
        assert browser.evaluate("document.getElementById('count').textContent") == "40 of 40 jobs match, the first 6 are shown"
        browser.click("#jobs th:nth-child(8) button")
        browser.click("#jobs th:nth-child(8) button")
        assert browser.evaluate(_SHOWN) == [1, 2, 3, 4, 5, 6], "those that are first in the order"
        browser.click("#all")
        assert len(browser.evaluate(_SHOWN)) == 40
        assert browser.evaluate("document.getElementById('all').hidden")


def test_the_page_follows_a_dark_scheme_and_fits_narrow_windows_and_paper(browser: Browser) -> None:
    colour = "getComputedStyle(document.querySelector({!r}))[{!r}]"
    browser.emulate("dark")
    assert browser.evaluate(colour.format("body", "backgroundColor")) == "rgb(22, 24, 28)"
    assert browser.evaluate(colour.format("figure text.ink", "fill")) == "rgb(228, 228, 228)"
    browser.emulate("light")
    assert browser.evaluate(colour.format("body", "backgroundColor")) == "rgb(255, 255, 255)"
    browser.emulate(width=360)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 360, "only figures and tables scroll sideways"
    browser.emulate(media="print")
    assert browser.evaluate(colour.format("form", "display")) == "none"
    assert browser.evaluate(colour.format("figure", "display")) == "block"


def test_states_can_be_told_without_colours(browser: Browser) -> None:
    """Each state has its name with a sign in the table and the summary; areas of failures are hatched."""
    assert browser.evaluate(
        "[...document.querySelectorAll('#jobs .badge')].every(b => /^[^A-Z ] [A-Z_]+$/.test(b.textContent))"
    )
    assert browser.evaluate("document.querySelectorAll('#states path[fill=\"url(#hatch)\"]').length") > 0


# --- cost -------------------------------------------------------------------------------------------------------------


def test_a_report_of_many_jobs_is_small_and_soon_written(tmp_path: Path, run_balsam: Balsam) -> None:
    """A bound far above what it takes; benchmarks/answers.py measures a million."""
    directory = str(tmp_path / "big")
    database = directories.create(directory)
    with database.write() as cx:
        apps.add_app(cx, {"name": "sim", "executable": "true"})
    insert.add_jobs(
        database, [{"name": f"job number {n}", "workflow": f"w{n % 9}", "application": "sim"} for n in range(20_000)]
    )
    with database.write() as cx:
        cx.execute("UPDATE job SET created = ?", (T0,))
        sql = "INSERT INTO run (job, attempt, nodes, started, ended, return_code) VALUES (?, 1, ?, ?, ?, 0)"
        cx.executemany(sql, ((n, f"n{n % 64}", T0 + n * S, T0 + (n + n % 100) * S) for n in range(1, 20_001)))
    database.close()
    started = time.process_time()
    assert run_balsam("--db", directory, "report", "-o", str(tmp_path / "x.html"))[0] == 0
    assert time.process_time() - started < 15
    assert os.path.getsize(tmp_path / "x.html") < 3_000_000
    assert (tmp_path / "x.html").read_text().count("<tr data-s=") == 5000
