"""Jobs that wait for jobs of other sites: two DBs on this host, and one that a real sshd reaches."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers import wait_until
from sshd import far_site

from balsam_lite.api import Job
from balsam_lite.core import states
from balsam_lite.core.clock import SystemClock
from balsam_lite.core.errors import BalsamError, DependencyCycle, ParentInUse, UnknownJob
from balsam_lite.core.settings import Settings
from balsam_lite.db.engine import directories, doctor, registry, salvage
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.store import apps, insert, large_writes, pieces, remote_parents, user_actions
from balsam_lite.launcher.parents_exchange import ParentsExchange
from balsam_lite.sites import fanout
from balsam_lite.sites import remote_parents as dependencies
from balsam_lite.sites.local import LocalSite
from balsam_lite.sites.rpc import ssh


class Place(NamedTuple):
    """A DB with the application `app`."""

    db: Database
    site: LocalSite

    def add(self, **fields: Any) -> int:
        return insert.add_jobs(self.db, [{"application": "app", "name": "job", "workflow": "w", **fields}]).first

    def one(self, sql: str, *values: Any) -> Any:
        with self.db.read() as cx:
            row = cx.execute(sql, values).fetchone()
        return row and row[0]

    def state(self, job: int) -> str:
        return str(self.one("SELECT state FROM job WHERE id = ?", job))

    def reason(self, job: int) -> str:
        return str(self.one("SELECT message FROM event WHERE job = ? ORDER BY id DESC", job))

    def set(self, job: int, state: str) -> None:
        user_actions.set_state(self.db, [job], state)

    def workdir(self, job: int) -> Path:
        return Path(self.db.directory, "data", self.one("SELECT workdir FROM job WHERE id = ?", job))

    def exchange(self) -> None:
        """Exchange states with every other site, as a launcher or the service has it done."""
        with self.db.write() as cx:
            cx.execute("UPDATE remote_site SET asked = 0")
            sites = [row[0] for row in cx.execute("SELECT id FROM remote_site").fetchall()]
        for site in sites:
            dependencies.exchange(self.db.directory, site)

    def is_sound(self) -> bool:
        found = doctor.look_over(self.db, now_us=SystemClock.now_us(), expiry_s=120.0)
        return [one.text for one in found if one.level == doctor.WRONG] == []


def make_place(directory: Path) -> Place:
    db = directories.create(str(directory))
    directories.remember(db.directory)
    with db.write() as cx:
        apps.add_app(cx, {"name": "app", "executable": "/bin/true"})
    return Place(db, LocalSite(registry.at(db.directory), db))


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    place = make_place(tmp_path / "here")
    yield place
    place.db.close()


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Place]:
    place = make_place(tmp_path / "there")
    yield place
    place.db.close()


def child_of(here: Place, there: Place, *parents: int, **fields: Any) -> int:
    return here.add(parents=dependencies.numbers_for(here.site, there.site, parents), **fields)


def test_a_child_waits_until_its_parent_at_another_site_is_seen_finished(here: Place, there: Place) -> None:
    parent = there.add()
    child = child_of(here, there, parent)
    assert here.state(child) == states.AWAITING_PARENTS
    here.exchange()
    assert here.state(child) == states.AWAITING_PARENTS
    there.set(parent, states.JOB_FINISHED)
    assert here.state(child) == states.AWAITING_PARENTS
    here.exchange()
    assert here.state(child) == states.READY
    assert here.is_sound() and there.is_sound()


def test_the_site_of_the_parent_can_report_its_end_as_well(here: Place, there: Place) -> None:
    parent = there.add()
    child = child_of(here, there, parent)
    there.set(parent, states.JOB_FINISHED)
    there.exchange()
    assert here.state(child) == states.READY


def test_a_job_that_finished_before_it_became_a_parent_counts_once_its_site_confirms_it(here: Place, there: Place) -> None:
    parent = there.add()
    there.set(parent, states.JOB_FINISHED)
    child = child_of(here, there, parent)
    assert here.state(child) == states.AWAITING_PARENTS
    here.exchange()
    assert here.state(child) == states.READY


@pytest.mark.parametrize(
    ("run_when", "end", "expected"),
    [
        ("all_finished", states.FAILED, states.FAILED),
        ("all_finished", states.USER_KILLED, states.FAILED),
        ("all_ended", states.FAILED, states.READY),
        ("any_finished", states.FAILED, states.FAILED),
    ],
)
def test_the_end_of_a_parent_there_counts_as_run_when_says(
    here: Place, there: Place, run_when: str, end: str, expected: str
) -> None:
    parent = there.add()
    child = child_of(here, there, parent, run_when=run_when)
    grandchild = here.add(parents=[child])
    there.set(parent, end)
    here.exchange()
    assert here.state(child) == expected
    if expected == states.FAILED:
        assert here.reason(child) == f"Its parent there#{parent} at the site there is {end}"
        assert here.state(grandchild) == states.FAILED
    assert here.is_sound()


def test_a_child_waits_again_when_its_parent_there_is_put_back(here: Place, there: Place) -> None:
    parent = there.add()
    finished, failed = child_of(here, there, parent), child_of(here, there, there.add())
    other = here.one("SELECT number FROM remote_parent ORDER BY id DESC")
    there.set(parent, states.JOB_FINISHED)
    there.set(other, states.FAILED)
    here.exchange()
    assert (here.state(finished), here.state(failed)) == (states.READY, states.FAILED)
    there.set(parent, states.RESTART_READY)
    there.set(other, states.RESTART_READY)
    here.exchange()
    assert (here.state(finished), here.state(failed)) == (states.AWAITING_PARENTS,) * 2
    assert here.is_sound()


def test_an_end_does_not_count_while_a_launcher_there_holds_the_job(here: Place, there: Place) -> None:
    parent = there.add()
    child = child_of(here, there, parent)
    there.set(parent, states.JOB_FINISHED)
    with there.db.write() as cx:
        cx.execute("UPDATE job SET lease = 1")
    here.exchange()
    assert here.state(child) == states.AWAITING_PARENTS
    with there.db.write() as cx:
        cx.execute("UPDATE job SET lease = NULL")
    here.exchange()
    assert here.state(child) == states.READY


def test_a_removed_parent_fails_its_child_until_the_removal_is_taken_back(here: Place, there: Place) -> None:
    parent = there.add()
    child = child_of(here, there, parent)
    user_actions.delete(there.db, [parent], force=True)
    here.exchange()
    assert here.state(child) == states.FAILED
    assert here.reason(child) == f"Its parent there#{parent} at the site there is REMOVED"
    there.site.undo(1)
    here.exchange()
    assert here.state(child) == states.AWAITING_PARENTS


def test_a_removed_child_and_its_dependency_can_be_taken_back(here: Place, there: Place) -> None:
    parent = there.add()
    child = child_of(here, there, parent)
    user_actions.delete(here.db, [child])
    here.exchange()
    assert here.one("SELECT is_followed FROM remote_parent") == 0
    here.site.undo(1)
    there.set(parent, states.JOB_FINISHED)
    assert here.state(child) == states.AWAITING_PARENTS
    here.exchange()
    assert here.state(child) == states.READY
    assert here.is_sound()


def test_the_site_is_found_again_after_it_was_moved_and_renamed(here: Place, there: Place, tmp_path: Path) -> None:
    parent = there.add()
    child = child_of(here, there, parent)
    there.set(parent, states.JOB_FINISHED)
    there.db.close()
    shutil.move(there.db.directory, tmp_path / "elsewhere")
    number = there.site.entry.number
    registry.move(number, str(tmp_path / "elsewhere"))
    registry.rename(number, "other-name")
    here.exchange()
    assert here.state(child) == states.READY


def test_another_db_in_the_place_of_the_site_is_not_asked(here: Place, there: Place) -> None:
    child = child_of(here, there, there.add())
    there.db.close()
    shutil.rmtree(there.db.directory)
    other = make_place(Path(there.db.directory))
    other.set(other.add(), states.JOB_FINISHED)
    here.exchange()
    assert here.state(child) == states.AWAITING_PARENTS
    assert "is another DB now" in here.one("SELECT error FROM remote_site")
    other.db.close()


def test_what_cannot_be_a_parent_is_refused(here: Place, there: Place) -> None:
    with pytest.raises(UnknownJob, match="There is no job #7 at the site there"):
        dependencies.numbers_for(here.site, there.site, [7])
    with pytest.raises(UnknownJob, match="#-7"):
        here.add(parents=[-7])
    assert dependencies.numbers_for(here.site, here.site, [here.add()]) == [1]


def test_a_cycle_over_two_sites_is_refused(here: Place, there: Place) -> None:
    first = here.add()
    second = child_of(there, here, first)
    third = child_of(here, there, second)
    last = here.add(parents=[third])
    with pytest.raises(DependencyCycle):
        dependencies.add_dependency(there.site, second, here.site, last)
    with pytest.raises(DependencyCycle):
        dependencies.add_dependency(here.site, first, there.site, second)
    dependencies.add_dependency(here.site, last, there.site, there.add())
    assert here.one("SELECT unfinished_parents FROM job WHERE id = ?", last) == 2


def test_very_many_children_of_one_parent_there_are_released_in_pieces(
    here: Place, there: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_writes, "MAX_DIRECT_JOBS", 50)
    monkeypatch.setattr(large_writes, "JOBS_PER_PART", 20)
    parent = there.add()
    (number,) = dependencies.numbers_for(here.site, there.site, [parent])
    jobs = [{"application": "app", "name": "c", "workflow": "w", "parents": [number]} for _ in range(200)]
    insert.add_jobs(here.db, jobs)
    assert here.site.count_states() == {states.AWAITING_PARENTS: 200}
    there.set(parent, states.JOB_FINISHED)
    here.exchange()
    pieces.complete(here.db)
    assert here.site.count_states() == {states.READY: 200}
    assert here.is_sound()


def test_finished_parents_without_unstarted_children_are_not_asked_for_any_more(here: Place, there: Place) -> None:
    parent = there.add()
    child = child_of(here, there, parent)
    there.set(parent, states.JOB_FINISHED)
    here.exchange()
    now_us = SystemClock.now_us()
    with here.db.read() as cx:
        assert remote_parents.due(cx, now_us + 10**9, 10) == [1]
    here.set(child, states.JOB_FINISHED)
    here.exchange()
    with here.db.read() as cx:
        assert remote_parents.due(cx, now_us + 10**9, 10) == []
    with there.db.write() as cx:
        cx.execute("UPDATE watched_job SET since = 0")
    there.exchange()
    assert there.one("SELECT count(*) FROM watched_job") == 0
    (number,) = dependencies.numbers_for(here.site, there.site, [parent])
    there.set(parent, states.RESTART_READY)  # which nothing has asked for since
    late = here.add(parents=[number])
    assert here.state(late) == states.AWAITING_PARENTS
    here.exchange()
    assert here.state(late) == states.AWAITING_PARENTS


def test_a_child_that_waits_again_makes_its_parent_followed_again(here: Place, there: Place) -> None:
    parent = there.add()
    child = child_of(here, there, parent)
    there.set(parent, states.JOB_FINISHED)
    with here.db.write() as cx:
        cx.execute("UPDATE remote_parent SET state = 'JOB_FINISHED'")  # which is not confirmed
    user_actions.kill(here.db, [child])
    with here.db.write() as cx:
        remote_parents.unfollow(cx, 1)
    assert here.one("SELECT is_followed FROM remote_parent") == 0 and here.is_sound()
    here.set(child, states.CREATED)
    assert here.state(child) == states.AWAITING_PARENTS and here.is_sound()
    here.exchange()
    assert here.state(child) == states.READY


def test_pauses_grow_while_a_site_does_not_answer(here: Place, there: Place) -> None:
    child_of(here, there, there.add())
    there.db.close()
    shutil.rmtree(there.db.directory)
    pauses = []
    for _ in range(8):
        here.exchange()
        with here.db.write() as cx:
            asked = cx.execute("SELECT asked FROM remote_site").fetchone()[0]
            pauses.append(next(s for s in range(10, 3000, 10) if remote_parents.due(cx, asked + s * 10**6, 10)))
    assert pauses == sorted(pauses) and pauses[0] == 20 and pauses[-1] == 600


def test_a_process_that_is_killed_in_between_changes_nothing_for_the_next(here: Place, there: Place) -> None:
    parent = there.add()
    child = child_of(here, there, parent)
    there.set(parent, states.JOB_FINISHED)
    code = (
        "import os, signal; from balsam_lite.db.store import graph; from balsam_lite.sites import remote_parents as r\n"
        "graph.reconsider_children = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"r.exchange({here.db.directory!r}, 1)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert here.state(child) == states.AWAITING_PARENTS
    here.exchange()
    assert here.state(child) == states.READY
    assert here.is_sound()


def test_a_launcher_or_service_starts_the_exchange_and_does_not_wait_for_it(here: Place, there: Place) -> None:
    parent = there.add()
    child = child_of(here, there, parent)
    there.set(parent, states.JOB_FINISHED)
    exchange = ParentsExchange(here.db, Settings(), SystemClock())
    started = time.monotonic()
    exchange.start_due()
    assert time.monotonic() - started < 1
    wait_until(lambda: here.state(child) == states.READY)


def test_a_service_passes_on_the_end_of_a_parent_although_another_one_was_killed(
    here: Place, there: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from balsam_lite.core.settings import ENVIRONMENT_PREFIX
    from balsam_lite.service import main as service
    from balsam_lite.service import policy

    monkeypatch.setenv(f"{ENVIRONMENT_PREFIX}SERVICE_PERIOD", "1")
    policy.copy_template(here.db.directory, Settings.load(here.db.directory))
    parent = there.add()
    child = child_of(here, there, parent)
    os.kill(service.start(here.db.directory).pid, signal.SIGKILL)
    there.set(parent, states.JOB_FINISHED)
    service.start(here.db.directory)
    try:
        wait_until(lambda: here.state(child) == states.READY)
    finally:
        service.stop(here.db.directory)


def test_an_ssh_that_hangs_delays_neither_the_launcher_nor_other_sites(
    here: Place, there: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ssh").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "bin" / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    parent = there.add()
    child = child_of(here, there, parent)
    there.set(parent, states.JOB_FINISHED)
    with here.db.write() as cx:
        site = remote_parents.add_site(
            cx, {"db_id": "f" * 32, "name": "hung", "host": "nowhere", "path": "/db", "balsam": "balsam"}
        )
        row = {"id": 1, "job_id": "0" * 36, "name": "x", "state": states.RUNNING}
        numbers = remote_parents.add_parents(cx, site, [row])
        (other,) = cx.execute("SELECT id FROM job").fetchone()
    here.add(parents=numbers, input_files="")
    assert other == child
    started = time.monotonic()
    balsam(here, "launcher", "--consume-all", "--job-mode", "serial")
    assert time.monotonic() - started < 30
    assert here.state(child) == states.JOB_FINISHED


def test_a_job_for_which_jobs_of_another_site_wait_is_not_removed_by_accident(here: Place, there: Place) -> None:
    parent = there.add()
    child_of(here, there, parent)
    with pytest.raises(ParentInUse, match="Jobs of the site here wait"):
        user_actions.delete(there.db, [parent])
    there.set(parent, states.JOB_FINISHED)
    user_actions.delete(there.db, [parent])


def test_files_of_a_parent_on_this_host_are_linked(here: Place, there: Place) -> None:
    parent = there.add()
    child = child_of(here, there, parent, input_files="*.dat")
    there.workdir(parent).mkdir(parents=True)
    (there.workdir(parent) / "result.dat").write_text("42")
    there.set(parent, states.JOB_FINISHED)
    here.exchange()
    balsam(here, "launcher", "--consume-all", "--job-mode", "serial")
    assert here.state(child) == states.JOB_FINISHED
    assert (here.workdir(child) / "result.dat").read_text() == "42"
    assert os.readlink(here.workdir(child) / "result.dat") == str(there.workdir(parent) / "result.dat")


def balsam(place: Place, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "balsam_lite.cli", "--db", place.db.directory, *words],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- over ssh ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def far(there: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[fanout.SiteInterface]:
    """The site `there` as ssh reaches it."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="c") as sockets, far_site(there.db.directory) as remote:
        monkeypatch.setenv("PATH", remote.path)
        monkeypatch.setattr(tempfile, "tempdir", sockets)
        monkeypatch.setenv("TMPDIR", sockets)
        ssh._has_own_control_path.cache_clear()
        yield fanout.open_site(registry.named("far"))
        ssh._has_own_control_path.cache_clear()


