"""Postprocess script: take the energy out of the job's output and keep it in the DB, where it can be asked for."""

import re

from balsam_lite.launcher.dag import current_job

output = current_job.read_file_in_workdir(f"{current_job.name}.out")
found = re.search(r"^Total energy: (\S+) eV$", output, re.MULTILINE)
if not found:
    raise SystemExit("There is no energy in the output.")  # the job is FAILED, and its history says this
current_job.data["energy"] = float(found[1])
current_job.save()
print("Energy:", found[1])
