"""Command lines of applications and jobs: how they are stored, and which warnings they cause."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from balsam_lite.api import App
from balsam_lite.cli.main import main
from balsam_lite.core import command_line
from balsam_lite.core.command_line import CommandLineWarning, as_program, problems, problems_of_args
from balsam_lite.db.engine import directories
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.models import ApplicationDefinition, use
from balsam_lite.launcher import dag


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a current directory with programs in it."""
    found = tmp_path / "here"
    found.mkdir()
    monkeypatch.chdir(found)
    for name, text, mode in (
        ("run.sh", "#!/bin/bash\necho hi\n", 0o755),
        ("plain.sh", "#!/bin/bash\necho hi\n", 0o644),
        ("fit.py", "print(1)\n", 0o644),
        ("crlf.sh", "#!/bin/bash\r\necho hi\r\n", 0o755),
        ("lost.sh", "#!/no/such/shell -x\n", 0o755),
        ("text", "echo hi\n", 0o755),
        ("env.sh", "#!/usr/bin/env no-such-program\n", 0o755),
        ("Hello,", "", 0o644),
        ("in.dat", "", 0o644),
        ("two words.sh", "", 0o755),
        ("echo", "#!/bin/sh\n", 0o755),
        ("binary", "\0\1", 0o755),
    ):
        (found / name).write_bytes(text.encode())
        (found / name).chmod(mode)
    (found / "folder").mkdir()
    return found


@pytest.fixture
def db(tmp_path: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setenv("BALSAM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BALSAM_DB_PATH", str(tmp_path / "db"))
    directories.set_up(str(tmp_path / "db"))
    made = directories.open_database(str(tmp_path / "db"))
    with use(made):
        yield made
    made.close()


# --- what is stored ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ("./run.sh", "HERE/run.sh"),
        ("run.sh", "HERE/run.sh"),
        ("./run.sh  'a  b' c", "HERE/run.sh  'a  b' c"),
        ("bash run.sh x", "bash HERE/run.sh x"),
        ("/bin/sh -e ./run.sh", "/bin/sh -e HERE/run.sh"),
        ("bash -o pipefail run.sh", "bash -o pipefail HERE/run.sh"),
        ("python3 fit.py", "python3 HERE/fit.py"),
        ("python3.11 -u -W ignore fit.py --n 3", "python3.11 -u -W ignore HERE/fit.py --n 3"),
        ("fit.py x", "PYTHON HERE/fit.py x"),
        ("perl -w fit.py", "perl -w HERE/fit.py"),
        ("Rscript --vanilla fit.py", "Rscript --vanilla HERE/fit.py"),
        ("env A=1 -u B ./run.sh 'x y'", "env A=1 -u B HERE/run.sh 'x y'"),
        ("env bash run.sh", "env bash HERE/run.sh"),
        ("'./two words.sh' a", "'HERE/two words.sh' a"),
        ("bash 'two words.sh'", "bash 'HERE/two words.sh'"),
        ("sub/../run.sh", "HERE/run.sh"),
        ("./echo x", "HERE/echo x"),
        # as typed
        ("echo Hello,", "echo Hello,"),
        ("cat in.dat", "cat in.dat"),
        ("./not-there", "./not-there"),
        ("./folder", "./folder"),
        ("bash -c run.sh", "bash -c run.sh"),
        ("bash -lc 'run.sh x'", "bash -lc 'run.sh x'"),
        ("python3 -m fit.py", "python3 -m fit.py"),
        ("python3 -c 'print()' run.sh", "python3 -c 'print()' run.sh"),
        ("perl -e 1 run.sh", "perl -e 1 run.sh"),
        ("/bin/bash /abs/x", "/bin/bash /abs/x"),
        ("bash not-there run.sh", "bash not-there run.sh"),
        ("", ""),
        ("  ", "  "),
        ("env -S 'A=1 bash' run.sh", "env -S 'A=1 bash' run.sh"),
        ("env", "env"),
        ("bash", "bash"),
        ("ls -l run.sh", "ls -l run.sh"),
    ],
)
def test_files_of_the_current_directory_are_stored_absolute_where_they_are_run(here: Path, typed: str, stored: str) -> None:
    expected = stored.replace("HERE", str(here)).replace("PYTHON", "py")
    assert as_program(typed, "py", str(here)) == expected
    assert as_program(expected, "py", "/") == expected, "doing it again, or elsewhere, changes nothing"


def test_a_directory_with_blanks_in_its_name_is_quoted(here: Path, tmp_path: Path) -> None:
    other = tmp_path / "it's here"
    os.rename(here, other)
    assert shlex.split(as_program("bash run.sh 'a b'", "py", str(other))) == ["bash", f"{other}/run.sh", "a b"]


