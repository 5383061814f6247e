#!/usr/bin/env python
from balsam_lite.api import models
from balsam_lite.api import EventLog,Job
from balsam_lite.analytics import throughput_report
from balsam_lite.analytics import utilization_report
from matplotlib import pyplot as plt

# The jobs of the application Hello, and all that happened to them
app = models.App.objects.get(site_name="thetagpu_tutorial",name="Hello")
jl = Job.objects.filter(app_id=app.id)
events = EventLog.objects.filter(job_id=[job.id for job in jl])

# How many were done, and when
times, done_counts = throughput_report(events, to_state="JOB_FINISHED")

t0 = min(times)
elapsed_minutes = [(t - t0).total_seconds() / 60 for t in times]
fig = plt.Figure()
plt.step(elapsed_minutes, done_counts, where="post")
plt.xlabel("Elapsed time (minutes)")
plt.ylabel("Jobs completed")
plt.savefig("throughput.png")

# How many nodes they kept busy
times, util = utilization_report(events, node_weighting=True)

t0 = min(times)
elapsed_minutes = [(t - t0).total_seconds() / 60 for t in times]
plt.step(elapsed_minutes, util, where="post")
plt.xlabel("Elapsed time (minutes)")
plt.ylabel("Utilization")
plt.savefig("utilization.png")
