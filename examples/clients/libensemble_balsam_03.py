"""An ensemble of libEnsemble 0.8 whose simulations are jobs of a Balsam DB: python libensemble_balsam_03.py"""

import os
import sys

import balsam_lite.compat  # noqa: F401  # before anything that imports balsam
import numpy as np
from libensemble.executors.balsam_executor import BalsamMPIExecutor
from libensemble.executors.executor import Executor
from libensemble.gen_funcs.sampling import uniform_random_sample
from libensemble.libE import libE
from libensemble.message_numbers import TASK_FAILED, WORKER_DONE
from libensemble.tools import add_unique_random_streams

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "norm.sh")


def simulate(points, persis_info, sim_specs, libE_info):
    """Run the program for one point, and return its output."""
    out = np.zeros(1, dtype=sim_specs["out"])
    x, y = points["x"][0]
    task = Executor.executor.submit(app_name="norm", num_procs=1, app_args=f"{x:.6f} {y:.6f}")
    task.wait(timeout=60)
    if task.state != "FINISHED":
        return out, persis_info, TASK_FAILED
    out["f"] = float(task.process.read_file_in_workdir(f"{task.name}.out"))
    return out, persis_info, WORKER_DONE


def main():
    executor = BalsamMPIExecutor()
    executor.register_app(full_path=PROGRAM, app_name="norm", calc_type="sim")

    sim_specs = {"sim_f": simulate, "in": ["x"], "out": [("f", float)]}
    gen_specs = {
        "gen_f": uniform_random_sample,
        "out": [("x", float, (2,))],
        "user": {"gen_batch_size": 4, "lb": np.array([-3, -2]), "ub": np.array([3, 2])},
    }
    specs = {"nworkers": 2, "comms": "local", "sim_dirs_make": True}
    history, _, flag = libE(sim_specs, gen_specs, {"sim_max": 8}, add_unique_random_streams({}, 3), libE_specs=specs)

    done = history[history["returned"]]
    error = np.abs(done["f"] - (done["x"] ** 2).sum(axis=1)).max()
    print(f"{len(done)} simulations, exit flag {flag}, largest error {error:.0e}")

    # A task can also be polled and killed.
    executor.workerID = 1
    task = executor.submit(app_name="norm", num_procs=1, app_args="1 1 60", wait_on_start=True)
    print("started:", task.state)
    task.kill()
    print("killed:", task.state, task.finished)


if __name__ == "__main__":
    sys.exit(main())
