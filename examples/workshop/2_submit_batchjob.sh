#!/bin/bash

# A batch job, which runs the jobs with that tag and no others
balsam queue submit \
    -n 1 -t 10 -q training-gpu -A training-gpu \
    --site thetagpu_tutorial \
    --tag workflow=hello \
    --job-mode mpi

# It is in the queue already, and soon it runs
balsam queue ls

balsam job ls --tag workflow=hello
