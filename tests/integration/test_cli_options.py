"""How the words of a command line are understood: abbreviations, several words, wrong options, errors and exit codes."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import click
import pytest
from helpers import ROOT, Balsam

from balsam_lite import __version__
from balsam_lite.cli import group, run
from balsam_lite.core import errors, settings


def stored_args(balsam: Balsam, *words: str) -> str:
    assert balsam("app", "--name", "say", "--executable", "echo")[0] in (0, 2)
    assert balsam("job", "--name", "j", "--workflow", "w", "--application", "say", *words, "--yes")[0] == 0
    found: str = json.loads(balsam("ls", "--json", "--sort", "-id", "--limit", "1")[1])[0]["args"]
    return found


# --- several words behind one option ----------------------------------------------------------------------------------


def test_one_word_of_args_is_stored_as_it_was_typed(balsam: Balsam) -> None:
    assert stored_args(balsam, "--args", "a b  'c d'") == "a b  'c d'"


def test_several_words_of_args_split_into_the_same_words_again(balsam: Balsam) -> None:
    import shlex

    words = ["a", "b c", "it's", "*", "", 'say "hi"', "back\\slash"]
    assert shlex.split(stored_args(balsam, "--args", *words)) == words


def test_words_which_need_no_quotes_get_none(balsam: Balsam) -> None:
    assert stored_args(balsam, "--args", "*.xyz", "a;b", "$HOME") == "*.xyz a;b $HOME"


@pytest.mark.parametrize(
    ("words", "stored"),
    [
        (["--args=-x"], "-x"),
        (["--args", "--flag 3"], "--flag 3"),
        (["--args", "-5", "1"], "-5 1"),
        (["--args"], ""),
        (["--args", "--flag=3", "x"], "--flag=3 x"),
    ],
)
def test_values_with_a_dash_are_taken_where_argparse_took_them(balsam: Balsam, words: list[str], stored: str) -> None:
    assert stored_args(balsam, *words) == stored


def test_an_option_ends_the_words_of_the_one_before(balsam: Balsam) -> None:
    assert stored_args(balsam, "--args", "a", "b", "--priority", "3") == "a b"


def test_a_description_needs_no_quotes(balsam: Balsam) -> None:
    balsam("app", "--name", "say", "--description", "prints", "what it's", "given", "--executable", "echo")
    assert json.loads(balsam("ls", "apps", "--json")[1])[0]["description"] == "prints what it's given"


def test_of_a_repeated_option_the_last_one_counts(balsam: Balsam) -> None:
    assert stored_args(balsam, "--args", "first", "--args", "second") == "second"


# --- abbreviations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["--history", "--hist", "--hi", "-hist", "-history"])
def test_history_may_be_abbreviated_and_have_one_dash(balsam: Balsam, spelling: str) -> None:
    stored_args(balsam)
    code, out, _ = balsam("ls", spelling)
    assert code == 0
    assert out.startswith("Job j [")


@pytest.mark.parametrize("spelling", ["--by", "-by-states", "--by-states"])
def test_by_states_may_be_abbreviated_and_have_one_dash(balsam: Balsam, spelling: str) -> None:
    stored_args(balsam)
    assert balsam("ls", spelling)[1].startswith("CREATED (1 BalsamJobs)\n")


def test_an_option_with_a_value_may_have_one_dash(balsam: Balsam) -> None:
    stored_args(balsam)
    assert balsam("ls", "-state", "FAILED") == (0, "", "No jobs found matching query\n")


def test_an_exact_name_wins_over_longer_ones(balsam: Balsam) -> None:
    # --wf is the beginning of no other option, --id is none either; --env begins nothing; --name is whole.
    assert balsam("ls", "--wf", "x", "--name=y")[0] == 0


def test_an_ambiguous_abbreviation_lists_what_it_could_be(balsam: Balsam) -> None:
    code, out, err = balsam("ls", "--s", "FAILED")
    assert (code, out) == (2, "")
    assert "--s is ambiguous" in err
    assert "--sort, --state" in err


def test_two_spellings_of_one_option_are_not_ambiguous(balsam: Balsam) -> None:
    stored_args(balsam)
    assert balsam("job", "--name", "k", "--workfl", "w", "--app", "say", "--post", "--yes")[0] == 2  # error or timeout
    assert balsam("job", "--name", "k", "--workfl", "w", "--app", "say", "--disable", "--yes")[0] == 0


def test_a_value_is_never_taken_for_an_abbreviation(balsam: Balsam) -> None:
    stored_args(balsam)
    balsam("modify", "--type", "apps", "say", "name", "tell")
    code, out, _ = balsam("ls", "apps", "--name", "tell")
    assert code == 0
    assert "tell" in out


def test_an_option_without_its_value_does_not_swallow_the_next_option(balsam: Balsam) -> None:
    code, _, err = balsam("job", "--name", "--workflow", "w", "--application", "say", "--yes")
    assert code == 2
    assert "--name" in err
    assert "requires an argument" in err


def test_sort_takes_a_field_with_a_dash_that_is_the_name_of_an_option(balsam: Balsam) -> None:
    for _ in range(2):
        stored_args(balsam)
    jobs = json.loads(balsam("ls", "--json", "--sort", "-id")[1])
    assert [job["id"] for job in jobs] == [2, 1]
    assert balsam("ls", "--sort", "-name")[0] == 0


def test_attached_values_of_short_options_stay_attached() -> None:
    from balsam_lite.cli.queue import submit_launch

    context = click.Context(submit_launch)
    rewriter = group.WordsRewriter(context, submit_launch.params)
    assert rewriter.rewritten(["-n2", "-t", "5", "-q", "debug", "-Aproj"]) == ["-n2", "-t", "5", "-q", "debug", "-Aproj"]


def test_everything_behind_two_dashes_is_left_alone() -> None:
    from balsam_lite.cli.ls import ls

    rewriter = group.WordsRewriter(click.Context(ls), ls.params)
    assert rewriter.rewritten(["--hist", "--", "--hist"]) == ["--history", "--", "--hist"]


# --- help and version -------------------------------------------------------------------------------------------------


def test_balsam_alone_prints_its_help(balsam: Balsam) -> None:
    code, out, err = balsam()
    assert (code, err) == (0, "")
    assert "submit-launch" in out
    assert (0, out, "") == balsam("--help") == balsam("-h")


@pytest.mark.parametrize("name", list(group.COMMANDS))
def test_every_command_explains_itself_with_an_example(balsam: Balsam, name: str) -> None:
    code, out, _ = balsam(name, "--help")
    assert code == 0
    assert f"    balsam {'serve-stdio' if name == 'answer' else name}" in out
    assert balsam(name, "-h")[1] == out
    command = group.balsam.get_command(click.Context(group.balsam), name)
    assert command is not None
    assert all(option.help for option in command.params if isinstance(option, click.Option))


@pytest.mark.parametrize("words", [[], *([name] for name in group.COMMANDS), ["queue", "submit"], ["site", "add"]])
def test_examples_fit_into_a_terminal(balsam: Balsam, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = balsam(*words, "--help")[1].splitlines()
    assert [line for line in lines if line.startswith("      ") and "balsam " in line and len(line) > 80] == []


def test_the_help_of_modify_lists_all_states(balsam: Balsam) -> None:
    from balsam_lite.core import states

    out = balsam("modify", "--help")[1]
    text = " ".join(out.split())
    assert all(f"{state} {description}" in text for state, description in states.DESCRIPTIONS.items())


def test_the_version_is_told_alone_and_among_other_words(balsam: Balsam) -> None:
    assert balsam("--version") == (0, f"balsam {__version__}\n", "")
    assert balsam("--db", "/nowhere", "--version") == (0, f"balsam {__version__}\n", "")


def test_dashes_and_underscores_in_command_names_are_alike(balsam: Balsam) -> None:
    assert balsam("make-dummies", "2") == balsam("make_dummies", "2")
    assert balsam("submit_launch", "--help")[0] == 0


def test_the_help_lists_commands_in_sections_and_hides_those_for_programs(balsam: Balsam) -> None:
    _, out, _ = balsam("--help")
    titles = [line[:-1] for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["Options", "Start here", "Jobs", "Applications", "Running", "Looking", "Sites", "Campaigns", "Database"]
    assert not {"answer", "serve-stdio", "login", "server"} & set(out.split())
    for hidden in group.HIDDEN:
        assert balsam(hidden, "--help")[0] == 0


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["sl"], "There is no command 'sl'. Did you mean 'sql'?"),
        (["qeue", "ls"], "There is no command 'qeue'. Did you mean 'queue'?"),
        (["job", "lss"], "There is no command 'job lss'. Did you mean 'job ls'?"),
        (["app", "remove"], "There is no command 'app remove'."),
        (["db", "chek"], "There is no command 'db chek'. Did you mean 'db check'?"),
        (["site", "sl"], "There is no command 'site sl'. Did you mean 'site ls'?"),
        (["ls", "--stat=FAILED", "--nmae", "x"], "No such option '--nmae'. Did you mean '--name'?"),
        (["--dbb", "x", "ls"], "No such option '--dbb'. Did you mean '--db'?"),
        (["job", "--args", "a", "--nam"], "Option '--name' requires an argument."),
        (["job", "--args", "a", "--nmae", "x"], "No such option '--nmae'. Did you mean '--name'? If it is the value of --args"),
        (["ls", "jbs"], "'jbs' is not one of jobs, apps, wf, queues. Did you mean 'jobs'?"),
        (["launcher", "--job-mode", "seral"], "'seral' is not one of serial, mpi, mixed. Did you mean 'serial'?"),
    ],
)
def test_an_unknown_word_is_an_error_with_the_nearest_one(balsam: Balsam, words: list[str], error: str) -> None:
    code, out, err = balsam(*words)
    assert (code, out) == (2, "")
    assert error in err


def test_db_takes_the_name_of_a_known_db(balsam: Balsam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BALSAM_DB_PATH")
    balsam("site", "init", "-n", "tutorial", str(tmp_path / "a" / "second"))
    for name in ("tutorial", "second", str(tmp_path / "a" / "second")):
        assert balsam("--db", name, "which")[1].startswith(f"Current Balsam DB: {tmp_path / 'a' / 'second'}\n")
    code, _, err = balsam("--db", "tutorail", "ls")
    assert (code, "no known DB has the name 'tutorail' (from --db). Did you mean 'tutorial'?" in err) == (1, True)
    balsam("init", str(tmp_path / "b" / "second"))
    assert balsam("--db", "second", "which")[1].startswith(f"Current Balsam DB: {tmp_path / 'b' / 'second'}\n")  # its name
    (tmp_path / "tutorial").mkdir()
    assert balsam("--db", "tutorial", "ls")[0] == 1  # a directory of that name is here, and it holds no DB


# --- completion -------------------------------------------------------------------------------------------------------


def completed(*words: str) -> list[str]:
    """What a shell offers for the last of these words."""
    from click.shell_completion import ShellComplete

    *before, last = words
    return [item.value for item in ShellComplete(group.balsam, {}, "balsam", "_X").get_completions(before, last)]


def test_completion_offers_what_is_in_the_db(balsam: Balsam, tmp_path: Path) -> None:
    stored_args(balsam, "--tag", "run=7", "--tag", "kind=x")
    job_id = json.loads(balsam("ls", "--json")[1])[0]["job_id"]
    assert completed("job", "create", "--app", "s") == ["say"]
    assert completed("job", "--workflow", "") == ["w"]
    assert completed("dep", job_id[:3]) == [job_id[:8]]
    assert completed("dep", job_id[:8], "") == [job_id[:8]]
    assert completed("job", "ls", "--site", "d") == ["db"]
    assert completed("job", "ls", "--site", "db,d") == ["db,db"]
    assert completed("--db", "") == ["db"]


def test_completion_is_silent_and_quick_where_the_db_cannot_be_read(
    balsam: Balsam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "db" / "settings.json").write_text('{"COLOUR": "red"}')
    assert completed("job", "--application", "") == []
    (tmp_path / "db" / "settings.json").write_text("{")
    assert completed("job", "--application", "") == []
    monkeypatch.setenv("BALSAM_DB_PATH", str(tmp_path / "nowhere"))
    assert completed("job", "--application", "") == []
    assert capsys.readouterr() == ("", "")


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["nonsense"], ["ls", "--nonsense"], ["ls", "stuff"], ["--nonsense"], ["init"], ["rm"]])
def test_wrong_usage_exits_with_2_and_prints_nothing_to_stdout(balsam: Balsam, words: list[str]) -> None:
    code, out, err = balsam(*words)
    assert (code, out) == (2, "")
    assert "Error: " in err


@pytest.mark.parametrize(
    "words", [["ls", "--name"], ["dep", "x"], ["modify", "x", "name"], ["killjob", "--id"], ["app", "--name"]]
)
def test_text_which_is_not_utf8_is_refused(balsam: Balsam, words: list[str]) -> None:
    code, out, err = balsam(*words, "caf\udce9")
    assert (code, out) == (2, "")
    assert "not valid UTF-8" in err


def test_a_library_error_becomes_its_message_hint_and_exit_code(balsam: Balsam) -> None:
    code, out, err = balsam("dep", "aaaa", "bbbb")
    assert (code, out) == (3, "")
    assert err == "Error: No job in local DB matched aaaa\n`balsam ls` shows the ids.\n"


def test_a_busy_db_exits_with_75(balsam: Balsam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALSAM_BUSY_TIMEOUT_S", "0.05")
    other = sqlite3.connect(tmp_path / "db" / "balsam.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    code, _, err = balsam("make_dummies", "1")
    other.close()
    assert code == 75
    assert "busy" in err


def test_a_db_of_a_newer_version_is_refused(balsam: Balsam, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "db" / "balsam.sqlite3")
    other.execute("PRAGMA user_version = 999")
    other.close()
    code, out, err = balsam("ls")
    assert (code, out) == (1, "")
    assert "999" in err


@pytest.mark.parametrize("kind", ["missing", "a file", "no DB"])
def test_a_path_without_a_db_is_named(balsam: Balsam, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "elsewhere"
    if kind == "a file":
        path.write_text("x")
    elif kind == "no DB":
        path.mkdir()
    code, out, err = balsam("--db", str(path), "ls")
    assert (code, out) == (1, "")
    assert str(path) in err
    assert "--db" in err


def test_without_a_db_the_known_ones_are_listed(balsam: Balsam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BALSAM_DB_PATH")
    code, out, err = balsam("ls")
    assert (code, out) == (1, "")
    assert "No Balsam DB is active" in err
    assert str(tmp_path / "db") in err


def test_a_settings_warning_is_one_line_on_stderr(balsam: Balsam, tmp_path: Path) -> None:
    (tmp_path / "db" / "settings.json").write_text('{"COLOUR": "red"}')
    code, out, err = balsam("ls")
    assert (code, out) == (0, "")
    assert err.startswith("Warning: ")
    assert err.count("\n") == 2 and err.endswith("No jobs found matching query\n")
    assert "COLOUR" in err


def test_broken_settings_exit_with_2_and_name_the_line(balsam: Balsam, tmp_path: Path) -> None:
    (tmp_path / "db" / "settings.json").write_text('{\n"SERVICE_PERIOD": }')
    code, _, err = balsam("ls")
    assert code == 2
    assert "settings.json, line 2" in err


def _break_ls(monkeypatch: pytest.MonkeyPatch, exc: BaseException) -> None:
    from balsam_lite.cli import ls

    def broken() -> None:
        raise exc

    monkeypatch.setattr(ls, "open_db", broken)


def test_an_unexpected_error_is_one_line_and_a_file(balsam: Balsam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _break_ls(monkeypatch, TypeError("unheard of"))
    code, out, err = balsam("ls", "--name", "a b")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    (log,) = (tmp_path / "db" / "log").glob("*.log")
    assert str(log) in err
    text = log.read_text()
    assert text.startswith("balsam ls --name 'a b'\nTraceback")
    assert "TypeError: unheard of" in text


def test_a_traceback_goes_home_when_there_is_no_db(balsam: Balsam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BALSAM_DB_PATH")
    _break_ls(monkeypatch, TypeError("unheard of"))
    assert str(tmp_path / "home" / "log") in balsam("ls")[2]
    assert "unheard of" in next((tmp_path / "home" / "log").iterdir()).read_text()


def test_a_variable_shows_the_traceback(balsam: Balsam, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(run.TRACEBACK_VARIABLE, "1")
    _break_ls(monkeypatch, TypeError("unheard of"))
    assert "Traceback (most recent call last)" in balsam("ls")[2]
    _break_ls(monkeypatch, errors.DatabaseError("foreseen"))
    assert "Traceback (most recent call last)" in balsam("ls")[2]


def test_ctrl_c_exits_with_130_and_says_nothing(balsam: Balsam, monkeypatch: pytest.MonkeyPatch) -> None:
    _break_ls(monkeypatch, KeyboardInterrupt())
    assert balsam("ls") == (130, "", "")


def test_other_warnings_are_left_to_python(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[type] = []
    show = run._shower(lambda message, category, *rest, **more: seen.append(category))
    show("x", DeprecationWarning, "file", 1)
    assert seen == [DeprecationWarning]
    assert not issubclass(DeprecationWarning, settings.SettingsWarning)


# --- start-up ---------------------------------------------------------------------------------------------------------

_IMPORTED = """
import sys
before = set(sys.modules)
from balsam_lite.cli.main import main
main({words!r})
loaded = [name for name, module in sys.modules.items() if type(module).__name__ != "_Postponed" and name not in before]
sys.stderr.write("\\n".join(loaded))
"""


def _imported_by(words: list[str]) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-S", "-c", _IMPORTED.format(words=words)], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )  # fmt: skip
    return set(done.stderr.split())


def test_the_version_imports_nothing(balsam: Balsam) -> None:
    assert _imported_by(["--version"]) == {"__future__", "balsam_lite", "balsam_lite.cli", "balsam_lite.cli.main"}


@pytest.mark.parametrize("words", [["ls"], ["ls", "--by-states"], ["ls", "--history"], ["ls", "--state", "FAILED"]])
def test_ls_imports_nothing_that_reading_does_not_need(balsam: Balsam, words: list[str]) -> None:
    stored_args(balsam)
    imported = _imported_by(words)
    assert "balsam_lite.cli.ls" in imported
    heavy = {"peewee", "tabulate", "jinja2", "psutil", "filelock", "logging", "pathlib", "subprocess", "dataclasses", "dis"}
    heavy |= {"tempfile", "random", "urllib.parse", "shutil", "difflib", "pprint", "balsam_lite.cli.create"}
    heavy |= {"balsam_lite.db.store", "balsam_lite.schedulers", "balsam_lite.launcher", "balsam_lite.cli.modify"}
    assert not imported & heavy


def test_a_postponed_module_comes_when_it_is_used() -> None:
    code = """
import sys
from balsam_lite.cli import run
run._postpone("colorsys")
import colorsys
assert not hasattr(colorsys, "__file__")
from colorsys import rgb_to_hsv
assert colorsys.rgb_to_hsv is rgb_to_hsv is sys.modules["colorsys"].rgb_to_hsv
assert rgb_to_hsv(0, 0, 0) == (0.0, 0.0, 0)
run._postpone("sched")
from sched import *
assert scheduler.__module__ == "sched"
run._postpone("decimal")
import decimal
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    found = set(pool.map(lambda _: decimal.Decimal, range(8)))
assert found == {sys.modules["decimal"].Decimal}
"""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environ)
