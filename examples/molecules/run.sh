#!/usr/bin/env bash
# A campaign, from an inbox of structures to their energies:  run.sh [DIRECTORY]
# Everything goes into DIRECTORY, by default into a temporary one that is gone in the end. Exits with 1 if a job did not
# finish. `balsam` and the `python` that has balsam_lite must be on PATH.
set -eu

# Until the launch has left the queue, half a minute at most.
wait_for_launch() {
    for _ in {1..150}; do
        balsam ls queues --json 2> /dev/null | grep -q '"id"' || break
        sleep 0.2
    done
}

if [ $# -gt 0 ]; then
    mkdir -p "$1"
    place=$(cd "$1" && pwd)
else
    place=$(mktemp -d)
    trap 'wait_for_launch; rm -rf "$place"' EXIT
fi
export BALSAM_HOME="$place/home"    # instead of ~/.balsam
export BALSAM_DB_PATH="$place/db"
export BALSAM_IDLE_TTL_S=1          # the launcher leaves one second after the last job
cd "$(dirname "$0")"

python make_inbox.py "$place/inbox"
balsam init "$BALSAM_DB_PATH"
balsam app --name fhi-aims --executable aims.py --postprocess keep_energy.py
python populate.py "$place/inbox"
balsam ls wf

balsam submit-launch -n 2 -t 5 -q debug -A demo --job-mode=serial
balsam ls queues
sleep 1
BALSAM_LS_LIMIT=2 balsam ls --by-states    # while it runs
wait_for_launch
BALSAM_LS_LIMIT=2 balsam ls --by-states    # and in the end

finished=$(balsam ls --state JOB_FINISHED --json | grep -c '"job_id"' || true)
if [ "$finished" -ne 12 ]; then
    echo "Only $finished of 12 jobs have finished. What the launcher said:" >&2
    balsam log --no-follow -n 50 >&2
    exit 1
fi
python results.py
