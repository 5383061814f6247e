#!/bin/sh
# All benchmarks, one JSON line each on stdout (`make bench`). Modest sizes, some minutes; FULL=1 takes those of the goals,
# half an hour or so on a quiet machine. PYTHON is an interpreter that has balsam_lite installed; DIR is where to work.
set -eu
here=$(dirname "$0")
python=${PYTHON:-python3}

if [ "${FULL:-0}" = 1 ]; then
    spawns=10000 true="10000 --repeat 3 --sleeps 6400" hops="200 --repeat 5" jobs=1200000 scaling="" workshop=""
    flow="--repeat 5"
else
    spawns=2000 true="2000 --sleeps 640" hops="100" jobs=50000 scaling="--nodes 32 256 --short 20000"
    workshop="--create 20000 --events 200000"
    flow="--hops 50 --crowd 300 --waiting 20000 --idle 5"
fi

run() {
    script=$1
    shift
    "$python" "$here/$script" "$@" ${DIR:+--dir "$DIR"}
}

# shellcheck disable=SC2086  # several words are meant
{
    run limit.py $spawns
    run startup.py
    run walk.py
    run latency.py --hops $hops
    run dataflow.py $flow
    run calls.py
    run throughput.py $true
    run large_writes.py --jobs $((jobs / 3))
    run scale.py --jobs $jobs
    run intake.py --jobs $((jobs / 10)) --memory $((jobs / 2))
    run archives.py --jobs $((jobs / 10))
    run answers.py --jobs $jobs
    run service.py --jobs $jobs
    run workshop.py --jobs $jobs $workshop
    run shared.py
    if command -v mpiexec > /dev/null; then run mpi.py; fi
    if [ -x "$(dirname "$(command -v "$python")")/mpiexec" ]; then run ensemble.py $spawns; fi
    run weak_scaling.py $scaling
}
