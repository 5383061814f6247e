"""Jobs in notebooks: tables, progress bars and data frames; and a notebook that is executed and shown by a browser."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from browser import Browser

from balsam_lite.api import EventLog, Job
from balsam_lite.core.errors import BalsamError, UnknownField
from balsam_lite.core.field_specs import output_name
from balsam_lite.db.engine import directories
from balsam_lite.db.manager import use
from balsam_lite.db.models import BalsamJob
from balsam_lite.db.store import apps
from balsam_lite.launcher.futures import FutureTask, as_completed, wait

HOSTILE = "<b onclick='window.hacked=1'>&"


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A DB with 30 jobs, of which the first has failed and left output, and the second is done."""
    made = directories.create(str(tmp_path / "db"))
    with made.write() as cx:
        apps.add_app(cx, {"name": "sim", "executable": "true", "environ_vars": {"API_TOKEN": "s3cret"}})
    monkeypatch.setenv("BALSAM_DB_PATH", str(tmp_path / "db"))
    monkeypatch.chdir(tmp_path)
    with use(made):
        names = {1: HOSTILE}
        BalsamJob.objects.bulk_create(
            [
                {"name": names.get(n, f"j{n}"), "workflow": f"w{n % 2}", "application": "sim", "tags": {"n": str(n)}}
                for n in range(1, 31)
            ]
        )
        one, two = BalsamJob.objects.filter(id__lte=2)
        one.update_state("FAILED", "by hand")
        two.update_state("JOB_FINISHED", "by hand")
        Path(one.working_directory).mkdir(parents=True)
        (Path(one.working_directory) / output_name(one.name)).write_text("output")
        yield made
    made.close()


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objects", [BalsamJob.objects, Job.objects])
def test_a_set_is_a_table_with_its_count_and_states_in_colour(db, objects):
    html = objects.all()._repr_html_()
    assert html.count("<tr>") == 21
    assert "The first 20 of 30 jobs:" in html
    assert ">✗ FAILED</span>" in html
    assert "&lt;b onclick=" in html
    assert HOSTILE not in html
    assert "s3cret" not in html
    assert "0 jobs" in objects.filter(name="none")._repr_html_()


def test_a_job_has_a_link_to_its_output_once_there_is_one(db):
    one, two = BalsamJob.objects.filter(id__lte=2)
    assert 'href="db/data/w1/' in one._repr_html_()
    assert "href" not in two._repr_html_()
    assert ">✓ JOB_FINISHED</span>" in two._repr_html_()
    assert "href" in BalsamJob.objects.all()._repr_html_()
    assert "href" in Job.objects.get(id=1)._repr_html_()
    assert "FAILED" in FutureTask(one)._repr_html_()
    assert "<form" not in BalsamJob(name="new", workflow="w", application="sim")._repr_html_()


def test_a_job_that_has_run_has_its_node_and_run_time(db):
    with db.write() as cx:
        cx.execute("INSERT INTO run (job, attempt, nodes, started, ended) VALUES (2, 1, 'n7', 1000000, 91000000)")
        cx.execute("UPDATE job SET attempt = 1 WHERE id = 2")
    html = BalsamJob.objects.filter(id=2)._repr_html_()
    assert ">n7</td>" in html
    assert ">90 s</td>" in html
    assert list(BalsamJob.objects.filter(id=2).to_df("runtime", "node").runtime) == [90]


def test_futures_of_calls_show_their_jobs(db):
    from balsam_lite.launcher.futures import BalsamExecutor

    with BalsamExecutor() as executor:
        future = executor.submit(len, "abc")
        assert ">· CREATED</span>" in future._repr_html_()
        assert future.cancel()
        assert "USER_KILLED" in future._repr_html_()


def test_sets_of_dicts_are_tables_and_those_of_tuples_are_text(db):
    assert ">name</th>" in BalsamJob.objects.values("name", "state")._repr_html_()
    assert BalsamJob.objects.values_list("name")._repr_html_() is None
    assert ">from_state</th>" in EventLog.objects.all()._repr_html_()


# --- data frames ------------------------------------------------------------------------------------------------------


def test_sets_are_data_frames_with_times(db):
    pandas = pytest.importorskip("pandas")
    frame = BalsamJob.objects.filter(id__lte=2).to_df("name", "state", "created")
    assert list(frame.columns) == ["name", "state", "created"]
    assert list(frame.state) == ["FAILED", "JOB_FINISHED"]
    assert isinstance(frame.created.dtype, pandas.DatetimeTZDtype)
    assert len(BalsamJob.objects.all().to_df()) == 30
    assert list(BalsamJob.objects.none().to_df("name").columns) == ["name"]
    frame = Job.objects.all().to_df()
    assert (len(frame), frame.state.value_counts()["CREATED"], frame.tags[4]) == (30, 28, {"n": "5"})
    frame = EventLog.objects.all().to_df("timestamp", "to_state", "job_id")
    assert set(frame.to_state) == {"FAILED", "JOB_FINISHED"}
    assert frame.timestamp.dtype.kind == "M"
    for objects in (BalsamJob.objects.all(), Job.objects.all()):
        with pytest.raises(UnknownField, match="nmae"):
            objects.to_df("nmae")