# --- what is warned of ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("HERE/plain.sh", "plain.sh is not executable: chmod +x"),
        ("HERE/folder", "folder is a directory"),
        ("./folder", "./folder is a directory"),
        ("bash HERE/folder", "folder is a directory"),
        ("HERE/crlf.sh", "crlf.sh has Windows line ends"),
        ("bash HERE/crlf.sh", "crlf.sh has Windows line ends"),
        ("HERE/lost.sh", "names /no/such/shell, which does not exist"),
        ("HERE/env.sh", "names no-such-program, which is not found"),
        ("HERE/text", "text is a text file without a #! line"),
        ("no-such-program x", "no-such-program is not found on PATH"),
        ("/no/such/program", "/no/such/program does not exist"),
        ("bash /no/such", "/no/such does not exist"),
        ("./later.sh", "is looked up in each job's working directory"),
        ("bash later.sh", "is looked up in each job's working directory"),
        ("echo Hello,", "Hello, is a file here"),
        ("cat --from=in.dat", "in.dat is a file here"),
        ("echo hi | tr h H > out.txt", "so | > has no special meaning. For a shell: bash -c 'echo hi | tr h H > out.txt'"),
        ("echo hi|tr h H", "so hi|tr has"),
        ("true && echo", "so && has"),
        ("true || echo", "so || has"),
        ("true; echo", "so true; has"),
        ("cat < x", "so < has"),
        ("sleep 1 &", "so & has"),
        ("echo 2>&1", "so 2>&1 has"),
        ("echo $HOME/x", "so $HOME/x has"),
        ('echo "$HOME/x"', 'so "$HOME/x" has'),
        ("echo ${HOME}", "so ${HOME} has"),
        ("echo $(date)", "so $(date) has"),
        ("echo `date`", "so `date` has"),
        ("FOO=1 echo", "so FOO=1 has"),
        ("echo *.dat", "so *.dat has"),
        ("cat ~/x", "so ~/x has"),
        ("echo r[12]", "so r[12] has"),
        ("echo a?", "so a? has"),
        ("cd x\n./run", "so the line break has"),
        ("bash HERE/run.sh > x", "so > has"),
        ("env A=1 echo $B", "so $B has"),
        ("bash -c 'date' $HOME", "so $HOME has"),
    ],
)
def test_what_will_hardly_do_what_was_meant_is_told(here: Path, line: str, said: str) -> None:
    found = problems(line.replace("HERE", str(here)), str(here))
    assert any(said in text for text in found), found


@pytest.mark.parametrize(
    "line",
    [
        "echo 'a | b' '$HOME' '*.dat' \"x;y\" a\\|b \\$HOME",
        "bash -c 'echo $HOME | wc > x'",
        'bash -c "echo $HOME"',
        "bash -c",
        "python3 -c 'print($x)'",
        "echo a=b x=1",
        "echo http://x/?a=1&b=2",
        "echo $5 5$ {x}",
        "/bin/echo --re=a[0-9]*",
        "env FOO=1 echo",
        "HERE/run.sh",
        "bash HERE/run.sh",
        "HERE/binary",
        "echo 'two\nlines'",
        "env",
        "env -i",
        "",
        "  ",
    ],
)
def test_what_means_what_it_says_is_not_warned_of(here: Path, line: str) -> None:
    assert problems(line.replace("HERE", str(here)), str(here)) == []


@pytest.mark.parametrize(
    ("args", "odd"),
    [
        ("x $HOME/y > out", "$HOME/y >"),
        ("a | b", "|"),
        ("a && b", "&&"),
        ("x 2>err", "2>err"),
        ('"$X" `y`', '"$X" `y`'),
        ("*.c", "*.c"),
        ("a ;", ";"),
        # mostly meant as they are
        ("a|b x[0] [1,2] what? --re=.* a=b c; http://x?a&b $5", ""),
        ("'$HOME' '*' \\*", ""),
        ("", ""),
    ],
)
def test_arguments_that_look_like_a_shells_are_told_unless_a_shell_gets_them(args: str, odd: str) -> None:
    expected = f"no shell reads the arguments, so the program gets {odd} as typed. For a shell, use an application bash -c."
    for executable in ("echo", "bash /x/run.sh", "bash -c 'date'"):
        assert problems_of_args(args, executable) == ([expected] if odd else [])
    assert problems_of_args(args, "bash -c") == problems_of_args(args, "/bin/sh -ec") == []


# --- the interfaces ---------------------------------------------------------------------------------------------------


def _by_command(name: str, line: str) -> None:
    assert main(["app", "--name", name, "--executable", line]) == 0


