"""Many processes claim from one DB: every job goes to exactly one of them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from elsewhere import python

from balsam_lite.db.engine import directories
from balsam_lite.db.store import apps, insert

_CLAIMER = """
import json
from balsam_lite.db.store import claims, leases
from balsam_lite.core.process_table import Holder

class Slots:
    preparations = 0
    def __init__(self, free):
        self.free = free
    def fits(self, shape):
        return True
    def count(self, shape):
        return self.free
    def reserve(self, shape):
        self.free -= 1
        return object() if self.free >= 0 else None
    def describe(self, place):
        return "host/1", ""

with db.write() as cx:
    lease = leases.open_lease(cx, "launcher", Holder.current(), "", 1)
say("ready")
sys.stdin.readline()
mine = []
while True:
    with db.write() as cx:
        taken = claims.take(cx, lease, Slots(7), claims.Filter(), 2).to_run
    if not taken:
        break
    mine += [[claim.job, claim.attempt] for claim in taken]
say(json.dumps([lease, mine]))
"""


@pytest.mark.parametrize(("access", "processes", "jobs"), [("local", 8, 500), ("shared", 8, 120)])
def test_each_job_is_claimed_exactly_once(tmp_path: Path, access: str, processes: int, jobs: int) -> None:
    db = directories.create(str(tmp_path / "db"), access)
    with db.write() as cx:
        apps.add_app(cx, {"name": "a", "executable": "true"})
    # Of several shapes and priorities, so that the claimers walk along several ranges of the index.
    rows = ({"application": "a", "node_packing_count": 1 + n % 3, "priority": n % 2} for n in range(jobs))
    added = set(insert.add_jobs(db, rows).ids)
    db.close()
    claimers = [python(_CLAIMER, db.directory) for _ in range(processes)]
    for claimer in claimers:
        assert claimer.stdout is not None
        assert claimer.stdout.readline() == "ready\n"
    started = time.monotonic()
    for claimer in claimers:
        assert claimer.stdin is not None
        claimer.stdin.write("\n")
        claimer.stdin.flush()
    holders: dict[int, int] = {}
    for claimer in claimers:
        out, _ = claimer.communicate(timeout=120)
        assert claimer.returncode == 0
        lease, mine = json.loads(out)
        for job, attempt in mine:
            assert job not in holders
            assert attempt == 1
            holders[job] = lease
    assert set(holders) == added
    assert time.monotonic() - started < 60
    with db.read() as cx:
        stored = cx.execute("SELECT id, lease, state, attempt FROM job").fetchall()
        events = cx.execute("SELECT count(*), count(DISTINCT job) FROM event WHERE to_state = 'RUNNING'").fetchone()
    assert stored == [(job, holders[job], "RUNNING", 1) for job in sorted(added)]
    assert events == (jobs, jobs)
    db.close()