def test_a_child_here_gets_state_and_files_of_a_parent_over_ssh(here: Place, there: Place, far: Any) -> None:
    parent = there.add()
    child = here.add(parents=dependencies.numbers_for(here.site, far, [parent]), input_files="*.dat sub/**/x")
    work = there.workdir(parent)
    (work / "sub" / "deep").mkdir(parents=True)
    for name in ("result.dat", "other.txt", "sub/x", "sub/deep/x", "sub/deep/y"):
        (work / name).write_text(name)
    (work / "broken.dat").symlink_to("nowhere")
    there.set(parent, states.JOB_FINISHED)
    here.exchange()
    assert here.state(child) == states.READY, here.one("SELECT coalesce(pending, '') FROM remote_parent")
    copy = Path(here.db.directory, "data", here.one("SELECT directory FROM remote_parent"))
    assert sorted(str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()) == [
        "result.dat",
        "sub/deep/x",
        "sub/x",
    ]
    balsam(here, "launcher", "--consume-all", "--job-mode", "serial")
    assert here.state(child) == states.JOB_FINISHED
    for name in ("result.dat", "sub/x", "sub/deep/x"):
        assert (here.workdir(child) / name).read_text() == name


def test_a_child_there_gets_state_and_files_of_a_parent_here_that_it_cannot_reach(here: Place, there: Place, far: Any) -> None:
    parent = here.add()
    child = there.add(parents=dependencies.numbers_for(far, here.site, [parent]), input_files="*.dat")
    assert there.one("SELECT path FROM remote_site") == ""
    here.workdir(parent).mkdir(parents=True)
    (here.workdir(parent) / "result.dat").write_text("42")
    here.exchange()
    here.set(parent, states.JOB_FINISHED)
    with there.db.read() as cx:
        assert remote_parents.due(cx, SystemClock.now_us(), 10) == []
    assert there.state(child) == states.AWAITING_PARENTS
    here.exchange()
    assert there.state(child) == states.READY, there.one("SELECT coalesce(pending, '') FROM remote_parent")
    balsam(there, "launcher", "--consume-all", "--job-mode", "serial")
    assert (there.workdir(child) / "result.dat").read_text() == "42"
    assert there.is_sound()


