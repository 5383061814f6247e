"""How our own programs are started: whatever lies in the current directory is no module of theirs."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest
from helpers import ROOT

from balsam_lite.core import subprocess_run
from balsam_lite.pyapps import python_argv, run_call


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A current directory with files that break what takes them for modules."""
    for name in ("balsam_lite", "json", "runpy", "click"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('that file is data')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ended(words, **environ):
    return subprocess.run(
        words, env={**os.environ, **environ}, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("path", ["{}", ":{}", "{}:", "/nowhere::{}"])
def test_data_in_the_working_directory_are_no_modules_of_a_call(trap, path):
    (trap / "balsam_lite").mkdir()
    run_call.write("call.pkl", run_call.Call([], None, pickle.dumps((divmod, (7, 2), {}))))
    words = python_argv.words(sys.executable, python_argv.CALL, "call.pkl")
    done = ended(words, PYTHONPATH=path.format(ROOT))
    assert (done.returncode, done.stderr) == (0, "")
    assert pickle.loads(run_call.read_outcome(run_call.RESULT).value) == (3, 1)


def test_lines_that_older_dbs_have_stored_still_work(trap):
    run_call.write("call.pkl", run_call.Call([], None, pickle.dumps((divmod, (7, 2), {}))))
    for name in ("balsam_lite", "runpy"):  # `-m` takes them for modules
        os.unlink(f"{name}.py")
    done = ended([sys.executable, "-m", "balsam_lite.pyapps.run_call", "call.pkl"], PYTHONPATH=subprocess_run.python_path())
    assert (done.returncode, done.stderr) == (0, "")
    assert pickle.loads(run_call.read_outcome(run_call.RESULT).value) == (3, 1)
    code = "from balsam_lite.launcher.start import hook; hook()"
    done = ended([sys.executable, "-c", code, "postprocess"], PYTHONPATH=subprocess_run.python_path())
    assert "is run by the launcher" in done.stderr


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_call_may_close_its_streams(trap, stream):
    run_call.write("call.pkl", run_call.Call([], None, pickle.dumps((exec, (f"import sys; sys.{stream}.close()",), {}))))
    done = ended(python_argv.words(sys.executable, python_argv.CALL, "call.pkl"))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_process_that_a_call_forks_leaves_no_result(trap):
    code = "import os; pid = os.fork(); pid and (os.waitpid(pid, 0), os.rename('.balsam-result.pkl', 'of-child.pkl'))"
    run_call.write("call.pkl", run_call.Call([], None, pickle.dumps((exec, (code,), {}))))
    done = ended(python_argv.words(sys.executable, python_argv.CALL, "call.pkl"))
    assert done.returncode == 1 and "No such file or directory: '.balsam-result.pkl'" in done.stderr


SPAWNING = """
import multiprocessing

def double(x):
    return 2 * x

def main():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply_async(double, (21,)).get(5)
"""


def outcome_of_call(tmp_path, script, function):
    """What becomes of a call of that function without arguments."""
    (tmp_path / "script.py").write_text(script)
    pickled = b"c%b\n%b\n)}\x87." % (run_call.MAIN.encode(), function.encode())  # (function, (), {}) of the script
    run_call.write(str(tmp_path / "call.pkl"), run_call.Call([], ("path", str(tmp_path / "script.py")), pickled))
    words = python_argv.words(sys.executable, python_argv.CALL, "call.pkl")
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    outcome = run_call.read_outcome(str(tmp_path / run_call.RESULT))
    assert done.returncode == (0 if outcome.good else 1), done.stderr
    return outcome


def test_processes_that_a_call_of_a_script_spawns_find_its_functions(tmp_path):
    outcome = outcome_of_call(tmp_path, SPAWNING, "main")
    assert outcome.value is not None and pickle.loads(outcome.value) == 42


UNGUARDED = """
from balsam_lite.launcher.futures import BalsamExecutor

def above():
    return 42

try:
    with BalsamExecutor() as executor:
        print(executor.submit(above).result())
except Exception:
    pass

def below():
    return 43
"""


def test_a_call_of_a_script_imports_it_only_up_to_where_it_would_make_its_jobs_again(tmp_path):
    outcome = outcome_of_call(tmp_path, UNGUARDED, "above")
    assert outcome.value is not None and pickle.loads(outcome.value) == 42
    outcome = outcome_of_call(tmp_path, UNGUARDED, "below")
    assert not outcome.good
    assert "'below'" in outcome.trace and "only up to line 8" in outcome.trace and "Define it above" in outcome.trace


@pytest.mark.parametrize("what", [python_argv.HOOK, python_argv.FUNCTION])
def test_a_package_of_our_name_in_the_working_directory_is_data(trap, what):
    (trap / "balsam_lite").mkdir()
    (trap / "balsam_lite" / "__init__.py").write_text("raise SystemExit('that file is data')")
    done = ended(python_argv.words(sys.executable, what, "no-such-thing"))
    assert done.returncode == 1 and "data" not in done.stderr


def test_a_module_of_ours_is_run_as_the_program_with_its_words(trap):
    done = ended(subprocess_run.module_words("balsam_lite.cli", "app", "--no-such"))
    assert done.returncode == 2 and "that file is data" not in done.stderr and "Usage: balsam app" in done.stderr


def test_no_module_starts_another_in_a_way_that_looks_into_the_current_directory():
    package = ROOT / "balsam_lite"
    sources = {path: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    assert [str(path) for path, text in sources.items() if '"-m"' in text] == []
    assert sum("module_words(" in text for text in sources.values()) >= 5
