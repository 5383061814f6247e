"""An MPI program: each rank prints a line of JSON that says who and where it is. No rank ends before all have begun."""

import json
import os

from mpi4py import MPI

world = MPI.COMM_WORLD
facts = {
    "rank": world.rank,
    "size": world.size,
    "host": os.uname().nodename,
    "cpus": sorted(os.sched_getaffinity(0)),
    "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
}
for line in world.gather(json.dumps(facts), root=0) or ():
    print(line)
