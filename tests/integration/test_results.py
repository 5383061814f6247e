"""`balsam results`, `results_df` and `to_df`: what went in and what came out, one row a job, the same from every face."""

from __future__ import annotations

import csv
import io
import json
import pickle
from pathlib import Path

import pytest
from helpers import Balsam

from balsam_lite.api import EventLog, Job
from balsam_lite.core import plain_values
from balsam_lite.core.errors import InvalidSpec, UnknownField
from balsam_lite.core.process_table import Holder
from balsam_lite.db.engine import directories
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.query import results
from balsam_lite.db.store import apps, claims, insert, leases, runs, user_actions
from balsam_lite.launcher.dag import BalsamJob
from balsam_lite.pyapps import result_file

SECOND = 1_000_000


@pytest.fixture
def db(tmp_path: Path):
    """Four jobs of different data, of which two have run and one has failed."""
    found = directories.create(str(tmp_path / "db"))
    fill(found)
    yield found
    found.close()


def fill(db: Database) -> None:
    with db.write() as cx:
        apps.add_app(cx, {"name": "sim", "command_template": "echo {{ T }}"})
        lease = leases.open_lease(cx, "launcher", Holder.current(), "", 1)
    of_all = {"workflow": "scan", "application": "sim"}
    insert.add_jobs(
        db,
        [
            {**of_all, "name": "a", "parameters": {"T": "100"}, "data": {"energy": -1.5, "fit": {"slope": 2, "at": {"x": 1}}}},
            {**of_all, "name": "b", "parameters": {"T": "200"}, "data": {"energy": float("nan"), "fit": 7}, "tags": {"k": "v"}},
            {
                **of_all,
                "name": "c, d",
                "parameters": {"T": "300"},
                "data": {"energy": None, "list": [1, 2], "dotted.key": True},
            },
            {**of_all, "name": "e", "parameters": {"T": "400"}},
        ],
    )
    with db.write() as cx:
        cx.execute("UPDATE job SET state = 'RUNNING', attempt = 1, lease = ? WHERE id < 4", (lease,))
        for job in (1, 2, 3):
            cx.execute(
                "INSERT INTO run (job, attempt, lease, nodes, started) VALUES (?, 1, ?, ?, ?)", (job, lease, f"n{job}", SECOND)
            )
        ended = [
            runs.RunResult(1, 1, "RUN_DONE", 0, "", SECOND, 3 * SECOND),
            runs.RunResult(2, 1, "RUN_DONE", 0, "", SECOND, 2 * SECOND),
            runs.RunResult(3, 1, "RUN_ERROR", 3, "Exit code 3", SECOND, 2 * SECOND),
        ]
        claims.finish(cx, lease, ended, 3 * SECOND)


def rows(balsam: Balsam, *words: str) -> list[dict[str, str]]:
    code, out, err = balsam("results", *words, "--format", "csv")
    assert code == 0, err
    return list(csv.DictReader(io.StringIO(out)))


KEYS = [
    "parameters.T", "tags.k", "data.energy", "data.fit.slope", "data.fit.at.x", "data.fit", "data.list", "data.dotted.key",
]  # fmt: skip


def test_every_key_of_parameters_tags_and_data_is_a_column(balsam: Balsam, db: Database) -> None:
    found = rows(balsam)
    assert [name for name in found[0] if "." in name] == KEYS
    assert [row["parameters.T"] for row in found] == ["100", "200", "300", "400"]
    assert [row["data.energy"] for row in found] == ["-1.5", "nan", "", ""]
    assert [row["data.fit"] for row in found] == ["", "7", "", ""], "an object is its keys, a number the value"
    assert [row["data.fit.at.x"] for row in found] == ["1", "", "", ""]
    assert found[2]["data.list"] == "[1, 2]" and found[2]["data.dotted.key"] == "true"
    assert found[2]["name"] == "c, d"
    assert (found[0]["runtime_s"], found[0]["node"], found[0]["state"]) == ("2.0", "n1", "JOB_FINISHED")
    assert (found[2]["return_code"], found[2]["state"], found[2]["failure"]) == ("3", "FAILED", "exit code 3")
    assert found[3]["runtime_s"] == found[3]["started"] == ""
    assert found[0]["started"] == "1970-01-01T00:00:01.000000Z"


def test_json_keeps_the_types(balsam: Balsam, db: Database) -> None:
    found = json.loads(balsam("results", "--json")[1])
    assert found[0]["data.energy"] == -1.5 and found[1]["data.energy"] is None
    assert found[2]["data.list"] == [1, 2] and found[2]["data.dotted.key"] is True
    assert found[3]["data.fit"] is None


