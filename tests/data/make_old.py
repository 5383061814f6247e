"""Make `schema_N.sql`: a DB as an old version left it, of schema version N, with a launcher killed at work.

    git worktree add --detach OLD COMMIT        (N = 1: 02feb9f, 2: 2d42f76, 3: 102d753, 4: 5564a1e, 5: d833e84,
    6: 6191336, 7: 753bbbf)
    unshare --uts sh -c 'hostname laptop; PYTHONPATH=OLD python make_old.py N'

To be run in a directory without a `balsam_lite`, as Python looks there first. It runs that program's own commands in
/tmp/old-balsam and writes the dump next to this file.
"""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

WORK = Path("/tmp/old-balsam")
DB = WORK / "db"
SLOW_AT_FIRST = "test $BALSAM_ATTEMPT -gt 1 || sleep 60"


def balsam(*words: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "balsam_lite.cli", *words], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def launcher(*words: str, stop: "signal.Signals | None" = None, when: str = "0") -> None:
    """Run a launcher until it has nothing to do, or send it `stop` as soon as that query returns true."""
    command = [sys.executable, "-m", "balsam_lite.cli", "launcher", "--job-mode", "serial", "--nodes", "2", *words]
    process = subprocess.Popen(command)
    while process.poll() is None:
        if stop and query(when):
            process.send_signal(stop)
        time.sleep(0.1)


def query(sql: str) -> object:
    cx = sqlite3.connect(DB / "balsam.sqlite3")
    try:
        return cx.execute(f"SELECT {sql}").fetchone()[0]
    finally:
        cx.close()


def dump(version: int) -> None:
    cx = sqlite3.connect(DB / "balsam.sqlite3")
    assert cx.execute("PRAGMA user_version").fetchone() == (version,)
    for column in ("job.created", "event.time", "lease.opened", "lease.heartbeat", "lease.closed", "batch_job.created"):
        table, name = column.split(".")
        cx.execute(f"UPDATE {table} SET {name} = {name} - 200 * 86400 * 1000000")  # none of it is of today
    text = "\n".join([*cx.iterdump(), f"PRAGMA user_version = {version};\n"])
    cx.close()
    (Path(__file__).parent / f"schema_{version}.sql").write_text(text, encoding="utf-8")


def main(version: int) -> None:
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    os.environ.update(HOME=str(WORK), BALSAM_DB_PATH=str(DB), BALSAM_SCHEDULER_CLASS="LocalScheduler", BALSAM_IDLE_TTL_S="1")
    balsam("init", str(DB))
    balsam("app", "--name", "sh", "--executable", "bash -c", "--description", "a shell's line")
    balsam("app", "--name", "staged", "--executable", "bash -c", "--preprocess", "bash -c true", "--postprocess", "true")
    from balsam_lite.launcher import dag

    def add(name: str, line: str, workflow: str = "first", **fields: object) -> object:
        return dag.add_job(**{"name": name, "workflow": workflow, "application": "sh", "args": f"'{line}'", **fields})

    kept = {"data": {"x": [1, "ü", None]}, "environ_vars": {"A": "1=2"}, "description": 'it\'s "kept"'}
    done = add("done", "echo done > done.txt", tags={"size": "big", "colour": "red"}, **kept)
    add("child-done", "cat done.txt", parents=[done])
    late = add("child-late", "true", "later", parents=[done], tags={"size": "small"})  # READY when its parent is put back
    add("grandchild-late", "true", "later", parents=[late])
    add("child-timed-out", SLOW_AT_FIRST, "second", parents=[done])
    failed = add("failed", "exit 3", post_error_handler=False)
    add("child-failed", "true", parents=[failed])
    killed = add("killed", "true", "later")
    if version > 1:
        add("staged", "true", application="staged")
    launcher("--wf-filter", "first")
    launcher("--wf-filter", "second", stop=signal.SIGTERM, when="count(*) FROM job WHERE state = 'RUNNING'")
    balsam("killjob", "--id", str(killed.job_id), "--yes")
    dag.BalsamJob.objects.get(name="done").update_state("RESTART_READY")
    running = [add(f"running{i}", SLOW_AT_FIRST, "third") for i in range(2)]
    add("child-running", "true", "third", parents=running)
    add("waiting", "true", "third", priority=-1)
    add("no-wait", "true", "later", parents=running, wait_for_parents=False)
    dag.BalsamJob.objects.bulk_create([dag.BalsamJob(name=f"bulk{i}", application="sh", args="true") for i in range(5)])
    balsam("submit-launch", "-n", "1", "-t", "5", "-q", "none", "--job-mode", "serial", "--wf-filter", "nothing")
    for _ in range(300):
        if query("count(*) FROM lease WHERE closed IS NOT NULL") == 3:
            break
        time.sleep(0.1)
    launcher("--wf-filter", "third", stop=signal.SIGKILL, when="count(*) = 2 FROM job WHERE state = 'RUNNING'")
    dump(version)


main(int(sys.argv[1]))
