"""An MPI program of three ranks: survive.py exit|kill. Rank 1 ends at once; the others then talk, and rank 0 reads stdin."""

import os
import signal
import sys
import time

from mpi4py import MPI

signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # Hydra tells the ranks of the death of one by this
world = MPI.COMM_WORLD
world.Barrier()
if world.rank == 1:
    if sys.argv[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(5)
time.sleep(0.5)
if world.rank == 0:
    world.send("ping", dest=2)
    print("heard", world.recv(source=2), "and read", sys.stdin.readline().strip(), flush=True)
else:
    world.recv(source=0)
    world.send("pong", dest=0)
time.sleep(0.5)  # Open MPI now and then loses what a rank has written just before its end
os._exit(0)  # MPI_Finalize would wait for rank 1
