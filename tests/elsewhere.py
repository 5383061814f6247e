"""Other processes, and small file systems, for tests of the database."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BALSAM = [sys.executable, "-m", "balsam_lite.cli"]

_PREAMBLE = """
import os, sys, time
from balsam_lite.db.engine import directories
from balsam_lite.db.engine.connection import Database
db = directories.open_database(sys.argv[1])
def add_one():
    with db.write() as cx:
        n = cx.execute("SELECT n FROM counter").fetchone()[0]
        cx.execute("UPDATE counter SET n = ?", (n + 1,))
def say(text):
    print(text, flush=True)
"""


def environment() -> dict[str, str]:
    """Ours, and where `balsam_lite` is found."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def python_argv(code: str, directory: str) -> list[str]:
    """The words of `python`, to be run elsewhere."""
    return [sys.executable, "-c", f"{_PREAMBLE}\n{code}", directory]


def python(code: str, directory: str, **environ: str) -> subprocess.Popen[str]:
    """A process that runs `code` with `db`, `add_one` and `say` at hand."""
    return subprocess.Popen(
        python_argv(code, directory),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment(), **environ},
    )


def _lose_roots_rights() -> None:
    """Let permissions hold for root, too, in what this process starts: without CAP_DAC_OVERRIDE and its like (prctl(2))."""
    for capability in (1, 2, 3):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


@contextmanager
def read_only(directory: Path | str) -> Iterator[None]:
    """Take the right to write from the directory and all below it. Root has to be stopped by `as_reader`."""
    places = [str(directory), *map(str, Path(directory).rglob("*"))]
    modes = {place: os.stat(place).st_mode for place in places}
    for place, mode in modes.items():
        os.chmod(place, mode & ~0o222)
    try:
        yield
    finally:
        for place, mode in modes.items():
            if os.path.exists(place):
                os.chmod(place, mode)


def as_reader(words: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a program that permissions restrict, even if root runs the tests."""
    stop = _lose_roots_rights if os.geteuid() == 0 else None
    env = {**environment(), **environ}
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, timeout=60, preexec_fn=stop)


def balsam(directory: Path | str | None, *words: str, timeout: float = 60, **environ: str) -> tuple[int, str, str]:
    """A command line; its exit code, stdout and stderr. Without a directory: no `--db`."""
    options = [] if directory is None else ["--db", str(directory)]
    done = subprocess.run(
        [*BALSAM, *options, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=timeout,
        env={**environment(), **environ},
    )
    return done.returncode, done.stdout, done.stderr


@contextmanager
def small_disk(point: Path, size: str = "1m") -> Iterator[Path]:
    """A file system of that size in the memory of this host. Only root may mount one."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    point.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(point)], capture_output=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr!r}")
    try:
        yield point
    finally:
        subprocess.run(["umount", "--lazy", str(point)], check=True)


def fill(directory: Path) -> Path:
    """Leave no free block on the file system of `directory`; returns the file that takes them."""
    filler = directory / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    return filler
