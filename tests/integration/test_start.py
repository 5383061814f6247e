"""How our own programs are started: files in the current directory are never taken for modules."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest
from helpers import ROOT

from balsam_lite.core import pickling, subprocess_run
from balsam_lite.pyapps import payload, result_file, run_call


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A current directory with files that break what takes them for modules."""
    for name in ("balsam_lite", "json", "runpy", "click"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('that file is data')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


JOB_ID, RESULT = "12345678-9", ".balsam-12345678.pkl"


def ended(words, **environ):
    environ = {**os.environ, "BALSAM_JOB_ID": JOB_ID, "BALSAM_ATTEMPT": "1", **environ}
    return subprocess.run(words, env=environ, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)


def write_call(path, main, pickled):
    """Write the file for a program that makes one call."""
    context, call = run_call.CallContext((), main), run_call.CallPayload(pickled)
    run_call.write_call(path, run_call.dump(context), run_call.dump(call), ())


@pytest.mark.parametrize("path", ["{}", ":{}", "{}:", "/nowhere::{}"])
def test_data_in_the_working_directory_are_no_modules_of_a_call(trap, path):
    (trap / "balsam_lite").mkdir()
    write_call("call.pkl", None, pickle.dumps((divmod, (7, 2), {})))
    words = payload.program_words(sys.executable, payload.CALL, "call.pkl")
    done = ended(words, PYTHONPATH=path.format(ROOT))
    assert (done.returncode, done.stderr) == (0, "")
    assert pickle.loads(result_file.read_outcome(RESULT).value) == (3, 1)


#: Command lines that earlier versions have stored in applications, and how far each of them protects modules from data.
OLD_LINES = {
    "-m": (["-m", "balsam_lite.launcher.call"], ("balsam_lite", "runpy", "json")),
    "-c": (["-c", "from balsam_lite.launcher.start import call; call()"], ("balsam_lite", "json")),
    "the previous version's": (
        [
            "-c",
            "import os, sys; sys.path[:] = [entry for entry in sys.path if entry and entry != os.getcwd()]; "
            "from balsam_lite.launcher.start import call; call()",
        ],
        (),
    ),
}


@pytest.mark.parametrize("line", OLD_LINES)
def test_calls_that_an_earlier_version_has_added_leave_the_result_that_it_looks_for(trap, line):
    words, taken_for_modules = OLD_LINES[line]
    for name in taken_for_modules:
        os.unlink(f"{name}.py")
    # (each, [divmod, [(7, 2), (9, 4)]], {}), as the chunk of a `map`.
    chunk = b"(cbalsam_lite.launcher.call\neach\n" + pickle.dumps([divmod, [(7, 2), (9, 4)]], 0)[:-1] + b"}t."
    with open("call.pkl", "wb") as file:
        pickle.dump(([], None, chunk), file, protocol=4)
    done = ended([sys.executable, *words, "call.pkl"], PYTHONPATH=subprocess_run.python_path())
    assert (done.returncode, done.stderr) == (0, "")
    with open(".balsam-result.pkl", "rb") as file:
        good, value, trace = pickle.load(file)
    assert (good, pickle.loads(value), trace) == (True, [(3, 1), (2, 1)], "")
    assert result_file.read_outcome(".balsam-result.pkl").good, "a call of this version may be its child"


def test_hooks_and_functions_whose_lines_an_earlier_version_has_stored_run(trap):
    for name in ("balsam_lite", "runpy"):
        os.unlink(f"{name}.py")
    code = "from balsam_lite.launcher.start import {0}; {0}()"
    done = ended([sys.executable, "-c", code.format("hook"), "postprocess"], PYTHONPATH=subprocess_run.python_path())
    assert "is run by the launcher" in done.stderr
    os.unlink("json.py")
    done = ended([sys.executable, "-c", code.format("function"), "none.json"], PYTHONPATH=subprocess_run.python_path())
    assert "No such file or directory: 'none.json'" in done.stderr


def test_the_launcher_knows_where_a_stored_line_leaves_its_result():
    new = {what: " ".join(payload.program_words("python3", what)) for what in ("call", "function", "hook")}
    old = {what: line.replace("pyapps.entry_points", "launcher.start") for what, line in new.items()}
    names = [payload.result_name(lines[what], JOB_ID) for lines in (new, old) for what in ("call", "function", "hook")]
    assert names == [RESULT, RESULT, "", ".balsam-result.pkl", RESULT, ""]
    assert [payload.is_hook(lines[what]) for lines in (new, old) for what in ("hook", "call")] == [True, False] * 2
    assert payload.result_name(None, JOB_ID) == payload.result_name("echo", JOB_ID) == ""


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_call_may_close_its_streams(trap, stream):
    write_call("call.pkl", None, pickle.dumps((exec, (f"import sys; sys.{stream}.close()",), {})))
    done = ended(payload.program_words(sys.executable, payload.CALL, "call.pkl"))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_process_that_a_call_forks_leaves_no_result(trap):
    code = "import os; pid = os.fork(); pid and (os.waitpid(pid, 0), os.rename('.balsam-12345678.pkl', 'of-child.pkl'))"
    write_call("call.pkl", None, pickle.dumps((exec, (code,), {})))
    done = ended(payload.program_words(sys.executable, payload.CALL, "call.pkl"))
    assert done.returncode == 1 and "No such file or directory: '.balsam-12345678.pkl'" in done.stderr


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
    pickled = b"c%b\n%b\n)}\x87." % (pickling.MAIN.encode(), function.encode())  # (function, (), {}) of the script
    write_call(str(tmp_path / "call.pkl"), ("path", str(tmp_path / "script.py")), pickled)
    words = payload.program_words(sys.executable, payload.CALL, "call.pkl")
    environ = {**os.environ, "BALSAM_JOB_ID": JOB_ID, "BALSAM_ATTEMPT": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=30)
    outcome = result_file.read_outcome(str(tmp_path / RESULT))
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


@pytest.mark.parametrize("what", [payload.HOOK, payload.FUNCTION])
def test_a_package_of_our_name_in_the_working_directory_is_data(trap, what):
    (trap / "balsam_lite").mkdir()
    (trap / "balsam_lite" / "__init__.py").write_text("raise SystemExit('that file is data')")
    done = ended(payload.program_words(sys.executable, what, "no-such-thing"))
    assert done.returncode == 1 and "data" not in done.stderr


def test_a_module_of_ours_is_run_as_the_program_with_its_words(trap):
    done = ended(subprocess_run.module_words("balsam_lite.cli", "app", "--no-such"))
    assert done.returncode == 2 and "that file is data" not in done.stderr and "Usage: balsam app" in done.stderr


def test_no_module_starts_another_in_a_way_that_looks_into_the_current_directory():
    package = ROOT / "balsam_lite"
    takes_it = package / "compat" / "__main__.py"  # from its command line
    sources = {path: path.read_text(encoding="utf-8") for path in package.rglob("*.py") if path != takes_it}
    assert [str(path) for path, text in sources.items() if '"-m"' in text] == []
    assert sum(text.count("module_words(") for text in sources.values()) >= 5
