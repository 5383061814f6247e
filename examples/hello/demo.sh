#!/usr/bin/env bash
# Hello World: ten jobs, from an empty directory to their histories. `balsam` must be on PATH; `make demo` sees to that.
# Everything happens in a temporary directory, which is gone in the end. Exits with 1 if a job did not finish.
set -euo pipefail

place=$(mktemp -d)
export BALSAM_HOME="$place/home"     # instead of ~/.balsam
export BALSAM_IDLE_TTL_S=1           # the launcher leaves one second after the last job
unset BALSAM_DB_PATH

leave() {
    code=$?
    # The launcher still writes there until it is done.
    for _ in {1..100}; do
        balsam ls queues --json 2> /dev/null | grep -q '"id"' || break
        sleep 0.1
    done
    rm -rf "$place"
    exit "$code"
}
trap leave EXIT

cd "$place"
balsam init ./test-db
source balsamactivate test-db

balsam app --name say-hello --executable "echo Hello,"

balsam job --name test1 --workflow test --app say-hello --args "world!" --yes
for i in {2..10}; do
    balsam job --name "test$i" --workflow test --app say-hello --args "world $i!" --yes > /dev/null
done
balsam ls

balsam submit-launch -n 2 -t 5 -q debug -A demo --job-mode=serial

finished() { balsam ls --state JOB_FINISHED --json | grep -c '"job_id"' || true; }
for _ in {1..300}; do
    [ "$(finished)" -lt 10 ] || break
    sleep 0.1
done

balsam ls
balsam ls --history
cat test-db/data/test/test5_*/test5.out

if [ "$(finished)" -ne 10 ]; then
    echo "Not all jobs have finished. What the launcher said:" >&2
    balsam log --no-follow -n 50 >&2
    exit 1
fi
echo "All ten jobs have finished."