def test_columns_are_those_that_are_named(balsam: Balsam, db: Database) -> None:
    assert list(rows(balsam, "--columns", "name, parameters.T,data.energy,runtime,app")[0]) == [
        "name", "parameters.T", "data.energy", "runtime_s", "application",
    ]  # fmt: skip
    assert list(rows(balsam, "--columns", "data.fit,data.fit.slope,state")[0]) == [
        "data.fit.slope", "data.fit.at.x", "data.fit", "state",
    ]  # fmt: skip
    assert list(rows(balsam, "--columns", "tags,parameters")[0]) == ["tags.k", "parameters.T"]
    assert rows(balsam, "--columns", "id,data", "--id", "#4") == [{"id": "4", "data": "{}"}]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("nmae", "Did you mean 'name'?"), ("data.enrgy", "Did you mean 'data.energy'?"),
        ("date.energy", "no column 'date.energy'"), ("", "no column ''"), ("name,,state", "no column ''"),
    ],
)  # fmt: skip
def test_an_unknown_column_is_told_with_the_nearest(balsam: Balsam, db: Database, columns: str, said: str) -> None:
    code, out, err = balsam("results", "--columns", columns)
    assert (code, out) == (2, "")
    assert said in err


def test_a_key_that_no_job_has_yet_is_an_empty_column_with_a_note(balsam: Balsam, db: Database) -> None:
    code, out, err = balsam("results", "--id", "#4", "--columns", "name,data.energy", "--format", "csv")
    assert (code, out, err) == (0, "name,data.energy\ne,\n", "(No job has data.energy.)\n")


def test_conditions_order_and_limit_are_those_of_listings(balsam: Balsam, db: Database) -> None:
    assert [row["id"] for row in rows(balsam, "--where", "data__energy__lt=0")] == ["1"]
    assert [row["id"] for row in rows(balsam, "--sort", "-parameters.T", "--limit", "2")] == ["4", "3"]
    assert [row["id"] for row in rows(balsam, "--limit", "3")] == ["1", "2", "3"]
    assert [row["id"] for row in rows(balsam, "--state", "FAILED")] == ["3"]
    code, out, err = balsam("results", "--wf", "none")
    assert (code, out, err) == (0, "", "No job matches --wf none.\n")
    code, out, err = balsam("results", "--wf", "none", "--format", "csv")
    assert code == 0 and out.startswith("id,name,workflow,application,state,return_code,") and err.endswith("none.\n")
    assert balsam("results", "--wf", "none", "--json")[1] == "[]\n"


