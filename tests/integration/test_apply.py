"""`balsam apply`: a campaign file adds what the DB has not, all or nothing, and its errors name their lines."""

from __future__ import annotations

import json
import threading
import time

import pytest

from balsam_lite.campaigns import apply as campaigns
from balsam_lite.campaigns import yaml_document
from balsam_lite.core.errors import InvalidSpec
from balsam_lite.db.engine import directories
from balsam_lite.db.store import large_writes, pieces

CAMPAIGN = """\
version: 1
campaign: heat
applications:
  sim:
    command_template: "echo {{ T }} {{ P }}"
    environ_vars: {OMP_NUM_THREADS: 4}
  gather: {executable: "awk '{print $1}'"}
defaults:
  tags: {study: alloy}
groups:
  sum:
    application: gather
    parents: {analyse: all}
  analyse:
    application: gather
    sweep: {T: "100:140:20"}
    args: "{T} {print}"
    parents: {relax: same}
  relax:
    application: sim
    sweep: {T: "100:140:20", P: [1, 2.50]}
    tags: {t: "{T}"}
"""


@pytest.fixture
def apply(balsam, tmp_path):
    """Write a campaign file and apply it."""

    def call(text, *words):
        (tmp_path / "c.yaml").write_text(text)
        return balsam("apply", str(tmp_path / "c.yaml"), *words)

    return call


def rows(tmp_path, sql):
    db = directories.open_database(str(tmp_path / "db"))
    try:
        with db.read() as cx:
            return [tuple(row) for row in cx.execute(sql)]
    finally:
        db.close()


def test_a_campaign_adds_its_applications_jobs_and_dependencies(apply, tmp_path):
    code, out, err = apply(CAMPAIGN)
    assert (code, err) == (0, "")
    assert "Added 10 jobs, 2 applications, 9 dependencies (heat)" in out
    assert [name for (name,) in rows(tmp_path, "SELECT name FROM app ORDER BY name")] == ["gather", "sim"]
    found = rows(tmp_path, "SELECT unique_key, name, workflow, args, tags, parameters, origin FROM job WHERE id IN (2, 7, 10)")
    assert found == [
        ("heat/relax/T=100,P=2.50", "relax-T100-P2.50", "heat", "", '{"study": "alloy", "t": "100"}', '{"T": 100, "P": "2.50"}',
         "campaign heat"),
        ("heat/analyse/T=100", "analyse-T100", "heat", "100 {print}", '{"study": "alloy"}', '{"T": 100}', "campaign heat"),
        ("heat/sum", "sum", "heat", "", '{"study": "alloy"}', "{}", "campaign heat"),
    ]  # fmt: skip
    edges = rows(tmp_path, "SELECT child, group_concat(parent) FROM (SELECT * FROM dependency ORDER BY parent) GROUP BY child")
    assert edges == [(7, "1,2"), (8, "3,4"), (9, "5,6"), (10, "7,8,9")]


def test_applying_again_adds_only_what_is_new_and_new_parents_of_jobs_that_have_not_started(apply, tmp_path):
    apply(CAMPAIGN)
    assert "Added 0 jobs, 0 applications, 0 dependencies (heat)" in apply(CAMPAIGN)[1]
    code, out, _ = apply(CAMPAIGN.replace("100:140:20", "100:160:20"))
    assert code == 0
    assert "Added 3 jobs, 0 applications, 3 dependencies (heat)" in out
    last = rows(tmp_path, "SELECT parent FROM dependency WHERE child = 10 ORDER BY parent")
    assert last == [(7,), (8,), (9,), (13,)]
    assert rows(tmp_path, "SELECT unfinished_parents FROM job WHERE id = 10") == [(4,)]


def test_a_job_that_has_ended_gets_no_new_parents_and_that_is_said(apply, balsam, tmp_path):
    apply(CAMPAIGN)
    balsam("modify", "#10", "state", "JOB_FINISHED")
    code, _, err = apply(CAMPAIGN.replace("100:140:20", "100:160:20"))
    assert code == 0
    assert "1 job of sum started before, and will not wait for new parents" in err
    assert rows(tmp_path, "SELECT count(*) FROM dependency WHERE child = 10") == [(3,)]


