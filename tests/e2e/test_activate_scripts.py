"""balsamactivate and balsamdeactivate, sourced into real shells."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import ROOT

TEMPLATES = ROOT / "balsam_lite" / "templates"

#: Stands for the command: knows every directory that exists.
FAKE_BALSAM = """#!/bin/sh
if [ "$1 $2" = "which --list" ]; then echo "['/known/db']"; exit 0; fi
[ "$1 $2" = "which --name" ] || exit 9
if [ -d "$3" ]; then printf '%s\\n' "$3"; exit 0; fi
echo "No DB matching $3 is cached." >&2
exit 1
"""

SHELLS = {
    "bash": ["bash", "--norc"],
    "posix bash": ["bash", "--norc", "--posix"],
    "zsh": ["zsh", "-f"],
    "dash": ["dash"],
}


@pytest.fixture(params=SHELLS)
def shell(request, tmp_path):
    argv = SHELLS[request.param]
    if not shutil.which(argv[0]):
        assert "BALSAM_CI" not in os.environ, f"{argv[0]} must be installed"
        pytest.skip(f"no {argv[0]}")
    return Shell(argv, tmp_path)


class Shell:
    """Runs lines in a fresh shell in which the two scripts and a `balsam` are on PATH."""

    def __init__(self, argv: list[str], directory: Path) -> None:
        self.argv, self.directory = argv, directory
        self.bin = directory / "bin dir"
        self.bin.mkdir()
        (self.bin / "balsam").write_text(FAKE_BALSAM)
        (self.bin / "balsam").chmod(0o755)
        for name in ("balsamactivate", "balsamdeactivate"):
            shutil.copy(TEMPLATES / name, self.bin)
        self.environ = {"PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(directory)}

    def db(self, name: str) -> str:
        path = self.directory / name
        path.mkdir()
        return str(path)

    def activate(self, name: str) -> str:
        """The line that a user types. dash's `.` takes no arguments and sees those of the shell."""
        if self.argv[0] == "dash":
            return f"set -- {shlex.quote(name)}; . balsamactivate"
        return f"source balsamactivate {shlex.quote(name)}"

    @property
    def deactivate(self) -> str:
        return ". balsamdeactivate"

    def run(self, *lines: str, options: tuple[str, ...] = ("-eu",), **environ: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*self.argv, *options, "-c", "\n".join(lines)],
            capture_output=True, text=True, timeout=30, env={**self.environ, **environ}, cwd=self.directory,
        )  # fmt: skip


SHOW = 'printf "<%s>" "${PS1-none}" "${BALSAM_DB_PATH-none}"; echo'


def test_prompt_and_variable_are_set_and_restored(shell):
    db = shell.db("my db")
    done = shell.run("PS1='me: '", shell.activate(db), SHOW, shell.deactivate, SHOW)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"Active Balsam DB: {db}", f"<[BalsamDB: my db] me: ><{db}>", "<me: ><none>"
    ]  # fmt: skip


def test_the_variable_reaches_programs(shell):
    db = shell.db("db")
    done = shell.run(f"{shell.activate(db)} > /dev/null", "env | grep BALSAM")
    assert done.stdout == f"BALSAM_DB_PATH={db}\n"


def test_activating_again_does_not_stack_prompts(shell):
    first, second = shell.db("first"), shell.db("second")
    lines = [f"{shell.activate(name)} > /dev/null" for name in (first, first, second)]
    done = shell.run("PS1='me: '", *lines, SHOW, shell.deactivate, SHOW)
    assert done.stdout.splitlines() == [f"<[BalsamDB: second] me: ><{second}>", "<me: ><none>"]


def test_a_prompt_which_others_have_changed_meanwhile_keeps_their_change(shell):
    db = shell.db("db")
    done = shell.run("PS1='me: '", f"{shell.activate(db)} > /dev/null", 'PS1="(venv) $PS1"', shell.deactivate, SHOW)
    assert done.stdout == "<(venv) me: ><none>\n"


