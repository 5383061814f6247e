"""An MPI program whose first rank starts another program: nest.py untouched|scrubbed COMMAND. Exits as that does."""

import os
import shlex
import subprocess
import sys

from mpi4py import MPI

from balsam_lite.launcher import mpirun

how, command = sys.argv[1:]
code = 0
if MPI.COMM_WORLD.rank == 0:
    environ = dict(os.environb) if how == "untouched" else mpirun.scrubbed(os.environb)
    code = subprocess.run(shlex.split(command), env=environ, stdin=subprocess.DEVNULL, timeout=40).returncode
MPI.COMM_WORLD.Barrier()
sys.stdout.flush()
if MPI.COMM_WORLD.rank == 0 and code:
    os._exit(1)