def test_a_dry_run_shows_the_difference_and_changes_nothing(apply, tmp_path):
    apply(CAMPAIGN)
    before = rows(tmp_path, "SELECT * FROM job, app")
    changed = CAMPAIGN.replace("P: [1, 2.50]", "P: [1, 3]").replace("sum:", "total:").replace("OMP_NUM_THREADS: 4", "KEY: x")
    code, out, err = apply(changed, "--dry-run")
    assert code == 0
    assert "application sim                  differs; --update-apps changes it" in out
    assert '{"KEY": "***"}' in out
    assert "relax                 6    3         3           3" in out
    assert "sum (not in file)     0    0         0           1" in out
    assert "Would add 4 jobs, 0 applications, 6 dependencies (heat)" in out
    assert "Nothing was changed." in err
    assert rows(tmp_path, "SELECT * FROM job, app") == before


def test_jobs_that_differ_from_the_file_are_told_and_stay(apply, tmp_path):
    apply(CAMPAIGN)
    _, out, err = apply(CAMPAIGN.replace('"{T} {print}"', '"-t {T}"').replace("study: alloy", "study: steel"))
    assert "Added 0 jobs" in out
    assert "existing jobs of analyse differ from the file, and stay as they are: args (3)" in err
    assert rows(tmp_path, "SELECT DISTINCT args FROM job WHERE name LIKE 'analyse%' AND args LIKE '-t%'") == []


def test_an_application_that_differs_is_changed_only_if_asked(apply, tmp_path):
    apply(CAMPAIGN)
    changed = CAMPAIGN.replace("print $1", "print $2").replace("[1, 2.50]", "[1, 2.50, 4]")
    code, _, err = apply(changed)
    assert code == 2
    assert "applications of the DB differ from the file: gather (executable)" in err
    assert len(rows(tmp_path, "SELECT id FROM job")) == 10
    code, out, _ = apply(changed, "--update-apps")
    assert code == 0
    assert "in the file:  awk '{print $2}'" in out
    assert rows(tmp_path, "SELECT executable FROM app WHERE name = 'gather'") == [("awk '{print $2}'",)]
    assert len(rows(tmp_path, "SELECT id FROM job")) == 13


def test_a_removed_job_is_added_again(apply, balsam, tmp_path):
    apply(CAMPAIGN)
    balsam("rm", "jobs", "--name", "sum", "--force")
    assert "Added 1 job, 0 applications, 3 dependencies" in apply(CAMPAIGN)[1]


def test_stdin_is_a_campaign_file_and_json_is_printed(balsam, tmp_path, monkeypatch):
    import io

    text = "version: 1\ncampaign: x\napplications: {t: {executable: 'true'}}\ngroups: {a: {application: t, array: 1-3}}\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    code, out, _ = balsam("apply", "-", "--json")
    assert code == 0
    (found,) = json.loads(out)
    assert found["new_jobs"] == 3
    assert found["groups"] == [
        {"name": "a", "jobs": 3, "new": 3, "existing": 0, "only_in_db": 0, "differing": {}, "late": 0}
    ]  # fmt: skip
    assert [name for (name,) in rows(tmp_path, "SELECT name FROM job")] == ["a-1", "a-2", "a-3"]


def test_relative_paths_are_below_the_directory_of_the_file(balsam, tmp_path):
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "values").write_text("a\n\nb c\n")
    (folder / "c.yaml").write_text(
        "version: 1\ncampaign: x\napplications: {r: {executable: run.sh, envscript: env.sh}}\n"
        "groups: {g: {application: r, user_workdir: work, stage_in_url: in, sweep: {v: '@values'}}}\n"
    )
    assert balsam("apply", "there/c.yaml")[0] == 0
    assert rows(tmp_path, "SELECT executable, envscript FROM app") == [(f"{folder}/run.sh", f"{folder}/env.sh")]
    assert rows(tmp_path, "SELECT DISTINCT user_workdir, stage_in_url FROM job") == [(f"{folder}/work", f"{folder}/in")]
    assert rows(tmp_path, "SELECT unique_key FROM job") == [("x/g/v=a",), ("x/g/v=b c",)]


