#!/usr/bin/env bash
# A simulation that takes longer than its launcher has time is rescued, and the next launcher goes on:  run.sh [DIRECTORY]
# Everything goes into DIRECTORY, by default into a temporary one that is gone in the end. Exits with 1 if the result is
# wrong. `balsam` and the `python` that has balsam_lite must be on PATH.
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

id_of() {
    balsam ls --name "$1" --json | grep -o '"job_id": "[^"]*"' | cut -d'"' -f4
}

balsam init "$BALSAM_DB_PATH"
balsam app --name simulate --executable simulate.py --postprocess rescue.py
balsam app --name analyse --executable analyse.py
balsam job --name simulation --workflow rescue --application simulate --args 50 --post-handle-timeout --yes > /dev/null
balsam job --name analysis --workflow rescue --application analyse --input-files "*.out" \
    --parent "$(id_of simulation)" --yes > /dev/null
balsam ls --tree

# The simulation takes 5 s. After two of them this launcher has to go, as when a batch job's time is up.
balsam launcher --consume-all --job-mode serial &
until grep -qs '"step": 20' "$BALSAM_DB_PATH"/data/rescue/simulation_*/checkpoint.json; do
    kill -0 $!    # or it will never come
    sleep 0.05
done
kill -TERM $!
wait $!
balsam ls

balsam launcher --consume-all --job-mode serial
balsam ls --tree
balsam ls --history
cat "$BALSAM_DB_PATH"/data/rescue/*/*.out

grep -qx "simulation-rescue.out says: Total: 42925" "$BALSAM_DB_PATH"/data/rescue/analysis_*/analysis.out