def test_a_parent_that_made_no_directory_has_no_files(here: Place, there: Place, far: Any) -> None:
    parent, other = there.add(), here.add()
    child = here.add(parents=dependencies.numbers_for(here.site, far, [parent]))
    child_there = there.add(parents=dependencies.numbers_for(far, here.site, [other]))
    there.set(parent, states.JOB_FINISHED)
    here.set(other, states.JOB_FINISHED)
    here.exchange()
    assert here.state(child) == states.READY, here.one("SELECT coalesce(pending, '') FROM remote_parent")
    assert there.state(child_there) == states.READY, there.one("SELECT coalesce(pending, '') FROM remote_parent")


def test_files_that_cannot_be_copied_hold_the_child_and_are_tried_again(
    here: Place, there: Place, far: Any, tmp_path: Path
) -> None:
    parent = there.add()
    child = here.add(parents=dependencies.numbers_for(here.site, far, [parent]), input_files="*.dat")
    there.workdir(parent).mkdir(parents=True)
    (there.workdir(parent) / "result.dat").write_text("42")
    there.set(parent, states.JOB_FINISHED)
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "rsync").write_text("#!/bin/sh\necho 'rsync: no space' >&2; exit 11\n")
    (fake / "rsync").chmod(0o755)
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{fake}:{path}"
    here.exchange()
    assert here.state(child) == states.AWAITING_PARENTS
    assert here.one("SELECT pending FROM remote_parent") == "rsync: no space"
    os.environ["PATH"] = path
    here.exchange()
    assert here.state(child) == states.READY