def test_lists_of_jobs_have_the_fields_of_jobs(apply, tmp_path):
    text = """\
version: 1
campaign: x
applications: {t: {executable: 'true'}}
groups:
  a:
    application: t
    args: "--in {name}"
    jobs:
      - name: one
        environ_vars: {A: no, B: 010, C: 1e3}
        data: {no: no, x: 010, y: 1e3, z: 2024-01-01, t: true, n: null}
      - {name: two, args: other, num_nodes: 2}
  b:
    application: t
    parents: {a: same}
    jobs: [{name: two}]
"""
    assert apply(text)[0] == 0
    found = rows(tmp_path, "SELECT name, args, num_nodes, environ_vars, data FROM job ORDER BY id LIMIT 2")
    assert found == [
        ("one", "--in one", 1, '{"A": "no", "B": "010", "C": "1e3"}',
         '{"no": "no", "x": "010", "y": 1000.0, "z": "2024-01-01", "t": true, "n": null}'),
        ("two", "other", 2, "{}", "{}"),
    ]  # fmt: skip
    assert rows(tmp_path, "SELECT parent, child FROM dependency") == [(2, 3)]


TABLES = """\
version: 1
campaign: tab
applications:
  sim: {command_template: "echo {{ T }} {{ P }}", parameters: {P: {required: false, default: "9"}}}
  after: {executable: echo}
groups:
  rows: {application: sim, from_file: t.csv, tags: {all: yes}, description: "at {T} and {kind}"}
  after: {application: after, sweep: {T: [100, 200]}, parents: {rows: same}}
  lines: {application: sim, from_file: t.txt, input_format: jsonl}
  cmds: {commands: cmds, parents: rows}
  more: {commands: [echo a, "echo 'b c'"], num_nodes: 2}
"""
TABLE = 'T,P,tags.kind,num_nodes\n100,1,a,2\n200,1,"b,c",\n200,2,,3\n'


