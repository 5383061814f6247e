"""Which structure has the lowest energy, in each workflow? Exits with 1 if a job has none."""

import sys

from balsam_lite.launcher.dag import BalsamJob

finished = BalsamJob.objects.filter(application="fhi-aims", state="JOB_FINISHED")
for workflow in finished.order_by("workflow").values_list("workflow", flat=True).distinct():
    best = finished.filter(workflow=workflow).order_by("data__energy").first()
    print(f"{workflow}: {best.name} with {best.data['energy']:.3f} eV")

bound = finished.filter(data__energy__lt=-18).count()
print(f"{bound} of {finished.count()} structures are below -18 eV")

missing = BalsamJob.objects.filter(data__energy__isnull=True).count()
if missing:
    sys.exit(f"{missing} jobs have no energy")