def test_ids_of_the_newer_interface_know_the_sites_of_parents(here: Place, there: Place) -> None:
    parent = Job.objects.create(workdir="p", app_id="app", site_name="there")
    child = Job.objects.create(workdir="c", app_id="app", site_name="here", parent_ids=[parent.id])
    assert child.state == "AWAITING_PARENTS"
    (found,) = Job.objects.get(id=child.id).parent_ids
    assert found == parent.id and found.site.name == "there"
    assert [one.workdir for one in child.parent_query()] == [parent.workdir]
    assert here.site.select("job")[0]["remote_parents"][0]["site"] == "there"


def test_the_parent_of_a_job_in_the_shell_can_be_one_of_another_site(
    here: Place, there: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = there.add()
    base = ("job", "--app", "app", "--workflow", "w", "--yes", "--name")
    balsam(here, *base, "one", "--parent", f"there#{parent}")
    assert here.state(1) == states.AWAITING_PARENTS
    balsam(here, *base, "two")
    balsam(here, "dep", f"there#{parent}", "two")
    assert here.one("SELECT count(*) FROM dependency WHERE parent < 0") == 2
    with pytest.raises(AssertionError, match="no job #9 at the site there"):
        balsam(here, "dep", "there#9", "two")
    with pytest.raises(AssertionError, match="There is no site 'nowhere'"):
        balsam(here, "dep", "nowhere#1", "two")
    balsam(here, *base, "odd#1")
    balsam(here, "dep", "odd#1", "two")  # the name of a job here
    balsam(here, *base, "three", "--parent", "here#1")
    assert here.one("SELECT count(*) FROM dependency WHERE parent > 0") == 2


def test_the_parents_of_a_table_can_be_jobs_of_another_site(here: Place, there: Place, tmp_path: Path) -> None:
    parent, other = there.add(), there.add()
    table = tmp_path / "t.csv"
    words = ("job", "--from-file", str(table), "--app", "app")
    table.write_text(f'name,parents\na,there#{parent}\nb,"a,there#{other}"\nodd#1,here#1\nc,odd#1\n')
    here.add()
    assert "4 jobs would be added" in balsam(here, *words, "--dry-run")
    assert here.one("SELECT count(*) FROM remote_parent") == 0
    balsam(here, *words, "--yes")
    pairs = "SELECT json_group_array(json_array(parent, child)) FROM (SELECT * FROM dependency ORDER BY child, parent)"
    assert here.one(pairs) == "[[-1,2],[-2,3],[2,3],[1,4],[4,5]]"
    assert here.is_sound()
    table.write_text(f"name,parents\na,there#{parent}\nb,there#9\nc,there#{other}\n")
    with pytest.raises(AssertionError, match="line 3, column 2: cannot have that parent: There is no job #9 at"):
        balsam(here, *words, "--yes")
    table.write_text(f"name,parents\nthere#{parent},\nb,there#{parent}\n")
    with pytest.raises(AssertionError, match="is the name of a job of the table, and as a parent also means a job of another"):
        balsam(here, *words, "--yes")
    assert here.one("SELECT count(*) FROM job") == 5


def test_a_dry_run_with_a_parent_at_another_site_writes_nothing(here: Place, there: Place) -> None:
    parent = there.add()
    words = ("job", "--app", "app", "--workflow", "w", "--dry-run", "--parent", f"there#{parent}")
    assert f"there#{parent}" in balsam(here, *words, "--name", "a")
    assert "3 jobs would be added" in balsam(here, *words, "--name", "a", "--array", "1-3")
    assert here.one("SELECT count(*) FROM remote_parent") == 0
    assert there.one("SELECT count(*) FROM watched_job") == 0
    with pytest.raises(AssertionError, match="no job #9 at the site there"):
        balsam(here, *words[:-1], "there#9", "--name", "a")


def test_a_site_that_does_not_answer_keeps_jobs_from_being_added(here: Place, there: Place) -> None:
    there.db.close()
    shutil.rmtree(there.db.directory)
    with pytest.raises(BalsamError):
        dependencies.numbers_for(here.site, fanout.open_site(there.site.entry), [1])


# --- why a job waits ----------------------------------------------------------------------------------------------------


def why(place: Place, job: int) -> list[str]:
    return [one["reason"] for one in place.site.explain({"id": job}, each=True)["jobs"][0]["reasons"]]


def test_explain_names_the_parent_there_and_what_is_known_of_its_site(here: Place, there: Place) -> None:
    parent = there.add()
    child = child_of(here, there, parent)
    label = f"there#{parent}"
    assert why(here, child)[0] == f"waits for {label}, and nothing runs here that asks the site there; it has not answered yet"
    here.exchange()
    assert why(here, child)[0].startswith(f"waits for {label} at another site, CREATED as of ")
    with here.db.write() as cx:
        cx.execute("UPDATE remote_parent SET pending = 'rsync: no space', state = 'JOB_FINISHED'")
    assert why(here, child)[0] == f"the files of its parent {label} could not be copied: rsync: no space"
    with here.db.write() as cx:
        cx.execute("UPDATE remote_parent SET pending = 'unconfirmed'")
        cx.execute("UPDATE remote_site SET error = 'no route to host'")
    assert why(here, child)[0].startswith(
        f"waits for {label}, and the site there cannot be reached: no route to host; it last "
    )
    here.add(parents=[here.add()])
    groups = {one["code"]: one["jobs"] for one in here.site.explain({"state": states.AWAITING_PARENTS})["groups"]}
    assert groups == {"waits-for-parents": 1, "site-unreachable": 1}
    with here.db.write() as cx:
        cx.execute("UPDATE remote_site SET error = '', path = ''")
    assert why(here, child)[0].startswith(
        f"waits for {label}: the site there cannot be reached from here and reports it itself; it last "
    )


def test_explain_and_show_name_a_parent_there_that_failed(
    here: Place, there: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = there.add()
    child = child_of(here, there, parent)
    there.set(parent, states.FAILED)
    with here.db.write() as cx:
        cx.execute("UPDATE remote_parent SET state = 'FAILED', pending = NULL")
    assert why(here, child)[0] == f"its parent there#{parent} at another site is FAILED, and it needs that one"
    here.exchange()
    here.set(child, states.CREATED)
    assert here.state(child) == states.FAILED
    (found,) = here.site.explain({"id": child}, each=True)["jobs"][0]["reasons"]
    assert found["reason"] == f"its parent there#{parent} at another site is FAILED"
    assert f"balsam rerun --site there --id {parent}" in found["remedy"]
    (row,) = here.site.details([child])
    assert row["parent_jobs"]["states"] == {"FAILED": 1}
    assert [(one["site"], one["id"]) for one in row["parent_jobs"]["some"]] == [("there", parent)]


def test_listings_and_exports_name_parents_there(here: Place, there: Place, tmp_path: Path) -> None:
    parent = there.add(name="above")
    child = child_of(here, there, parent, name="below")
    printed = balsam(here, "ls", "--tree")
    assert f"(below there#{parent} CREATED)" in printed
    (row,) = json.loads(balsam(here, "ls", "--json"))
    assert row["parent_ids"] == [] and [one["id"] for one in row["remote_parents"]] == [parent]
    assert f"there#{parent}" in balsam(here, "show", f"#{child}")
    balsam(here, "export", str(tmp_path / "x.tar"))
    other = make_place(tmp_path / "other")
    balsam(other, "import", str(tmp_path / "x.tar"))
    assert other.one("SELECT count(*) FROM dependency") == 0
    assert other.is_sound()
    other.db.close()


def test_a_program_gets_the_ids_and_states_of_its_parents_there(here: Place, there: Place, tmp_path: Path) -> None:
    with here.db.write() as cx:
        apps.add_app(cx, {"name": "env", "executable": f"/bin/sh -c 'env > {tmp_path}/env'"})
    parent = there.add()
    child_of(here, there, parent, application="env", input_files="")
    there.set(parent, states.JOB_FINISHED)
    here.exchange()
    balsam(here, "launcher", "--consume-all", "--job-mode", "serial")
    env = dict(line.partition("=")[::2] for line in (tmp_path / "env").read_text().splitlines())
    assert json.loads(env["BALSAM_PARENT_IDS"]) == [there.one("SELECT job_id FROM job")]
    assert json.loads(env["BALSAM_PARENT_STATES"]) == ["JOB_FINISHED"]


@pytest.mark.parametrize("host", ["far-away", "127.0.0.1"])
def test_both_sites_may_be_on_other_hosts(here: Place, there: Place, far: Any, host: str) -> None:
    other = registry.add(here.db.directory, "far-too", host, registry.named("far").balsam)
    parent = there.add()
    child = here.add(parents=dependencies.numbers_for(fanout.open_site(other), far, [parent]), input_files="*.dat")
    assert here.one("SELECT host FROM remote_site") == ("" if host == "far-away" else "far-away")
    assert there.one("SELECT path FROM remote_site") == here.db.directory
    there.workdir(parent).mkdir(parents=True)
    (there.workdir(parent) / "result.dat").write_text("42")
    there.set(parent, states.JOB_FINISHED)
    there.exchange()  # the site of the parent reports it
    assert here.state(child) == states.READY, here.one("SELECT coalesce(pending, '') FROM remote_parent")
    balsam(here, "launcher", "--consume-all", "--job-mode", "serial")
    assert (here.workdir(child) / "result.dat").read_text() == "42"


def test_a_salvaged_db_keeps_its_parents_there(here: Place, there: Place, tmp_path: Path) -> None:
    parent = there.add()
    child = child_of(here, there, parent)
    there.set(parent, states.JOB_FINISHED)
    here.db.close()
    salvage.salvage(here.db.directory, str(tmp_path / "saved"))
    db = directories.open_database(str(tmp_path / "saved"))
    saved = Place(db, LocalSite(registry.at(db.directory), db))
    assert saved.state(child) == states.AWAITING_PARENTS and saved.is_sound()
    saved.exchange()
    assert saved.state(child) == states.READY
    saved.db.close()


def test_an_idle_launcher_looks_at_parents_there_once_more_before_it_ends(
    here: Place, there: Place, balsam_argv: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from balsam_lite.core.settings import ENVIRONMENT_PREFIX

    monkeypatch.setenv(f"{ENVIRONMENT_PREFIX}IDLE_TTL_S", "3")
    parent = there.add()
    child = child_of(here, there, parent)
    command = [*balsam_argv, "--db", here.db.directory, "launcher", "--consume-all", "--job-mode", "serial"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as launcher:
        wait_until(lambda: bool(here.one("SELECT answered FROM remote_site")))
        there.set(parent, states.JOB_FINISHED)
        launcher.wait(60)
    assert here.state(child) == states.JOB_FINISHED
