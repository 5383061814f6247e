"""Listings as files: CSV, TSV, JSON lines and Parquet that other programs read back exactly, written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from elsewhere import environment
from helpers import Balsam

from balsam_lite.cli import writers
from balsam_lite.db.engine import directories
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.store import apps, insert

ODD = [
    "plain",
    'with "quotes"',
    "comma, semicolon; tab\t",
    "two\nlines",
    "carriage\rreturn",
    "crlf\r\n",
    "üñí ☃",
    "=1+1",
    " x ",
    "007",
]


@pytest.fixture
def db(tmp_path: Path):
    """One job for each odd description."""
    found = directories.create(str(tmp_path / "db"))
    with found.write() as cx:
        apps.add_app(cx, {"name": "say", "executable": "echo"})
    insert.add_jobs(
        found,
        [
            {"name": f"j{n}", "workflow": "w", "application": "say", "description": text, "data": {"n": n}, "num_nodes": n + 1}
            for n, text in enumerate(ODD)
        ],
    )
    yield found
    found.close()


WORDS = ("job", "ls", "--columns", "id,description,data,return_code,num_nodes")


def read_separated(text: str, delimiter: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))


@pytest.mark.parametrize(("form", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_separated_text_is_read_back_exactly(balsam: Balsam, db: Database, tmp_path: Path, form: str, delimiter: str) -> None:
    code, _, err = balsam(*WORDS, "-o", f"out.{form}")
    assert (code, err) == (0, f"Wrote {len(ODD)} rows to out.{form}\n")
    text = (tmp_path / f"out.{form}").read_bytes().decode("utf-8")
    rows = read_separated(text, delimiter)
    assert [row["description"] for row in rows] == ODD
    assert [json.loads(row["data"]) for row in rows] == [{"n": n} for n in range(len(ODD))]
    assert {row["return_code"] for row in rows} == {""}, "what is not known is an empty field"
    assert text.splitlines()[0] == delimiter.join(WORDS[-1].split(","))
    assert "\r\n" not in text.replace("crlf\r\n", "")
    assert balsam(*WORDS, "--format", form)[1] == text, "to stdout as to a file"


def test_pandas_reads_the_csv_with_its_types(balsam: Balsam, db: Database) -> None:
    import pandas

    balsam(*WORDS, "-o", "out.csv")
    frame = pandas.read_csv("out.csv", lineterminator="\n", dtype={"description": str})
    assert list(frame["description"]) == ODD
    assert frame["num_nodes"].sum() == sum(range(1, len(ODD) + 1))


def test_json_lines_have_an_object_a_line(balsam: Balsam, db: Database) -> None:
    lines = balsam("job", "ls", "--format", "jsonl", "--columns", "id,description,return_code,created")[1].splitlines()
    found = list(map(json.loads, lines))
    assert [one["description"] for one in found] == ODD
    assert found[0]["return_code"] is None and found[0]["created"].endswith("Z")


def test_parquet_has_the_types_of_the_values(balsam: Balsam, db: Database) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert balsam("job", "ls", "--columns", "id,description,data,return_code,created,stale", "-o", "out.parquet")[0] == 0
    table = parquet.read_table("out.parquet")
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds == {
        "id": "int64", "description": "string", "data": "string", "return_code": "string",
        "created": "timestamp[us, tz=UTC]", "stale": "bool",
    }  # fmt: skip
    assert table.column("description").to_pylist() == ODD
    assert table.column("return_code").to_pylist() == [None] * len(ODD)


def test_parquet_of_mixed_values_is_text_and_of_numbers_a_number(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [[1, 1, True, None], [2.5, "a", False, None], [None, [1, 2], None, {"k": None}]]
    path = str(tmp_path / "mixed.parquet")
    assert writers.write_file("parquet", ["number", "mixed", "flag", "object"], rows, path) == 3
    assert parquet.read_table(path).to_pydict() == {
        "number": [1.0, 2.5, None], "mixed": ["1", "a", "[1, 2]"], "flag": [True, False, None],
        "object": [None, None, '{"k": null}'],
    }  # fmt: skip


def test_half_a_surrogate_pair_is_an_escape_in_every_file(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for form in ("csv", "jsonl", "parquet"):
        assert writers.write_file(form, ["a"], [["x\ud800"], [None], ["ü"]], str(tmp_path / form)) == 3
    assert (tmp_path / "csv").read_text().splitlines() == ["a", "x\\ud800", '""', "ü"]
    assert json.loads((tmp_path / "jsonl").read_text().splitlines()[0]) == {"a": "x\ud800"}
    assert parquet.read_table(tmp_path / "parquet").column("a").to_pylist() == ["x\\ud800", None, "ü"]


def test_parquet_without_pyarrow_names_the_package(
    balsam: Balsam, db: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, out, err = balsam("job", "ls", "-o", "out.parquet")
    assert (code, out) == (1, "")
    assert "pip install 'balsam_lite[parquet]'" in err
    assert not (tmp_path / "out.parquet").exists()


def test_a_column_with_a_number_that_parquet_cannot_hold_is_text(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = str(tmp_path / "big.parquet")
    rows = [[2**70, -(2**63), 2**53 + 1, 7], [1, None, 0.5, None]]
    assert writers.write_file("parquet", ["seed", "least", "mixed", "small"], rows, path) == 2
    assert parquet.read_table(path).to_pydict() == {
        "seed": [str(2**70), "1"], "least": [str(-(2**63)), None], "mixed": [str(2**53 + 1), "0.5"], "small": [7, None],
    }  # fmt: skip


def test_an_interrupted_file_leaves_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("former\n")

    def rows():
        yield from ([n] for n in range(5000))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writers.write_file("csv", ["n"], rows(), str(path))
    assert (path.read_text(), os.listdir(tmp_path)) == ("former\n", ["out.csv"])


def test_a_file_of_nothing_has_its_header(balsam: Balsam, db: Database, tmp_path: Path) -> None:
    assert balsam(*WORDS, "--state", "FAILED", "-o", "out.csv")[0] == 0
    assert (tmp_path / "out.csv").read_text() == "id,description,data,return_code,num_nodes\n"


def test_a_link_stays_and_a_device_is_written_directly(balsam: Balsam, db: Database, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "out.csv").symlink_to("there/real.csv")
    assert balsam("app", "ls", "-o", "out.csv")[0] == 0
    assert (tmp_path / "out.csv").is_symlink() and (tmp_path / "there" / "real.csv").read_text().startswith("id,")
    assert balsam("app", "ls", "--format", "csv", "-o", "/dev/null")[0] == 0
    assert balsam("app", "ls", "--format", "csv", "-o", "-")[1] == (tmp_path / "there" / "real.csv").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "out.csvv"], "suffix of 'out.csvv'"), (["-o", "none/out.csv"], "there is no directory none"),
        (["-o", "."], "suffix"), (["-o", ""], "--output must not be empty"), (["--format", "parket"], "'parquet'"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_written_is_told_before(balsam: Balsam, db: Database, words: list[str], said: str) -> None:
    code, out, err = balsam("job", "ls", *words)
    assert code != 0 and out == ""
    assert said in err


def test_secrets_are_masked_in_every_format(balsam: Balsam, tmp_path: Path, db: Database) -> None:
    insert.add_jobs(db, [{"name": "s", "workflow": "w", "application": "say", "environ_vars": {"API_TOKEN": "hush"}}])
    for form in ("csv", "tsv", "jsonl", "json", "yaml", "plain"):
        out = balsam("job", "ls", "--name", "s", "--columns", "name,environ_vars", "--format", form)[1]
        assert "API_TOKEN" in out and "hush" not in out


def test_a_pipe_gets_parquet_and_a_full_disk_is_an_error(db: Database) -> None:
    pytest.importorskip("pyarrow")
    argv = [sys.executable, "-m", "balsam_lite.cli", "job", "ls", "--format"]
    environ = {**environment(), "BALSAM_DB_PATH": db.directory}
    found = subprocess.run([*argv, "parquet"], capture_output=True, env=environ, check=True, timeout=60)
    assert found.stdout[:4] == found.stdout[-4:] == b"PAR1"
    full = subprocess.run([*argv, "csv", "-o", "/dev/full"], capture_output=True, env=environ, check=False, timeout=60)
    assert full.returncode == 1 and b"/dev/full cannot be written: the disk" in full.stderr