@pytest.fixture
def tables(tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    (tmp_path / "t.txt").write_text(
        '{"name": "x", "parameters": {"T": 5}, "num_nodes": 2}\n\n{"name": "y", "parameters": {"T": 6}}\n'
    )
    (tmp_path / "cmds").write_text("# two\necho it's 1\n\necho 2 | wc\n")


@pytest.mark.usefixtures("tables")
def test_jobs_come_from_tables_json_lines_and_command_lines(apply, tmp_path):
    code, out, err = apply(TABLES)
    assert (code, err) == (0, "")
    assert "Added 11 jobs, 3 applications, 9 dependencies (tab)" in out
    found = rows(tmp_path, "SELECT name, unique_key, args, tags, parameters, num_nodes, description, application FROM job")
    assert found[:3] == [
        ("rows-1", "tab/rows/T=100,P=1,tags.kind=a,num_nodes=2", "", '{"all": "yes", "kind": "a"}', '{"T": 100, "P": 1}', 2,
         "at 100 and a", "sim"),
        ("rows-2", "tab/rows/T=200,P=1,tags.kind=b,c", "", '{"all": "yes", "kind": "b,c"}', '{"T": 200, "P": 1}', 1,
         "at 200 and b,c", "sim"),
        ("rows-3", "tab/rows/T=200,P=2,num_nodes=3", "", '{"all": "yes"}', '{"T": 200, "P": 2}', 3, "at 200 and ", "sim"),
    ]  # fmt: skip
    assert [row[:2] for row in found[5:8]] == [("x", "tab/lines/x"), ("y", "tab/lines/y"), ("cmds-1", "tab/cmds/echo it's 1")]
    assert found[10] == ("more-2", "tab/more/echo 'b c'", "'echo '\"'\"'b c'\"'\"''", "{}", "{}", 2, "", "commands")
    assert rows(tmp_path, "SELECT child, parent FROM dependency WHERE child < 6 ORDER BY 1, 2") == [(4, 1), (5, 2), (5, 3)]
    assert "Added 0 jobs, 0 applications, 0 dependencies" in apply(TABLES)[1]
    lines = TABLE.splitlines()
    (tmp_path / "t.csv").write_text("\n".join([f"{lines[0]},priority", *(f"{line}," for line in lines[1:])]))
    assert "Added 0 jobs, 0 applications, 0 dependencies" in apply(TABLES)[1]  # a column that these rows leave empty


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(
    ("table", "said"),
    [
        (f"{TABLE}200,3,b,x\n", "line 7: group rows, {}/t.csv, line 5: job num_nodes must be a whole number, not 'x'"),
        ("T,Q\n1,2\n", "line 7: group rows: {}/t.csv, line 1, column 2: there is no field or parameter 'Q'."),
        ("T,P\n100,1\n200,2,3\n", "line 7: group rows: {}/t.csv, line 3, column 3: there are 3 of 2 columns"),
        ("T,P\n100,1\n200,1\n100,1\n", "line 7: group rows, {}/t.csv, line 4: the job is the same as job 1 of the group"),
        ("", ": {}/t.csv is empty: its first line must name the columns."),
        ("T,parents\n100,x\n", "there is a column parents; in a campaign file groups wait for groups"),
        (None, ": There is no file {}/t.csv."),
    ],
)
def test_errors_in_tables_have_the_line_of_the_table_and_nothing_is_added(apply, tmp_path, table, said):
    if table is None:
        (tmp_path / "t.csv").unlink()
    else:
        (tmp_path / "t.csv").write_text(table)
    code, _, err = apply(TABLES)
    assert code in (2, 3)
    assert said.format(tmp_path) in err
    assert rows(tmp_path, "SELECT (SELECT count(*) FROM app) + (SELECT count(*) FROM job)") == [(0,)]


def test_zip_random_and_the_name_of_a_group_without_sweep(apply, tmp_path):
    text = """\
version: 1
campaign: x
workflow: other
applications: {t: {executable: 'true'}}
groups:
  zipped: {application: t, sweep: {a: [1, 2], b: [3, 4]}, zip: true}
  drawn: {application: t, sweep: {a: "1:1000", b: "1:1000000"}, random: 3, seed: 7}
  one: {application: t}
"""
    assert apply(text)[0] == 0
    names = [name for (name,) in rows(tmp_path, "SELECT name FROM job WHERE workflow = 'other' ORDER BY id")]
    assert names[:2] == ["zipped-a1-b3", "zipped-a2-b4"]
    assert len(names) == 6
    assert names[5] == "one"
    assert "Added 0 jobs" in apply(text)[1]


# --- errors -----------------------------------------------------------------------------------------------------------

BAD = """\
version: 2
campaign: "al loy"
aplications: {}
applications:
  sim: {executable: sim.sh, preproces: x}
  both: {executable: a, command_template: b}
  sim: {executable: x}
groups:
  prep:
    application: simm
    num_nodes: 1e3
    ranks_per_node: 010
    gpus_per_rank: .nan
    args: {T}
    environ_vars: [a]
    zip: true
  list:
    parents: [prepp, list]
    application: sim
    sweep: {x: [1, 1], y: "1:2:0"}
    jobs: []
  sweep:
    application: sim
    sweep: {x: [1, 1], y: "1:2:0"}
    args: "{X}"
  d:
    application: sim
    jobs:
      - {name: one, num_nodes: 0}
      - {name: one}
      - two
"""
EXPECTED = [
    (1, 10, "unknown version 2 (this balsam_lite reads version 1)"),
    (2, 11, "the name of a campaign has letters, digits and _ . + - only, not 'al loy'"),
    (3, 1, "a campaign file has no 'aplications'. Did you mean 'applications'?"),
    (5, 29, "application sim has no 'preproces'. Did you mean 'preprocess'?"),
    (6, 9, "The App both cannot have both a command_template and an executable."),
    (7, 3, "the key 'sim' is repeated; it is in line 5 already"),
    (10, 18, "there is no application 'simm' in the file or the DB. Did you mean 'sim'?"),
    (11, 16, "job num_nodes must be a whole number, not '1e3'"),
    (12, 21, "ranks_per_node 010 could be an octal number; write it without the leading zero"),
    (13, 20, "job gpus_per_rank must be a number, not '.nan'"),
    (14, 11, "args must be a text, not a mapping; a text with braces needs quotes"),
    (15, 19, "environ_vars must be a mapping (KEY: VALUE lines), not a list"),
    (16, 5, "zip goes with sweep, which group prep has not"),
    (18, 15, "there is no group 'prepp'. Did you mean 'prep'?"),
    (18, 22, "groups wait for each other: list -> list"),
    (21, 5, "group list has sweep and jobs; its jobs come from one"),
    (24, 12, "The sweep of x has 1 twice"),
    (24, 27, "The sweep of y: The range 1:2:0 has the step 0"),
    (25, 11, "args has {X}, and the variable is {x}"),
    (29, 32, "job num_nodes must be 1 or more, not 0"),
    (30, 9, "job 2 of group d is the same as job 1 (line 29); give one another name or unique_key"),
    (31, 9, "job 3 of group d must be a mapping (KEY: VALUE lines), not a text: 'two'"),
]


def test_all_errors_are_listed_with_line_and_column(apply, tmp_path, monkeypatch):
    monkeypatch.setattr(yaml_document, "MAX_NAMED", 100)
    code, out, err = apply(BAD)
    assert (code, out) == (2, "")
    first, *lines = err.splitlines()
    assert first.endswith(f"c.yaml has {len(EXPECTED)} errors; nothing was changed.")
    assert lines == [f"  line {line}, column {column}: {text}" for line, column, text in EXPECTED]
    assert rows(tmp_path, "SELECT count(*) FROM app") == [(0,)]


def test_of_many_errors_the_first_are_listed(apply):
    _, _, err = apply(BAD)
    assert err.splitlines()[-1] == f"  … and {len(EXPECTED) - 20} more"


REPEATED = """\
version: 1
campaign: c
applications: {t: {executable: 'true'}}
groups:
  g: {application: t, SOURCE}
"""


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("commands: [ls, pwd, ls]", "group g, command 3: the job is the same as job 1 of the group"),
        ("from_file: t.csv", "t.csv, line 4: the job is the same as job 1 of the group"),
        ("sweep: {T: '1,2,1'}", "The sweep of T has 1 twice"),
        ("sweep: {T: '1:3,2:4'}", "The sweep of T has 2 twice"),
        ("array: '1-3,3'", "The sweep of i has 3 twice"),
        ("sweep: {T: [1, 2, 1], P: [1, 2, 1]}, zip: true", "The sweep has T=1, P=1 twice"),
    ],
)
def test_jobs_of_a_group_are_not_the_same(apply, tmp_path, source, said, words):
    (tmp_path / "t.csv").write_text("name,args\na,1\nb,1\na,2\n")
    text = REPEATED.replace("SOURCE", source).replace("application: t, commands", "commands")
    code, _, err = apply(text, *words)
    assert code == 2
    assert said in err
    assert rows(tmp_path, "SELECT count(*) FROM job") == [(0,)]


