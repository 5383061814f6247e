"""In a batch job of two nodes: starts who.py in every way that a launcher there could, and prints a line of JSON for each.

    ways.py batch|step NAME=COMMAND=PYTHON…

`step` is for ranks of an MPI program or tasks of a step: the first does something, in two of the three layouts.
"""

import json
import os
import subprocess
import sys

from balsam_lite.core.settings import Settings
from balsam_lite.launcher.mpirun import find, scrubbed
from balsam_lite.launcher.mpirun.flavours import RankLayout
from balsam_lite.launcher.mpirun.starter import Starter

WHO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "who.py")
LAYOUTS = (RankLayout(("node1", "node2"), 2, 2), RankLayout(("node2",), 1, 2), RankLayout((), 2, 3))


def main() -> None:
    """Each command, with each layout, in the environment that a launcher gives to its jobs."""
    place, *ways = sys.argv[1:]
    environ = {os.fsdecode(name): os.fsdecode(value) for name, value in scrubbed(os.environb).items()}
    if place == "step" and any(
        os.environ.get(name, "0") != "0" for name in ("SLURM_PROCID", "PMI_RANK", "OMPI_COMM_WORLD_RANK")
    ):
        return
    for way in ways:
        name, command, python = way.split("=")
        starter = find(Settings(MPI_FLAVOUR=name, MPI_RUN_EXE=command.replace("+", " --mpi=")), environ)
        assert isinstance(starter, Starter), starter
        for layout in LAYOUTS if place == "batch" else LAYOUTS[::2]:
            done = subprocess.run(
                [*starter.prefix(layout), python, WHO],
                env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            who = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            found = sorted((one["rank"], one["size"], one["host"]) for one in who)
            print(json.dumps([name, layout.hosts, found, done.stderr if done.returncode else ""]), flush=True)


main()