def _by_modify(name: str, line: str) -> None:
    assert (
        main(["app", "--name", name, "--executable", "true"])
        == main(["modify", "--type", "apps", name, "executable", line])
        == 0
    )


def _by_change(name: str, line: str) -> None:
    app = dag.add_app(name, "true")
    app.executable = line
    app.save()


def _by_api_change(name: str, line: str) -> None:
    app = App(name=name, executable="true", site_name=None)
    app.save()
    app.executable = line
    app.save()


@pytest.mark.parametrize(
    "register",
    [
        _by_command,
        _by_modify,
        dag.add_app,
        _by_change,
        lambda name, line: App(name=name, executable=line).save(),
        _by_api_change,
        lambda name, line: ApplicationDefinition(name=name, executable=line).save(),
    ],
    ids=["command", "modify", "add_app", "save", "api", "api save", "model"],
)
def test_every_interface_stores_an_existing_script_absolute(
    db: Database, here: Path, register: Callable[[str, str], object]
) -> None:
    register("a", "bash run.sh 'x y'")
    assert ApplicationDefinition.objects.get(name="a").executable == f"bash {here}/run.sh 'x y'"


def test_scripts_around_a_job_are_stored_absolute_too(db: Database, here: Path) -> None:
    dag.add_app("a", "true", preprocess="./run.sh 1", postprocess="fit.py", envscript="run.sh")
    app = ApplicationDefinition.objects.get(name="a")
    assert (app.preprocess, app.postprocess) == (f"{here}/run.sh 1", f"{sys.executable} {here}/fit.py")
    assert app.envscript == f"{here}/run.sh"


def test_commands_warn_on_stderr_and_succeed(db: Database, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["app", "--name", "a", "--executable", "echo hi > x", "--postprocess", "./plain.sh", "--envscript", "folder"]) == 0
    )
    said = capsys.readouterr().err
    for words in (
        "executable: no shell reads",
        f"postprocess: {here}/plain.sh is not exec",
        f"envscript: {here}/folder is a dir",
    ):
        assert f"Warning: {words}" in said
    job = ["job", "--name", "j", "--workflow", "w", "--app", "a", "--yes"]
    assert main([*job, "--args", "$HOME"]) == 0
    assert "Warning: args: no shell reads the arguments, so the program gets $HOME" in capsys.readouterr().err
    assert main([*job, "--stage-out-files", "*.dat"]) == 0
    assert "Warning: results are copied only where both" in capsys.readouterr().err
    assert main([*job, "--args", "plain"]) == 0
    assert capsys.readouterr().err == ""


def test_python_warns_at_the_line_that_registers(db: Database, here: Path) -> None:
    with pytest.warns(CommandLineWarning, match=r"executable: no shell reads this line, so \$HOME") as caught:
        dag.add_app("a", "echo $HOME")
    assert [one.filename for one in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dag.add_app("b", "no-such-program-here")  # it may be where the jobs run


def test_a_template_that_runs_a_file_of_the_current_directory_is_told(db: Database, here: Path) -> None:
    for number, template in enumerate(("./run.sh {{ x }}", "run.sh {{ x }}")):
        with pytest.warns(CommandLineWarning, match="command_template: .*run.sh is a file here, and jobs run in other"):
            App(name=f"a{number}", command_template=template).save()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        App(name="b", command_template="echo {{ x }}").save()
        App(name="c", command_template=f"{here}/run.sh {{{{ x }}}} | wc > out").save()


def test_a_line_can_be_registered_where_the_current_directory_is_gone(db: Database, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    assert command_line.current_directory() == "/"
    assert dag.add_app("a", "/bin/echo x").executable == "/bin/echo x"


# --- options that are values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--args", "-O", "-i", "a"), """No such option '-i'. If it is the value of --args, write --args="-O -i a\""""),
        (("--args", "x", "--odd", "y", "--yes"), """--args="x --odd y\""""),
        (("--args", "$X", "-i"), """--args='$X -i'"""),
        (
            ("--priority", "--name", "x"),
            """Option '--priority' requires an argument, not '--name'. If it is the value of --priority, write """,
        ),
    ],
)
def test_an_option_of_a_program_is_refused_with_the_way_to_write_it(
    db: Database, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert main(["job", "--name", "j", "--workflow", "w", "--app", "a", *words]) == 2
    assert said in capsys.readouterr().err


def test_arguments_that_are_options_can_be_given_so(db: Database) -> None:
    dag.add_app("a", "true")
    assert main(["job", "--name", "j", "--workflow", "w", "--app", "a", "--args=-O -i a", "--yes"]) == 0
    assert dag.BalsamJob.objects.get().args == "-O -i a"
