"""What holds for every test: an environment of its own, no skipping in CI, and where the `balsam` command is."""

from __future__ import annotations

import gc
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
CI = "BALSAM_CI"
IN_CI = CI in os.environ

#: Reasons to skip that are the user's, not the machine's: nothing could be installed against them.
_ALLOWED_REASONS = ("root ",)

# `from helpers import …`, wherever pytest is started and whatever part of the tests is run.
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

import slurm_cluster  # noqa: E402 - found only now
from helpers import Balsam  # noqa: E402

# --- the environment --------------------------------------------------------------------------------------------------


_homes = count()


@pytest.fixture(autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No BALSAM_ variable of the developer reaches a test, and no test touches ~/.balsam."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in list(os.environ):
            if variable.startswith(("BALSAM_", "_BALSAM")) and variable != CI:
                patch.delenv(variable)
        patch.setenv("PAGER", "cat")  # else listings on a terminal would wait for a key
        # Whatever scheduler this machine has; tests of schedulers ask for theirs.
        patch.setenv("BALSAM_SCHEDULER_CLASS", "LocalScheduler")
        patch.setenv("BALSAM_HOME", str(tmp_path_factory.getbasetemp() / f"balsam-home-{next(_homes)}"))
        yield
    gc.unfreeze()  # a launcher freezes what its process has imported; here it would keep the garbage of all tests


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def balsam_argv() -> list[str]:
    """The words that start the command: that of the running interpreter, or its module if it is not installed."""
    found = Path(sys.executable).parent / "balsam"
    return [str(found)] if found.exists() else [sys.executable, "-m", "balsam_lite.cli"]


@pytest.fixture(scope="session")
def balsam_bin(balsam_argv: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory for the front of PATH: with `balsam`, `python` and the two scripts to be sourced."""
    folder = tmp_path_factory.mktemp("bin")
    for name, words in (("balsam", balsam_argv), ("python", [sys.executable])):
        command = folder / name
        command.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {shlex.join(words)} "$@"\n')
        command.chmod(0o755)
    for name in ("balsamactivate", "balsamdeactivate"):
        shutil.copy(ROOT / "balsam_lite" / "templates" / name, folder)
    return str(folder)


@pytest.fixture
def run_balsam(capsys: pytest.CaptureFixture[str]) -> Balsam:
    """Calls a command in this process; gives back its exit code, stdout and stderr."""
    from balsam_lite.cli.main import main

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(words))
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def balsam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_balsam: Balsam) -> Balsam:
    """Calls a command on the DB in `tmp_path / "db"`, which is new unless another fixture has made it."""
    from balsam_lite.db.engine import directories

    for variable in [name for name in os.environ if name.startswith(("BALSAM_", "_BALSAM"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("BALSAM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BALSAM_DB_PATH", str(tmp_path / "db"))
    monkeypatch.chdir(tmp_path)
    if not (tmp_path / "db").exists():
        directories.create(str(tmp_path / "db")).close()
    return run_balsam


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets a terminal answer the questions with these lines, and then end the input."""

    def prepare(*lines: str) -> None:
        class Terminal:
            rest = list(lines)

            def isatty(self) -> bool:
                return True

            def readline(self) -> str:
                return self.rest.pop(0) + "\n" if self.rest else ""

        monkeypatch.setattr(sys, "stdin", Terminal())

    return prepare


# --- several workers --------------------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist's workers ignore SIGINT, and so would every command that a test interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# --- Slurm ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def slurm() -> Iterator[slurm_cluster.Cluster]:
    """A real Slurm of four nodes, one for all tests; `slurm.use(monkeypatch)` makes it this test's scheduler."""
    reason = slurm_cluster.why_not()
    if reason:
        pytest.skip(reason)
    with slurm_cluster.running() as cluster:
        yield cluster


# --- skipping ---------------------------------------------------------------------------------------------------------


def _must_run(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why this report is a failure in CI; "" if it is none."""
    if not IN_CI or not report.skipped or hasattr(report, "wasxfail"):
        return ""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if reason.removeprefix("Skipped: ").startswith(_ALLOWED_REASONS):
        return ""
    return f"{CI} is set, and there nothing may be skipped: {reason}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    _turn_into_failure(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    outcome = yield
    _turn_into_failure(outcome.get_result())


def _turn_into_failure(report: pytest.TestReport | pytest.CollectReport) -> None:
    trouble = _must_run(report)
    if trouble:
        report.outcome = "failed"
        report.longrepr = trouble
