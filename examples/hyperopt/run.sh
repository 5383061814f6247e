#!/usr/bin/env bash
# A search in which a master job adds evaluations while it runs:  run.sh [DIRECTORY]
# Everything goes into DIRECTORY, by default into a temporary one that is gone in the end. Exits with 1 if the search does
# not come to its end. `balsam` and the `python` that has balsam_lite must be on PATH.
set -eu

if [ $# -gt 0 ]; then
    mkdir -p "$1"
    place=$(cd "$1" && pwd)
else
    place=$(mktemp -d)
    trap 'rm -rf "$place"' EXIT
fi
export BALSAM_HOME="$place/home"    # instead of ~/.balsam
export BALSAM_DB_PATH="$place/db"
export BALSAM_IDLE_TTL_S=1          # the launcher leaves one second after the last job
cd "$(dirname "$0")"

balsam init "$BALSAM_DB_PATH"
balsam app --name search --executable search.py
balsam app --name train --executable train.py
balsam job --name master --workflow hyperopt --application search --args "--evaluations 60" --node-packing-count 4 \
    --url-out "$place" --stage-out-files results.json --yes > /dev/null

balsam launcher --consume-all --job-mode serial --nodes 2

BALSAM_LS_LIMIT=2 balsam ls --by-states
cat "$BALSAM_DB_PATH"/data/hyperopt/master_*/master.out
finished=$(balsam ls --state JOB_FINISHED --json | grep -c '"job_id"' || true)
if [ "$finished" -ne 61 ]; then
    echo "Only $finished of 61 jobs have finished." >&2
    exit 1
fi
python plot.py "$place/results.json" "$place/search.png" || [ $? -eq 3 ]    # 3: there is no matplotlib