def test_a_variable_of_a_zip_may_have_a_value_again(apply):
    assert "Added 3 jobs" in apply(REPEATED.replace("SOURCE", "sweep: {T: [1, 1, 2], P: [1, 2, 1]}, zip: true"))[1]


def test_a_tag_that_is_a_list_is_one_error(apply):
    _, _, err = apply(REPEATED.replace("SOURCE", "tags: {a: [1]}"))
    assert "has an error" in err
    assert "tags a must be a text, not a list" in err


BEGIN = "version: 1\ncampaign: x\napplications: {t: {executable: 'true'}, p: {command_template: 'echo {{ a }}'}}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "c.yaml is empty."),
        ("# nothing\n---\n", "c.yaml is empty."),
        ("- 1\n", "a campaign file must be a mapping (KEY: VALUE lines), not a list"),
        ("version: 1\ncampaign: x\n", "there are neither groups nor applications"),
        ("campaign: x\ngroups: {}\n", "`version: 1` is missing"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1: a second document begins"),
        ("a:\n\tb: 1\n", "The line begins with a tab; YAML is indented by spaces."),
        ("args: --t {T}: 5\n", "A text with braces, or with a colon and a space, must be in quotes."),
        ("a: !!python/object/apply:os.system [true]\n", "the tag tag:yaml.org,2002:python/object/apply:os.system is not read"),
        ("a: &a [*a]\n", "the alias *a cannot be used: it would contain itself"),
        ("a: *a\n", "the alias *a cannot be used: there is no anchor of that name before it"),
        ("a: " + "[" * 51, "nested more than 50 deep"),
        ("a: " + "[" * 100_000, "nest"),
        ("a: \0", "is no YAML"),
        (BEGIN + "groups: {a: {application: t, sweep: {i: '1:1000000000'}}}\n", "The sweep has 1000000000 combinations"),
        (BEGIN + "groups: {a: {application: p}}\n", "line 4: group a: Missing required parameters: {'a'}"),
        (
            BEGIN + "groups: {a: {application: t, num_nodes: '{n}', sweep: {n: [1, 2, two]}}}\n",
            "line 4: group a, n=two: job num_nodes must be a whole number, not 'two'",
        ),
        (
            BEGIN + "groups:\n  a: {application: t, sweep: {n: [1, 2]}}\n  b: {application: t, sweep: {n: [1, 2, 3]}, "
            "parents: {a: same}}\n",
            "line 6: group b, n=3: There is no job of group a with n=3 to wait for (see `parents` in line 6).",
        ),
        (
            BEGIN + "groups:\n  a: {application: t}\n  b: {application: t, parents: {a: same}}\n",
            "b has no variable of a (which has none), so no job has the same values; write a: all",
        ),
        (BEGIN + "groups: {a: {application: t, unique_key: k}}\n", "unique_key is for the jobs of a list or table"),
        (BEGIN + "groups: {a: {application: t, jobs: [{name: x, application: tt}]}}\n", "group a, job 1 (line 4): There is no"),
        (BEGIN + "groups: {a: {application: t, parents: {b: some}}}\n", "parents b must be all or same, not 'some'"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_and_nothing_is_added(apply, tmp_path, text, said):
    code, out, err = apply(text)
    assert code in (2, 3)
    assert out == ""
    assert said in err
    assert rows(tmp_path, "SELECT (SELECT count(*) FROM app) + (SELECT count(*) FROM job)") == [(0,)]


def test_a_file_that_is_no_utf_8_or_cannot_be_read_is_refused(balsam, tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"version: 1\ncampaign: \xff\n")
    assert "c.yaml is not valid UTF-8: line 2 has the byte 0xff" in balsam("apply", "c.yaml")[2]
    code, _, err = balsam("apply", "none.yaml")
    assert code == 2
    assert "none.yaml cannot be read: No such file or directory" in err


def test_aliases_that_make_a_document_too_large_are_refused_at_once(apply):
    lines = [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in zip("abcdefghi", "bcdefghij")]
    started = time.monotonic()
    code, _, err = apply("a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n" + "\n".join(lines))
    assert code == 2
    assert "aliases make this document too large: more than 100000 nodes are copies" in err
    assert time.monotonic() - started < 5


def test_anchors_and_merge_keys_are_read(apply, tmp_path):
    text = BEGIN + "groups:\n  a: &a {application: t, num_nodes: 2, args: x}\n  b: {<<: *a, args: y}\n"
    assert apply(text)[0] == 0
    assert rows(tmp_path, "SELECT name, num_nodes, args FROM job") == [("a", 2, "x"), ("b", 2, "y")]


# --- all or nothing ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Lower the thresholds of large writes, so that 10 jobs are many."""
    for module, name, value in (
        (large_writes, "MAX_DIRECT_JOBS", 5),
        (pieces, "PAUSE_S", 0),
        (pieces, "INSERT_UNIT", 2),
        (pieces, "INSERT_PIECE_S", 0),
    ):
        monkeypatch.setattr(module, name, value)


def test_many_jobs_are_seen_with_their_applications_or_not_at_all(apply, tmp_path, small, monkeypatch):
    seen = []

    def look(point):
        if point == "after-piece":
            seen.append(rows(tmp_path, "SELECT (SELECT count(*) FROM app), (SELECT count(*) FROM large_write)"))

    monkeypatch.setattr(pieces, "failpoint", look)
    assert apply(CAMPAIGN)[0] == 0
    assert len(seen) > 5
    assert set(map(tuple, seen[:-1])) == {((0, 1),)}
    assert rows(tmp_path, "SELECT count(*) FROM app") == [(2,)]


def test_what_fails_in_the_middle_leaves_nothing(apply, tmp_path, small, monkeypatch):
    calls = []

    def fail(point):
        calls.append(point)
        if len(calls) == 5:
            raise InvalidSpec("stopped")

    monkeypatch.setattr(pieces, "failpoint", fail)
    assert apply(CAMPAIGN)[0] == 2
    monkeypatch.undo()
    assert rows(tmp_path, "SELECT (SELECT count(*) FROM job) + (SELECT count(*) FROM app)") == [(0,)]


def test_two_processes_that_apply_one_file_add_each_job_once(balsam, tmp_path):
    (tmp_path / "c.yaml").write_text(CAMPAIGN.replace("applications:", "x: &x").replace("x: &x", "applications:"))
    (tmp_path / "apps.yaml").write_text(CAMPAIGN.partition("defaults:")[0])
    balsam("apply", "apps.yaml")
    results = []

    def run():
        db = directories.open_database(str(tmp_path / "db"))
        try:
            results.append(campaigns.apply_campaign(str(tmp_path / "c.yaml"), db).new_jobs)
        finally:
            db.close()

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [0, 0, 10]
    assert rows(tmp_path, "SELECT count(*), count(DISTINCT unique_key) FROM job") == [(10, 10)]
