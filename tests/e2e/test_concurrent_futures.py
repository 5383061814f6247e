"""CPython's own tests of its executors, with BalsamExecutor in the place of ProcessPoolExecutor."""

from __future__ import annotations

import importlib
import multiprocessing
import sys
import unittest

import cpython_suite
import pytest
from launching import Bench

from balsam_lite.db.models import use
from balsam_lite.launcher.futures import BalsamExecutor


def get_context(_):
    return multiprocessing.get_context("spawn")


def check_crash(self, error, function, *args, ignore_stderr=False):
    """In the place of what expects BrokenProcessPool."""
    with pytest.raises(BaseException) as raised:  # SystemExit among them
        self.executor.submit(function, *args).result(timeout=60)
    assert not isinstance(raised.value, (TimeoutError, KeyboardInterrupt))
    assert self.executor.submit(abs, -1).result(timeout=60) == 1


OWN = {"executor_type": BalsamExecutor, "get_context": get_context, "_check_crash": check_crash, "_check_error": check_crash}


def modules(tmp_path):
    """The test modules, as a package that processes of calls can import, too."""
    found = cpython_suite.source()
    if found is None:
        pytest.skip("CPython's own tests are not installed: libpython3-testsuite, or those of pyenv's Python")
    place = tmp_path / "suite"
    place.mkdir()
    importlib.invalidate_caches()
    if found.is_file():
        (place / "cpython_futures.py").symlink_to(found)
        return [importlib.import_module("cpython_futures")]
    (place / "cpython_futures").symlink_to(found)
    return [importlib.import_module(f"cpython_futures.{path.stem}") for path in sorted(found.glob("[a-z]*.py"))]


def found_in(modules, name):
    return next((getattr(module, name) for module in modules if hasattr(module, name)), None)


def classes(modules):
    """Yield a class for each of CLASSES that this Python has."""
    mixin = found_in(modules, "ExecutorMixin")
    for name in cpython_suite.CLASSES:
        tests = found_in(modules, name)
        bases = (tests,) if issubclass(tests, mixin) else (tests, mixin)
        yield type(f"Balsam{name}", (*bases, unittest.TestCase), OWN)


def test_cpythons_own_tests_of_executors_pass(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [str(tmp_path / "suite"), *sys.path])
    suite, skipped = unittest.TestSuite(), []
    for made in classes(modules(tmp_path)):
        for name in unittest.TestLoader().getTestCaseNames(made):
            if name in cpython_suite.SKIPPED:
                skipped.append(f"{made.__name__}.{name}: {cpython_suite.SKIPPED[name]}")
            else:
                suite.addTest(made(name))
    bench = Bench(tmp_path, BALSAM_IDLE_TTL_S="60")
    with use(bench.db):
        bench.launch("--nodes", "5")
        try:
            with capsys.disabled():
                done = unittest.TextTestRunner(stream=sys.stderr, verbosity=0, failfast=False).run(suite)
        finally:
            bench.close()
    print("\n".join(["Left out:", *skipped]))
    assert done.wasSuccessful(), [test for test, _ in done.failures + done.errors]
    assert done.testsRun >= 30