def test_without_a_package_the_error_names_it(db, monkeypatch):
    for name in ("pandas", "tqdm", "tqdm.auto"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BalsamError, match="pip install pandas"):
        BalsamJob.objects.all().to_df()
    with pytest.raises(BalsamError, match="pip install tqdm"):
        wait([FutureTask(BalsamJob.objects.get(id=1))], progress=True)
    assert wait([FutureTask(BalsamJob.objects.get(id=1))]).failed, "without asking for a bar nothing is missing"


# --- progress bars ----------------------------------------------------------------------------------------------------


def test_scripts_have_a_progress_bar_only_where_they_ask_for_it(db, capfd):
    pytest.importorskip("tqdm")
    jobs = list(BalsamJob.objects.filter(id__lte=2))
    assert len(list(as_completed(map(FutureTask, jobs)))) == 2
    wait(map(FutureTask, jobs), return_when="ALL_COMPLETED")
    Job.objects.wait(Job.objects.filter(id=[1, 2]))
    assert capfd.readouterr() == ("", "")
    assert len(list(as_completed(map(FutureTask, jobs), progress=True))) == 2
    assert "2/2" in capfd.readouterr().err
    Job.objects.wait(Job.objects.filter(id=[1, 2]), progress=True)
    assert "2/2" in capfd.readouterr().err


def test_importing_what_waits_imports_neither_pandas_nor_tqdm():
    code = (
        "import sys, balsam_lite.api, balsam_lite.launcher.dag; print({'pandas', 'tqdm', 'IPython', 'html'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


# --- a real notebook --------------------------------------------------------------------------------------------------

_CELLS = (
    "from balsam_lite.launcher.dag import BalsamJob\nBalsamJob.objects.all()",
    "from balsam_lite.launcher.futures import FutureTask, as_completed",
    "BalsamJob.objects.get(id=1)",
    "FutureTask(BalsamJob.objects.get(id=2))",
    "for future in as_completed([FutureTask(job) for job in BalsamJob.objects.filter(id__lte=2)]):\n    print(future.state)",
    "BalsamJob.objects.filter(id__lte=3).to_df('id', 'name', 'state')",
)


def notebook_of(sources):
    """A notebook of Python cells, as text."""
    import json

    cells = [
        {"cell_type": "code", "metadata": {}, "source": source, "outputs": [], "execution_count": None, "id": f"c{n}"}
        for n, source in enumerate(sources)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return json.dumps({"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5})


def test_a_notebook_is_executed_and_shown_by_a_browser(db, tmp_path):
    for package in ("nbconvert", "ipykernel", "pandas", "tqdm"):
        pytest.importorskip(package)
    (tmp_path / "x.ipynb").write_text(notebook_of(_CELLS))
    words = [sys.executable, "-m", "jupyter", "nbconvert", "--execute", "--to", "html", "x.ipynb"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=160)
    assert done.returncode == 0, done.stderr
    with Browser(tmp_path / "profile") as browser:
        browser.open(tmp_path / "x.html")
        assert browser.evaluate("document.querySelectorAll('.jp-OutputArea table').length") == 4
        text = browser.evaluate("document.body.innerText")
        for words in ("The first 20 of 30 jobs", "✗ FAILED", "✓ JOB_FINISHED", "FutureTask", "2/2", HOSTILE):
            assert words in text
        assert "IProgress" not in text
        assert browser.evaluate("typeof window.hacked") == "undefined"
        colour = (
            "getComputedStyle([...document.querySelectorAll('span')].find(s => s.textContent === '✗ FAILED')).backgroundColor"
        )
        assert browser.evaluate(colour) == "rgb(136, 34, 85)"
        browser.screenshot(tmp_path / "notebook.png")
        assert (tmp_path / "notebook.png").stat().st_size > 10_000


_CALLS = (
    "from balsam_lite.launcher.futures import BalsamExecutor\nfactor = 3\nclass Point:\n    def __init__(self, x): self.x = x",
    "def scaled(point):\n    return Point(factor * point.x)",
    "with BalsamExecutor(launcher=2) as executor:\n"
    "    found = executor.submit(scaled, Point(2)).result(100)\n"
    "    print('found', type(found) is Point, found.x, list(executor.map(lambda x: x + factor, range(3))))",
)


def test_functions_and_classes_of_a_notebook_are_called_in_jobs(tmp_path):
    for package in ("nbconvert", "ipykernel", "cloudpickle"):
        pytest.importorskip(package)
    (tmp_path / "x.ipynb").write_text(notebook_of(_CALLS))
    words = [sys.executable, "-m", "jupyter", "nbconvert", "--execute", "--to", "markdown", "--stdout", "x.ipynb"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=160)
    assert "found True 6 [3, 4, 5]" in done.stdout, done.stderr
