"""Values of environment variables that look like secrets are in no listing, and whole wherever they are used."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from elsewhere import balsam
from launching import Bench

from balsam_lite.core import field_specs
from balsam_lite.core.errors import InvalidSpec
from balsam_lite.db.engine import directories
from balsam_lite.db.query import queries
from balsam_lite.sites.rpc import protocol

VALUE, OF_APP = "hunter2-tok", "hunter2-app"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.app("show", "env", environ_vars=json.dumps({"APP_SECRET": OF_APP, "PLAIN": "seen"}))
    made.add(
        [{"name": "j", "workflow": "w", "application": "show", "environ_vars": {"HF_TOKEN": VALUE, "OMP_NUM_THREADS": "4"}}]
    )
    yield made
    made.close()


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "hf_token", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "API_KEY", "KEY", "SMTP_PASSWD"]
)
def test_a_whole_word_of_the_name_makes_a_value_secret(name):
    assert field_specs.masked({name: "x"}) == {name: "***"}


@pytest.mark.parametrize("name", ["KEYBOARD", "MONKEY_ID", "TOKENIZERS_PARALLELISM", "PATH", "SECRETARY", "KEYS"])
def test_a_part_of_a_word_does_not(name):
    assert field_specs.masked({name: "x"}) == {name: "x"}


LISTINGS = [
    ("ls", "--verbose"),
    ("ls", "--json"),
    ("ls", "--id", "j", "--json"),
    ("ls", "apps", "--verbose"),
    ("ls", "apps", "--json"),
    ("ls", "--history"),
    ("ls", "--history", "--json"),
    ("job", "ls", "--verbose"),
    ("job", "ls", "--json"),
    ("job", "ls", "--history"),
    ("app", "ls", "--verbose"),
    ("app", "ls", "--json"),
    ("site", "ls", "--verbose"),
    ("site", "ls", "--json"),
    ("queue", "ls", "--json"),
    ("db", "info"),
]


@pytest.mark.parametrize("words", LISTINGS, ids=" ".join)
def test_no_listing_shows_a_secret_value(bench, words):
    code, out, err = balsam(bench.directory, *words)
    assert code == 0, err
    assert "hunter2" not in out + err


def test_a_listing_shows_the_name_of_the_variable_and_other_values(bench):
    (job,) = json.loads(balsam(bench.directory, "ls", "--json")[1])
    assert job["environ_vars"] == {"HF_TOKEN": "***", "OMP_NUM_THREADS": "4"}
    (job,) = json.loads(balsam(bench.directory, "job", "ls", "--json")[1])
    assert job["environ_vars"] == {"HF_TOKEN": "***", "OMP_NUM_THREADS": "4"}
    assert "HF_TOKEN=***:OMP_NUM_THREADS=4" in balsam(bench.directory, "ls", "--verbose")[1]
    assert "APP_SECRET" in (shown := balsam(bench.directory, "app", "ls", "--verbose")[1]) and "PLAIN: seen" in shown


def test_a_column_of_the_table_is_masked(bench):
    code, out, err = balsam(bench.directory, "ls", BALSAM_LS_FIELDS="environ_vars")
    assert code == 0, err
    assert "HF_TOKEN" in out and "hunter2" not in out and "OMP_NUM_THREADS" in out


def test_commands_do_not_repeat_what_was_typed(bench):
    typed = ("--env", f"MY_KEY={VALUE}", "--yes")
    shown = "".join(balsam(bench.directory, "job", "--name", "k", "--workflow", "w", "--app", "show", *typed)[1:])
    shown += "".join(balsam(bench.directory, "job", "create", "-a", "show", "-w", "k/k", *typed)[1:])
    shown += "".join(balsam(bench.directory, "modify", "j", "environ_vars", json.dumps({"MY_KEY": VALUE}))[1:])
    shown += "".join(
        balsam(bench.directory, "modify", "--type", "apps", "show", "environ_vars", json.dumps({"MY_KEY": VALUE}))[1:]
    )
    assert "MY_KEY" in shown and "hunter2" not in shown
    assert json.loads(bench.job(1)["environ_vars"]) == {"MY_KEY": VALUE}


def test_a_masked_value_is_never_written_back(bench):
    (job,) = json.loads(balsam(bench.directory, "ls", "--json")[1])
    as_text = ":".join(f"{name}={value}" for name, value in job["environ_vars"].items())
    for value in (json.dumps(job["environ_vars"]), as_text):
        code, _, err = balsam(bench.directory, "modify", "j", "environ_vars", value)
        assert code != 0
        assert "has no value for HF_TOKEN: *** is what listings show in its place" in err
    words = ("rerun", "--id", "j", "--set", f"environ_vars={json.dumps(job['environ_vars'])}", "--yes")
    assert balsam(bench.directory, *words)[0] != 0
    assert balsam(bench.directory, "job", "create", "-a", "show", "-w", "k/k", "--env", "A_KEY=***", "--yes")[0] != 0
    with pytest.raises(InvalidSpec):
        bench.add([{"name": "k", "application": "show", "environ_vars": {"A_KEY": "***"}}])
    assert json.loads(bench.job(1)["environ_vars"])["HF_TOKEN"] == VALUE


def test_a_refused_value_is_not_in_the_error():
    with pytest.raises(InvalidSpec) as caught:
        field_specs.checked(field_specs.JOB_FIELD["environ_vars"], {"A_TOKEN": "hunter2\0"})
    assert "hunter2" not in str(caught.value)


def test_python_gets_the_values(bench, monkeypatch):
    monkeypatch.setenv("BALSAM_DB_PATH", bench.directory)
    from balsam_lite.launcher.dag import BalsamJob

    job = BalsamJob.objects.get(name="j")
    assert job.environ_vars["HF_TOKEN"] == VALUE
    assert "hunter2" not in repr(job)
    with bench.db.read() as cx:
        assert json.loads(queries.app(cx, "show")["environ_vars"])["APP_SECRET"] == OF_APP


def test_a_remote_site_answers_python_with_the_values(bench):
    request = protocol.RpcRequest("select", {"kind": "job", "where": {}}, bench.directory, marker=protocol.new_marker())
    assert VALUE in protocol.respond(protocol.write_request(request), bench.directory)


def test_the_program_gets_the_values_and_the_log_does_not(bench):
    assert bench.run(BALSAM_LOG_HANDLER_LEVEL="DEBUG") == 0
    printed = bench.path(1, "j.out").read_text()
    assert f"HF_TOKEN={VALUE}" in printed and f"APP_SECRET={OF_APP}" in printed
    logs = "".join(path.read_text() for path in Path(bench.directory, directories.LOG).iterdir() if path.is_file())
    assert re.search("launcher", logs, re.I) and "hunter2" not in logs