def test_a_shell_without_a_prompt_gets_none_and_no_error(shell):
    done = shell.run("unset PS1", shell.activate(shell.db("db")), shell.deactivate, SHOW)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "<none><none>"


def test_nothing_in_a_directorys_name_is_run_by_the_prompt(shell):
    db = shell.db("$(touch ran)`touch ran`%n!\\u] x")
    done = shell.run("PS1='me: '", shell.activate(db), SHOW, shell.deactivate, SHOW)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == [
        f"<[BalsamDB: _(touch ran)_touch ran__n__u_ x] me: ><{db}>", "<me: ><none>"
    ]  # fmt: skip


NAMES = {
    "bash": "compgen -v; compgen -A function",
    "zsh": "print -l ${(k)parameters} ${(k)functions}",
    "dash": "set | sed -n 's/^\\([A-Za-z0-9_]*\\)=.*/\\1/p'",
}


def test_no_function_and_no_variable_is_left_behind(shell):
    show = f"echo -----; {NAMES[shell.argv[0]]}"
    lines = ["PS1='me: '", show, shell.activate(shell.db("db")), show, shell.deactivate, show]
    done = shell.run(*lines, options=("-u",))
    _, before, active, after = (set(part.split()) for part in done.stdout.split("-----\n"))
    assert active - before - {"_"} == {"BALSAM_DB_PATH"}
    assert after - before - {"_"} == set()


def test_an_unknown_name_changes_nothing(shell):
    db = shell.db("db")
    lines = [f"{shell.activate(db)} > /dev/null", shell.activate("none"), 'echo "status $?"', SHOW]
    done = shell.run("PS1='me: '", *lines, options=("-u",))
    assert "No DB matching none is cached." in done.stderr
    assert done.stdout.splitlines() == ["status 1", f"<[BalsamDB: db] me: ><{db}>"]


def test_a_failing_activation_stops_a_script_that_stops_at_errors(shell):
    assert shell.run(shell.activate("none"), "echo went on").stdout == ""


@pytest.mark.parametrize("arguments", ["", "one two", "''"])
def test_anything_but_one_argument_gets_the_usage_and_the_known_list(shell, arguments):
    if shell.argv[0] == "dash":
        activate = f"set -- {arguments}; . balsamactivate"
    else:
        activate = f"source balsamactivate {arguments}"
    done = shell.run(activate, 'echo "status $?"', options=("-u",))
    assert done.stdout == "status 1\n"
    assert done.stderr.startswith("Usage:  source balsamactivate NAME_OR_PATH\n")
    assert "/known/db" in done.stderr


def test_deactivating_without_a_db_says_so(shell):
    done = shell.run(shell.deactivate, 'echo "status $?"', options=("-u",))
    assert (done.stdout, done.stderr) == ("status 1\n", "No Balsam DB is currently active\n")


@pytest.mark.parametrize("name", ["balsamactivate", "balsamdeactivate"])
def test_an_executed_script_says_that_it_must_be_sourced(shell, name):
    for command in ([f"{shell.bin}/{name}"], [*shell.argv, f"{shell.bin}/{name}"], [*shell.argv, "-c", f"{name} x; exit 3"]):
        done = subprocess.run(command, capture_output=True, text=True, env=shell.environ, cwd=shell.directory)
        assert done.returncode == (3 if "-c" in command else 1)
        assert f"source {name}" in done.stderr


def test_an_interactive_login_shell_outlives_every_mistake(shell):
    argv = [*shell.argv, "-i"] if shell.argv[0] != "zsh" else ["zsh", "-f", "-l", "-i"]
    typed = "balsamactivate x\n. balsamactivate\n. balsamdeactivate\nsource balsamactivate none\necho still $((40 + 2))\n"
    done = subprocess.run(argv, input=typed, capture_output=True, text=True, env=shell.environ, timeout=30)
    assert "still 42" in done.stdout
