#!/usr/bin/env bash
# The whole page, file after file:  run.sh [DIRECTORY]
# Everything goes into DIRECTORY, by default into a temporary one that is gone in the end. Exits with 1 if a job did not finish.
# `balsam` and the `python` that has balsam_lite must be on PATH; without matplotlib there are no plots.
set -eu

if [ $# -gt 0 ]; then
    mkdir -p "$1"
    place=$(cd "$1" && pwd)
else
    place=$(mktemp -d)
    temporary=$place
fi
export BALSAM_HOME="$place/home"    # instead of ~/.balsam
export BALSAM_SCHEDULER_CLASS=LocalScheduler    # also where there is a batch system: this is to run here and now
unset BALSAM_DB_PATH
here=$(cd "$(dirname "$0")" && pwd)
sites="thetagpu_tutorial thetaknl_tutorial cooley_tutorial tom_laptop"
cd "$place"

leave() {
    code=$?
    for site in $sites; do
        [ ! -d "$site" ] || balsam site stop "$site" || true
    done
    [ -z "${temporary:-}" ] || rm -rf "$temporary"
    exit "$code"
}
trap leave EXIT

# Until so many jobs with that tag have finished, two minutes at most.
wait_for() {
    for _ in $(seq 600); do
        finished=$(balsam job ls --site all --tag "workflow=$1" --state JOB_FINISHED --json | grep -c '"id"' || true)
        [ "$finished" -lt "$2" ] || return 0
        sleep 0.2
    done
    echo "Only $finished of $2 jobs with the tag workflow=$1 have finished." >&2
    balsam job ls --site all --tag "workflow=$1" >&2
    return 1
}

bash "$here/setup.sh" thetagpu_tutorial
cp "$here/hello.py" .
python hello.py

bash "$here/1_create_job.sh"
bash "$here/2_submit_batchjob.sh"
wait_for hello 1
cat thetagpu_tutorial/data/demo/hello/job.out

python "$here/3_create_multiple_jobs.py"
balsam queue submit -n 1 -t 10 -q training-gpu -A training-gpu --site thetagpu_tutorial --tag workflow=hello_multi --job-mode mpi
wait_for hello_multi 8
cat thetagpu_tutorial/data/demo/hello_multi*/job.out

python "$here/4_create_multiple_jobs_with_deps.py"
wait_for hello_deps 8
cat thetagpu_tutorial/data/demo/hello_deps*/job.out

python "$here/5_monitor_jobs.py"
if python -c "import matplotlib" 2> /dev/null; then
    MPLBACKEND=agg python "$here/6_analytics.py"
else
    echo "No plots: there is no matplotlib." >&2
fi

for site in thetaknl_tutorial cooley_tutorial tom_laptop; do
    bash "$here/setup.sh" "$site"
    sed "s/thetagpu_tutorial/$site/" "$here/hello.py" > hello_there.py
    python hello_there.py
done
bash "$here/7_create_jobs_at_multiple_sites.sh"
wait_for hello_multisite 4

balsam site ls
echo "All jobs of the page have finished."
