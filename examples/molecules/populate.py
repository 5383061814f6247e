"""Add a job for each .xyz file below an inbox; its folder becomes the workflow."""

import os
import sys

from balsam_lite.launcher.dag import BalsamJob


def prep_job(name: str, workflow: str, xyz_path: str) -> BalsamJob:
    return BalsamJob(
        name=name,
        workflow=workflow,
        stage_in_url=xyz_path,
        application="fhi-aims",
        ranks_per_node=1,  # 64 and cpu_affinity="depth" for the real one
        environ_vars="OMP_NUM_THREADS=1",
    )


inbox_path = sys.argv[1]
new_jobs = []
for dirpath, _, filenames in os.walk(inbox_path):
    xyz_files = [f for f in filenames if f.endswith(".xyz")]
    for f in xyz_files:
        name = os.path.splitext(f)[0]
        workflow = os.path.basename(dirpath)
        xyz_path = os.path.join(dirpath, f)
        job = prep_job(name, workflow, xyz_path)
        new_jobs.append(job)

BalsamJob.objects.bulk_create(new_jobs)
print("Created", len(new_jobs), "new jobs in DB")
