"""Postprocess script: when the time was up, let a rescue job go on from the checkpoint, and the children wait for that."""

import json
import os

from balsam_lite.launcher import dag

job = dag.current_job
if dag.TIMEOUT and not os.path.exists("checkpoint.json"):
    job.update_state("RESTART_READY", "the time was up before the first checkpoint")
elif dag.TIMEOUT:
    with open("checkpoint.json", encoding="utf-8") as file:
        step = json.load(file)["step"]
    name = f"{job.name}-rescue"
    waiting = list(job.get_children().exclude(name=name))
    # If this script was cut short once, the rescue job is there already. It is a copy of this job and its child, so
    # `input_files` brings it our checkpoint.
    rescue = job.get_children().filter(name=name).first() or dag.spawn_child(name=name, input_files="checkpoint.json")
    for child in waiting:
        child.set_parents([parent for parent in child.get_parents() if parent != job] + [rescue])
    # Only now: a job that is JOB_FINISHED releases its children.
    job.update_state("JOB_FINISHED", f"the time was up after step {step}; {rescue.cute_id} goes on")
