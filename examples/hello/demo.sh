#!/usr/bin/env bash
# Hello World: ten jobs, from an empty directory to their histories. `balsam` must be on PATH; `make demo` sees to that.
# Everything happens in a temporary directory, which is gone in the end. Exits with 1 if a job did not finish.
set -euo pipefail

place=$(mktemp -d)
export BALSAM_HOME="$place/home"     # instead of ~/.balsam
export BALSAM_IDLE_TTL_S=1           # the launcher leaves one second after the last job
export BALSAM_SCHEDULER_CLASS=LocalScheduler    # also where there is a batch system: this is to run here and now
unset BALSAM_DB_PATH

# Until the launch has left the queue, half a minute at most.
wait_for_launch() {
    for _ in {1..150}; do
        balsam ls queues --json 2> /dev/null | grep -q '"id"' || break
        sleep 0.2
    done
}

leave() {
    code=$?
    wait_for_launch    # it writes into the directory that is to go
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

wait_for_launch

balsam ls
balsam ls --history
cat test-db/data/test/test5_*/test5.out || true

finished=$(balsam ls --state JOB_FINISHED --json | grep -c '"job_id"' || true)
if [ "$finished" -ne 10 ]; then
    echo "Only $finished of ten jobs have finished. What the launcher said:" >&2
    balsam log --no-follow -n 50 >&2
    exit 1
fi
echo "All ten jobs have finished."
