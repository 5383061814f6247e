"""The MPI of this test environment: PyPI's mpich, beside the interpreter, or whatever `mpiexec` is on PATH."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


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
