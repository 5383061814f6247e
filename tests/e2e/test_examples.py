"""The examples run, in a directory with a blank in its name and with a fresh home, and their results are right."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Callable

import pytest
from helpers import ROOT

EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="no bash")

#: Runs a script of the examples with these arguments, and returns what it printed on stdout.
Run = Callable[..., str]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "a place"


@pytest.fixture
def run(tmp_path: Path, balsam_bin: str) -> Run:
    def run(script: str, *arguments: object) -> str:
        home = tmp_path / "home"
        home.mkdir()
        environ = {**os.environ, "HOME": str(home), "PATH": f"{balsam_bin}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
        del environ["BALSAM_HOME"]
        done = subprocess.run(
            ["bash", str(EXAMPLES / script), *map(str, arguments)],
            cwd=tmp_path, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert not (home / ".balsam").exists()
        return done.stdout

    return run


def lines_of(paths: Iterable[Path]) -> dict[str, list[str]]:
    return {path.name: path.read_text(encoding="utf-8").splitlines() for path in paths}


def test_each_example_says_what_it_shows_and_how_it_is_run() -> None:
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir()} - {"hello", "clients"}
    assert folders == {"campaign", "molecules", "fan_in_out", "hyperopt", "rescue", "workshop"}
    for folder in folders:
        text = (EXAMPLES / folder / "README.rst").read_text(encoding="utf-8")
        assert "./run.sh" in text
        assert os.access(EXAMPLES / folder / "run.sh", os.X_OK)
        named = re.findall(r"``(\w+\.py)``", text)
        assert {path.name for path in (EXAMPLES / folder).glob("*.py")} == set(named)


def test_hello(run: Run, tmp_path: Path) -> None:
    assert run("hello/demo.sh").endswith("All ten jobs have finished.\n")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]  # its temporary directory is gone


def test_molecules(run: Run, place: Path) -> None:
    printed = run("molecules/run.sh", place).splitlines()
    assert "Created 12 new jobs in DB" in printed
    assert "JOB_FINISHED (12 BalsamJobs)" in printed
    assert "(10 more BalsamJobs not shown...)" in printed
    assert printed[-4:-1] == [f"gdb7-m4101-i1-c{n}: gdb7-m4101-i1-c{n}-d0 with -18.520 eV" for n in (1, 2, 3)]
    outputs = lines_of(place.glob("db/data/gdb7-m4101-i1-c2/*/*.out"))
    assert sorted(outputs) == [f"gdb7-m4101-i1-c2-d{n}.out" for n in range(4)]
    for name, lines in outputs.items():
        assert lines[0].startswith(f"Structure: {name[:-4]}.xyz ")
        assert lines[1] == "Threads: 1"
    energies = [float(lines[2].split()[2]) for _, lines in sorted(outputs.items())]
    assert energies == sorted(energies)  # the more distorted, the higher


def test_fan_in_out(run: Run, place: Path) -> None:
    run("fan_in_out/run.sh", place)
    (folder,) = place.glob("db/data/E_*")
    assert lines_of(folder.glob("*")) == {
        **{f"{name}.out": [str(sum(i * i for i in range(n + 1, n + 11)))] for name, n in zip("BCD", (0, 10, 20))},
        "E.out": ["The sum over B.out C.out D.out is 9455"],
    }
    assert {path.name for path in folder.iterdir() if path.is_symlink()} == {"B.out", "C.out", "D.out"}
    assert {path.name for path in place.glob("db/data/C_*/*")} == {"C.inp", "C.out"}


def test_campaign(run: Run, place: Path) -> None:
    printed = run("campaign/run.sh", place)
    assert "Would add 12 jobs, 2 applications, 9 dependencies (pendulum)" in printed
    assert "Added 8 jobs, 0 applications, 6 dependencies (pendulum)" in printed
    outputs = lines_of(place.glob("db/data/pendulum/mean-*/mean-*.out"))
    assert outputs["mean-length1.out"] == ["3 periods, mean 2.0604 s"]
    assert outputs.keys() == {f"mean-length{length}.out" for length in ("0.5", "1", "1.5", "2", "2.5")}


def test_rescue(run: Run, place: Path) -> None:
    printed = run("rescue/run.sh", place)
    outputs = lines_of(place.glob("db/data/rescue/*/*.out"))
    assert outputs["simulation.out"] == ["Starting at step 0 of 50"]
    first, last = outputs["simulation-rescue.out"]
    step = re.fullmatch(r"Starting at step (\d+) of 50", first)
    assert step
    assert 20 <= int(step[1]) < 50
    assert last == f"Total: {sum(i * i for i in range(51))}"
    assert outputs["analysis.out"] == [f"simulation-rescue.out says: {last}"]
    assert re.search(rf"JOB_FINISHED\] the time was up after step {step[1]}; \[simulation-rescue \| ", printed)
    # Through the link to the checkpoint nothing was written.
    (checkpoint,) = place.glob("db/data/rescue/simulation_*/checkpoint.json")
    assert json.loads(checkpoint.read_text())["step"] == int(step[1])


@pytest.fixture
def searched(run: Run, place: Path) -> Path:
    printed = run("hyperopt/run.sh", place)
    assert "JOB_FINISHED (61 BalsamJobs)" in printed
    assert "60 evaluations, 7 at once" in printed
    return place


def test_hyperopt(searched: Path) -> None:
    found = json.loads((searched / "results.json").read_text())
    losses = [result["loss"] for result in found["evaluations"]]
    assert (len(losses), found["failed"]) == (60, 0)
    assert 0.1 <= min(losses) < 0.6
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])  # it learns: the first ones are random

    pytest.importorskip("matplotlib")
    picture = searched / "search.png"
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture.stat().st_size > 10_000


def test_the_plot_says_when_there_is_no_matplotlib(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "hyperopt" / "plot.py"), "results.json", "search.png"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 3
    assert "pip install 'balsam_lite[plot]'" in done.stderr


def test_workshop(run: Run, place: Path) -> None:
    printed = run("workshop/run.sh", place)
    site = place / "thetagpu_tutorial" / "data" / "demo"
    assert (site / "hello" / "job.out").read_text() == "Hello, world! CUDA_VISIBLE_DEVICES=\n"
    greetings = [(site / f"hello_multi{n}" / "job.out").read_text() for n in range(8)]
    said = [re.fullmatch(r"Hello, world (\d)!! CUDA_VISIBLE_DEVICES=(\d)\n", text) for text in greetings]
    assert [found.group(1) for found in said if found] == list("01234567")
    assert sorted(found.group(2) for found in said if found) == list("01234567")  # eight jobs, eight GPUs
    chain = [(site / f"hello_deps{n}" / "job.out").stat().st_mtime_ns for n in range(8)]
    assert chain == sorted(chain)
    assert "JOB_FINISHED" in printed
    assert "All jobs of the page have finished.\n" in printed
    for plot in ("throughput.png", "utilization.png"):
        assert (place / plot).read_bytes().startswith(b"\x89PNG")
    for name, folder in (("cooley_tutorial", "cooleylogin2"), ("tom_laptop", "tom_laptop")):
        assert (place / name / "data" / "multisite" / folder / "job.out").read_text().startswith(f"Hello, {folder}!")
