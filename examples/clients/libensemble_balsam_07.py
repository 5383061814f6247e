"""An ensemble of libEnsemble 1.0 to 1.5 whose simulations are jobs of a site: python libensemble_balsam_07.py"""

import os

import balsam_lite.compat  # noqa: F401  # before anything that imports balsam
import numpy as np
from balsam.api import ApplicationDefinition, Site
from libensemble import Ensemble
from libensemble.executors.balsam_executor import BalsamExecutor
from libensemble.gen_funcs.sampling import uniform_random_sample
from libensemble.message_numbers import TASK_FAILED, WORKER_DONE
from libensemble.specs import ExitCriteria, GenSpecs, LibeSpecs, SimSpecs
from libensemble.tools import add_unique_random_streams

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "norm.sh")


class Norm(ApplicationDefinition):
    site = "laptop"
    command_template = PROGRAM + " {{ x }} {{ y }} {{ delay }}"
    parameters = {"delay": {"required": False, "default": "0"}}


def simulate(points, persis_info, sim_specs, libE_info):
    """Run the application for one point, and return its output."""
    out = np.zeros(1, dtype=sim_specs["out"])
    x, y = points["x"][0]
    name = f"point{libE_info['H_rows'][0]}"
    executor = libE_info["executor"]
    task = executor.submit(app_name="norm", app_args={"x": f"{x:.6f}", "y": f"{y:.6f}"}, workdir=name)
    task.wait(timeout=60)
    if task.state != "FINISHED":
        return out, persis_info, TASK_FAILED
    site = Site.objects.get("laptop")
    out["f"] = float((task.process.resolve_workdir(site.path / "data") / "job.out").read_text())
    return out, persis_info, WORKER_DONE


def main():
    executor = BalsamExecutor()
    executor.register_app(Norm, app_name="norm")
    site = Site.objects.get("laptop")
    allocation = executor.submit_allocation(
        site_id=site.id, num_nodes=2, wall_time_min=5, job_mode="serial", optional_params={"persistent": "yes"}
    )  # persistent: its launcher stays when no job waits

    ensemble = Ensemble(
        executor=executor,
        libE_specs=LibeSpecs(nworkers=2, comms="local", disable_log_files=True),
        sim_specs=SimSpecs(sim_f=simulate, inputs=["x"], out=[("f", float)]),
        gen_specs=GenSpecs(
            gen_f=uniform_random_sample,
            outputs=[("x", float, (2,))],
            user={"gen_batch_size": 4, "lb": np.array([-3, -2]), "ub": np.array([3, 2])},
        ),
        exit_criteria=ExitCriteria(sim_max=8),
        persis_info=add_unique_random_streams({}, 3),
    )
    history, _, flag = ensemble.run()
    done = history[history["sim_ended"]]
    error = np.abs(done["f"] - (done["x"] ** 2).sum(axis=1)).max()
    print(f"{len(done)} simulations, exit flag {flag}, largest error {error:.0e}")

    # A task can also be polled and killed.
    task = executor.submit(app_name="norm", app_args={"x": 1, "y": 1, "delay": 60}, wait_on_start=True)
    print("started:", task.state)
    task.kill()
    print("killed:", task.state, task.finished)
    print("revoked:", executor.revoke_allocation(allocation))


if __name__ == "__main__":
    main()