def test_pages_are_joined_whatever_their_size(balsam: Balsam, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = balsam("results", "--format", "csv")[1]
    by_name = balsam("results", "--format", "csv", "--sort", "-name")[1]
    monkeypatch.setattr(results, "PAGE", 2)
    assert balsam("results", "--format", "csv")[1] == whole
    assert balsam("results", "--format", "csv", "--sort", "-name")[1] == by_name
    assert len(rows(balsam, "--limit", "3")) == 3


def test_too_many_keys_stay_one_column_of_json(balsam: Balsam, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "MAX_KEYS", 3)
    code, out, err = balsam("results", "--format", "csv")
    found = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and "data has more than 3 keys" in err
    assert json.loads(found[2]["data"]) == {"energy": None, "list": [1, 2], "dotted.key": True}
    assert found[0]["parameters.T"] == "100"
    assert [row["data.fit.slope"] for row in rows(balsam, "--columns", "data.fit.slope")] == ["2", "", "", ""]


def test_two_sites_are_one_table_with_their_names(balsam: Balsam, db: Database, tmp_path: Path) -> None:
    other = directories.create(str(tmp_path / "other"))
    fill(other)
    other.close()
    found = rows(balsam, "--site", f"{tmp_path / 'db'},{tmp_path / 'other'}", "--columns", "site,id,data.energy")
    assert [(row["site"], row["id"]) for row in found] == [(site, str(n)) for site in ("db", "other") for n in (1, 2, 3, 4)]


def test_a_shared_db_is_not_locked_while_rows_are_read(tmp_path: Path) -> None:
    from balsam_lite.db.engine.registry import SiteEntry
    from balsam_lite.sites.local import LocalSite
    from balsam_lite.sites.results import SitePages

    db = directories.create(str(tmp_path / "shared"), access="shared")
    fill(db)
    found = results.ResultTable(SitePages([(LocalSite(SiteEntry(0, "s", db.directory), db), {})])).rows()
    next(iter(found))
    with Database(db.directory, "shared", busy_timeout_s=5).write() as cx:
        cx.execute("UPDATE job SET name = 'x'")
    assert len(list(found)) == 3
    db.close()


# --- Python -----------------------------------------------------------------------------------------------------------


def test_frames_have_the_columns_of_the_command_and_their_types(balsam: Balsam, db: Database) -> None:
    pandas = pytest.importorskip("pandas")
    names = list(rows(balsam)[0])
    for frame in (BalsamJob.objects.all().results_df(), BalsamJob.objects.results_df(), Job.objects.results_df()):
        assert list(frame.columns) == names
        assert list(frame["runtime_s"].fillna(-1)) == [2, 1, 1, -1]
        assert str(frame["started"].dtype).startswith("datetime64[") and str(frame["started"].dt.tz) == "UTC"
        assert frame["started"][0] == pandas.Timestamp("1970-01-01T00:00:01Z") and pandas.isna(frame["started"][3])
        assert (frame["return_code"].dtype, frame["id"].dtype, frame["data.energy"].dtype) == ("Int64", "int64", "float64")
        assert frame["data.dotted.key"].dtype == "boolean" and frame["data.list"][2] == [1, 2]
        assert frame["data.energy"][0] == -1.5


def test_a_number_of_more_than_64_bits_is_kept_in_a_frame(balsam: Balsam, db: Database) -> None:
    pytest.importorskip("pandas")
    user_actions.update_fields(db, [1], {"data": {"seed": 2**70, "mixed": 10**400}})
    user_actions.update_fields(db, [2], {"data": {"mixed": 0.5}})
    found = BalsamJob.objects.filter(pk__in=[1, 2]).order_by("pk").results_df("data")
    assert (found["data.seed"][0], found["data.mixed"][0], found["data.mixed"][1]) == (2**70, 10**400, 0.5)


def test_frames_follow_conditions_order_and_slices(db: Database, balsam: Balsam) -> None:
    pytest.importorskip("pandas")
    frame = BalsamJob.objects.filter(id__gt=1).order_by("-id")[:2].results_df("name", "parameters.T", "runtime")
    assert (list(frame.columns), list(frame["parameters.T"])) == (["name", "parameters.T", "runtime_s"], ["400", "300"])
    assert list(Job.objects.filter(state="JOB_FINISHED").results_df("id").id) == [1, 2]
    assert list(Job.objects.all()[1:3].results_df("id", "node").node) == ["n2", "n3"]
    assert len(BalsamJob.objects.none().results_df("name", "runtime")) == 0
    with pytest.raises(UnknownField, match=r"data\.energy"):
        BalsamJob.objects.all().results_df("data.enrgy")
    for others in (BalsamJob.objects.values("name").distinct(), EventLog.objects.all()):
        with pytest.raises(InvalidSpec, match="Only jobs"):
            others.results_df()


def test_frames_of_fields_have_run_time_memory_and_node(db: Database, balsam: Balsam) -> None:
    pytest.importorskip("pandas")
    for frame in (BalsamJob.objects.all().to_df(), Job.objects.all().to_df()):
        assert list(frame["node"]) == ["n1", "n2", "n3", ""]
        assert list(frame["runtime_s"].fillna(-1)) == [2, 1, 1, -1]
        assert {"started", "ended", "max_memory_bytes", "tags", "data"} <= set(frame.columns)
        assert frame["started"].dtype.kind == "M"
        assert frame["return_code"].dtype == "Int64"
    assert list(Job.objects.filter(id=2).to_df("runtime", "id").runtime) == [1]


# --- return values ----------------------------------------------------------------------------------------------------


def pickled(good: bool, value: object) -> bytes:
    return pickle.dumps((good, pickle.dumps(value, protocol=4), ""), protocol=4)


class Unpickled(Exception):
    """Unpickling it runs code."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


def test_what_calls_returned_is_a_column_if_it_is_plain(balsam: Balsam, db: Database) -> None:
    given = {1: pickled(True, {"loss": 0.5, "n": [1]}), 2: pickled(True, 7), 3: pickled(False, ValueError("x"))}
    with db.write() as cx:
        for job, result in given.items():
            cx.execute("INSERT INTO call (job, context, payload, result) VALUES (?, 1, x'00', ?)", (job, result))
    found = rows(balsam)
    assert [row["result"] for row in found] == ["", "7", "", ""]
    assert [row["result.loss"] for row in found] == ["0.5", "", "", ""]
    code, out, _ = balsam("sql", "SELECT json_extract(result, '$.loss') AS x FROM results WHERE id = 1", "--format", "csv")
    assert (code, out) == (0, "x\n0.5\n")
    assert list(rows(balsam, "--columns", "name,result")[0]) == ["name", "result.loss", "result.n", "result"]


@pytest.mark.parametrize(
    "value", [Unpickled(), b"bytes", "x" * 10_000, object, Path("/")], ids=lambda value: type(value).__name__
)
def test_nothing_is_run_to_show_a_return_value(balsam: Balsam, db: Database, value: object) -> None:
    with db.write() as cx:
        cx.execute("INSERT INTO call (job, context, payload, result) VALUES (1, 1, x'00', ?)", (pickled(True, value),))
    assert rows(balsam, "--columns", "id,result")[0] == {"id": "1", "result": ""}


def test_numbers_of_numpy_are_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    assert plain_values.json_of_result(pickled(True, [numpy.float64(1.5), numpy.int32(3)])) == "[1.5, 3]"


def test_what_functions_of_applications_returned_is_read_from_their_files(balsam: Balsam, db: Database) -> None:
    with db.write() as cx:
        cx.execute("UPDATE app SET definition = '{\"x\": 1}'")
        job_id, workdir = cx.execute("SELECT job_id, workdir FROM job WHERE id = 1").fetchone()
    folder = Path(db.directory, "data", workdir)
    folder.mkdir(parents=True)
    result_file.write(
        str(folder / result_file.file_name(job_id)),
        result_file.ResultHeader(job_id, 1, True),
        result_file.outcome_of(lambda: 42),
    )
    assert [row["result"] for row in rows(balsam)] == ["42", "", "", ""]
