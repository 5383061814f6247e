#!/usr/bin/env python
from datetime import datetime,timedelta
from balsam_lite.api import EventLog

# What happened in the last 24 hours
yesterday = datetime.utcnow() - timedelta(days=1)
for evt in EventLog.objects.filter(timestamp_after=yesterday):
    print("Job:",evt.job_id)  # the job's number
    print(evt.timestamp)      # when (UTC)
    print(evt.from_state)     # the state that it left
    print(evt.to_state)       # the state that it entered
    print(evt.data)           # whatever else there is to say
