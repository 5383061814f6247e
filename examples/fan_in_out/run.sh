#!/usr/bin/env bash
# Five jobs in the shape of a diamond, which hand files on:  run.sh [DIRECTORY]
# Everything goes into DIRECTORY, by default into a temporary one that is gone in the end. Exits with 1 if the sum is wrong.
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
for name in generate simulate reduce; do
    balsam app --name $name --executable $name.py
done
python diamond.py
balsam ls --tree

balsam launcher --consume-all --job-mode serial

balsam ls
ls -l "$BALSAM_DB_PATH"/data/E_*    # links to what B, C and D printed
cat "$BALSAM_DB_PATH"/data/E_*/E.out
grep -qx "The sum over B.out C.out D.out is 9455" "$BALSAM_DB_PATH"/data/E_*/E.out
