#!/usr/bin/env bash
# A campaign in one file: nine pendulums and their means:  run.sh [DIRECTORY]
# Everything goes into DIRECTORY, by default into a temporary one that is gone in the end. Exits with 1 if a mean is missing.
# `balsam` and the `python` that has balsam_lite must be on PATH.
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
balsam apply campaign.yaml --dry-run
balsam apply campaign.yaml
balsam launcher --consume-all --job-mode serial
cat "$BALSAM_DB_PATH"/data/pendulum/mean-*/mean-*.out

# Two more lengths: only the jobs that are new are added.
sed 's/1\.5:0\.5/2.5:0.5/' campaign.yaml > "$place/longer.yaml"
sed -i "s#executable: #executable: $PWD/#" "$place/longer.yaml"
balsam apply "$place/longer.yaml"
balsam launcher --consume-all --job-mode serial
[ "$(cat "$BALSAM_DB_PATH"/data/pendulum/mean-*/mean-*.out | grep -c '3 periods')" = 5 ]
