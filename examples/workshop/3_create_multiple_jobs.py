#!/usr/bin/env python
from balsam_lite.api import Job

jobs = [
    Job( site_name="thetagpu_tutorial",
         app_id="Hello",
         workdir=f"demo/hello_multi{n}",
         parameters={"say_hello_to": f"world {n}!"},
         tags={"workflow":"hello_multi"},
         node_packing_count=8,  # eight of them on a node
         gpus_per_rank=1)       # and a GPU for each
    for n in range(8)
]

# All in one transaction; what comes back are the jobs as they are in the DB
jobs = Job.objects.bulk_create(jobs)
