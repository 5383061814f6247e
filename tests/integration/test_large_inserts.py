"""Inserts of very many jobs, by small thresholds: no reader sees a part of one, whatever happens between two pieces."""

from __future__ import annotations

import io
import os
import signal
from contextlib import closing, redirect_stderr, redirect_stdout

import pytest
from helpers import Slots, db_with_app
from launching import Bench

from balsam_lite.cli.main import main
from balsam_lite.core import states
from balsam_lite.core.clock import SystemClock
from balsam_lite.core.errors import DatabaseError, DuplicateJobId, InvalidSpec, UnknownApp, UnknownJob
from balsam_lite.core.process_table import Holder
from balsam_lite.db.engine import directories, doctor, salvage
from balsam_lite.db.manager import use
from balsam_lite.db.models import BalsamJob
from balsam_lite.db.query import demand, queries, select
from balsam_lite.db.store import (
    apps,
    batch_jobs,
    claims,
    graph,
    insert,
    large_writes,
    leases,
    pieces,
    tags,
    transitions,
    user_actions,
)

JOBS = 30


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(large_writes, "MAX_DIRECT_JOBS", 10)
    monkeypatch.setattr(large_writes, "JOBS_PER_PART", 7)
    monkeypatch.setattr(pieces, "PIECE_S", 0)
    monkeypatch.setattr(pieces, "PAUSE_S", 0)
    monkeypatch.setattr(pieces, "INSERT_UNIT", 7)
    monkeypatch.setattr(pieces, "INSERT_PIECE_S", 0)


@pytest.fixture
def db(tmp_path):
    with db_with_app(tmp_path / "db") as made:
        yield made


def add(db, number, **fields):
    return list(insert.add_jobs(db, [{"application": "a", **fields} for _ in range(number)]).ids)


def seen(db):
    """Several visible jobs: one finished, one failed, one that waits for these, one that is free."""
    finished, failed, free = add(db, 3, workflow="old", tags={"t": "1"})
    add(db, 1, workflow="old", parents=[free])
    for job, state in ((finished, "JOB_FINISHED"), (failed, "FAILED")):
        user_actions.set_state(db, [job], state)
    return finished, failed, free


def rows(parents, **fields):
    """A batch of JOBS jobs, each a child of the one before and of `parents`, that any listing would show if it could."""
    common = {"application": "a", "tags": {"t": "1", "n": "new"}, "workflow": "new", "name": "hidden", "priority": 9, **fields}
    for place in range(JOBS):
        before = [insert.Position(place - 1)] if place % 3 else []
        yield {**common, "run_when": "all_ended" if place % 2 else "all_finished", "parents": [*parents, *before]}


def begun(db, jobs):
    """An insertion of these jobs of which nothing is written yet."""
    spool = insert._Spool()
    for chunk in insert._checked(jobs, None, spool.parents):
        spool.put(chunk)
    return insert.Insertion(db, spool, insert._resolved(spool, []))


def write_all(insertion):
    while insertion.advance():
        pass


def take(cx, room=1000, **only):
    return [claim.job for claim in claims.take(cx, 1, Slots(room), claims.Filter(**only), 5).to_run]


def balsam(db, *words):
    out, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(errors):
        patch.setenv("BALSAM_DB_PATH", db.directory)
        code = main(list(words))
    assert code == 0, errors.getvalue()
    return out.getvalue().splitlines()


COMMANDS = (
    ["ls"],
    ["ls", "--history"],
    ["ls", "--by-states"],
    ["ls", "--tree"],
    ["ls", "--wf", "new"],
    ["ls", "--name", "hidden"],
    ["ls", "wf"],
    ["ls", "--tag", "n=new"],
    ["job", "ls"],
    ["job", "ls", "--tag", "t=1"],
)


def answers(db, free):
    """What everybody who reads is told, by question."""
    found = {" ".join(words): balsam(db, *words) for words in COMMANDS}
    with db.read() as cx:
        asked = {
            "jobs": lambda: select.job_rows(cx),
            "by name": lambda: select.count_jobs(cx, {"name__contains": "i"}),
            "by states": lambda: select.count_states(cx),
            "by states of": lambda: select.count_states(cx, {"tags": {"t": "1"}}),
            "relatives": lambda: queries.relatives(cx, free),
            "relatives of each": lambda: select.job_rows(cx, columns=queries.RELATIVES),
            "edges": lambda: queries.edges(cx),
            "edges within": lambda: queries.edges_within(cx, "new"),
            "workflows": lambda: queries.workflows(cx),
            "deleted": lambda: queries.mark(cx)[1],
            "news": lambda: queries.news(cx, (0, queries.mark(cx)[1])).entered,
            "selected": lambda: select.jobs(cx),
            "selected by tag": lambda: select.jobs(cx, {"tags": {"t": "1"}}),
            "selected by parent": lambda: select.jobs(cx, {"parent_id": free}),
            "selected numbers": lambda: select.job_ids(cx, {"state": "AWAITING_PARENTS"}),
            "counted": lambda: (select.count_jobs(cx), select.count_jobs(cx, {"workflow": "new"})),
            "counted by state": lambda: (select.count_states(cx), select.count_states(cx, {"tags": {"t": "1"}})),
            "page": lambda: select.jobs_page(cx, {}, (), 0, 1000),
            "page by tag": lambda: select.jobs_page(cx, {"tags": {"t": "1"}}, ("id",), 0, 1000),
            "events": lambda: (select.events(cx), select.count_events(cx), select.event_page(cx)),
            "events by tag": lambda: (select.events(cx, {"tags": {"t": "1"}}), select.event_page(cx, {"tags": {"t": "1"}})),
            "startable": lambda: (demand.startable(cx), demand.of_workflows(cx, "*")),
            "waiting": lambda: claims.waiting(cx, claims.Filter()),
            "waiting with tag": lambda: claims.waiting(cx, claims.Filter(tags=(("t", "1"),))),
            "few": lambda: tags.read_tagged(cx, ("t", "1"), claims._PLAIN, "", ()),
            "plannable": lambda: [
                batch_jobs._unplanned(cx, source, claims.Shape(1, 1, 1, 0), 9, 99) for source in claims.sources()
            ],
            "in the scope": lambda: demand.state_counts(cx, demand.Scope(tags=(("t", "1"),)), states.STATES),
        }
        found |= {name: ask() for name, ask in asked.items()}
        number = free + 10
        for name in (f"#{number}", "hidden"):
            with pytest.raises(UnknownJob):
                queries.find_job(cx, name)
        with pytest.raises(UnknownJob):
            queries.job(cx, number)
    with use(db):
        jobs = BalsamJob.objects
        found["query sets"] = [
            [job.id for job in jobs.all()],
            jobs.count(),
            jobs.filter(name="hidden").exists(),
            list(jobs.filter(tags__t="1").values_list("id", "state")),
            list(jobs.order_by("-id").values_list("workflow", flat=True).distinct()),
            [job.id for job in jobs.get(id=free).get_children()],
            [job.id for job in jobs.all().iterator()],
        ]
        with pytest.raises(BalsamJob.DoesNotExist):
            jobs.get(id=number)
    return found


def rows_agree(db):
    """The rows agree with each other, and no large write is left."""
    found = [one for one in doctor.look_over(db, now_us=2, expiry_s=60) if one.topic == "rows"]
    assert [one.level for one in found] == ["ok"], found
    with db.read() as cx:
        assert cx.execute("SELECT count(*) FROM large_write").fetchone() == (0,)


def test_nobody_sees_a_part_of_an_insert_and_then_all_of_it(db):
    *_, free = seen(db)
    with db.write() as cx:
        leases.open_lease(cx, "launcher", Holder.current(), "", 1)
    before = answers(db, free)
    insertion = begun(db, rows([free]))
    number = 0
    while insertion.advance():
        number += 1
        assert answers(db, free) == before
        assert [one.level for one in doctor.look_over(db, now_us=2, expiry_s=60) if one.topic == "rows"] == ["ok"]
    assert number > JOBS // 7 + 1
    with db.read() as cx:
        assert demand.what_may_come(cx, demand.Scope(), 1, 60) == "jobs that are being added"
    added = insertion.release()
    assert [job.id for job in BalsamJob.objects.using(db).filter(name="hidden")] == list(added.ids)
    with db.read() as cx:
        assert select.count_states(cx)["AWAITING_PARENTS"] == JOBS + 1
    rows_agree(db)


def test_an_insert_in_pieces_makes_the_rows_of_one_transaction(db, monkeypatch, tmp_path):
    jobs = list(rows(seen(db)[:1]))
    insert.add_jobs(db, jobs)
    other = directories.create(str(tmp_path / "other"))
    with closing(other):
        with other.write() as cx:
            apps.add_app(cx, {"name": "a", "executable": "true"})
        monkeypatch.setattr(large_writes, "MAX_DIRECT_JOBS", 1000)
        insert.add_jobs(other, jobs_of(seen(other), jobs))
        assert dump(db) == dump(other)
    rows_agree(db)


def jobs_of(visible, jobs):
    return [{**job, "parents": [visible[0], *job["parents"][1:]]} for job in jobs]


def dump(db):
    with db.read() as cx:
        return [
            cx.execute("SELECT id, state, unfinished_parents, tags, priority, start_after FROM job ORDER BY id").fetchall(),
            cx.execute("SELECT * FROM dependency").fetchall(),
            cx.execute("SELECT job, from_state, to_state, message FROM event ORDER BY job, id").fetchall(),
            cx.execute("SELECT key, value, job FROM job_tag JOIN tag ON tag.id = tag").fetchall(),
            cx.execute("SELECT * FROM state_count").fetchall(),
            cx.execute("SELECT * FROM workflow_count").fetchall(),
            cx.execute("SELECT * FROM hidden_count").fetchall(),
            cx.execute("SELECT seq FROM sqlite_sequence WHERE name = 'job'").fetchall(),
        ]


@pytest.mark.parametrize("priority", [-1, 0, 9])
def test_a_launcher_takes_what_is_visible_and_all_when_the_insert_is_complete(db, priority):
    old = add(db, 5, wall_time_minutes=3)
    batch = (
        {"application": "a", "priority": priority, "wall_time_minutes": n % 5 + 1, "num_nodes": 1 + n % 2} for n in range(JOBS)
    )
    insertion = begun(db, batch)
    write_all(insertion)
    younger = add(db, 2)
    with db.write() as cx:
        leases.open_lease(cx, "launcher", Holder.current(), "", 1)
        assert sorted(take(cx, serial_only=False)) == [*old, *younger]
        assert take(cx, serial_only=False) == []
    added = insertion.release()
    assert younger[0] > added.ids[-1]
    with db.write() as cx:
        assert sorted(take(cx, serial_only=False)) == list(added.ids)


def test_hidden_jobs_cost_a_claim_nothing(db):
    add(db, 5)

    def steps():
        counted = []
        with db.write() as cx:
            cx.set_progress_handler(lambda: counted.append(1) and None, 1)
            claims._best(cx, claims.sources()[1], claims.Shape(1, 1, 1, 0), 50, claims.Filter())
            demand.startable(cx)
            cx.set_progress_handler(None, 1)
        return len(counted)

    insertion = begun(db, ({"application": "a"} for _ in range(3000)))
    insertion.advance()
    few_hidden = steps()
    write_all(insertion)
    assert steps() == few_hidden


def end(db, job, state):
    with db.write() as cx:
        transitions.apply(cx, [transitions.Transition(job, ("CREATED", state), 3)], states.USER)
        graph.released(cx, [(job, state)], 3)


@pytest.mark.parametrize("state", ["JOB_FINISHED", "FAILED"])
@pytest.mark.parametrize("piece", range(12))
def test_the_end_of_a_parent_reaches_hidden_children(db, state, piece):
    (parent,) = add(db, 1)
    insertion = begun(db, rows([parent]))
    for _ in range(piece):
        insertion.advance()
    end(db, parent, state)
    with db.read() as cx:
        assert select.count_states(cx) == {state: 1}
    while insertion.advance():
        with db.read() as cx:
            assert select.count_states(cx) == {state: 1}
    insertion.release()
    while pieces.advance_abandoned(db):
        pass
    with db.read() as cx:
        found = select.count_states(cx)
        assert cx.execute(
            f"SELECT count(*) FROM job WHERE state = 'FAILED' AND run_when = 'all_finished' AND id > {parent}"
        ).fetchone()[0] == (JOBS // 2 if state == "FAILED" else 0)
    assert sum(found.values()) == JOBS + 1
    rows_agree(db)


def killed(db, jobs, failpoint):
    """Return whether an insert of these jobs reached that point, at which its process is killed."""
    child = os.fork()
    if not child:
        os.environ[pieces.FAILPOINT] = failpoint
        pieces._passes.clear()
        try:
            insert.add_jobs(db, jobs)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("place", ["before-piece", "after-piece"])
def test_the_next_command_removes_what_a_kill_at_any_piece_has_left(db, place):
    *_, free = seen(db)
    before, last, number = dump(db)[:5], 4, 1
    while killed(db, rows([free]), f"{place}:{number}"):
        assert jobs_of_workflow(db, "new") == 0 or place == "after-piece"
        user_actions.update_fields(db, [free], {"args": f"{number}"})
        rows_agree(db)
        if jobs_of_workflow(db, "new"):  # killed right after the release
            break
        assert dump(db)[:5] == before
        with db.read() as cx:
            assert large_writes.last_number(cx) == last + JOBS, "a number is not used twice"
        last += JOBS
        number += 1
    assert number > 2 * JOBS // 7
    assert jobs_of_workflow(db, "new") == JOBS, (
        "all jobs, those of the insert that was not killed or was killed when it was complete"
    )
    rows_agree(db)


def jobs_of_workflow(db, workflow):
    with db.read() as cx:
        return select.count_jobs(cx, {"workflow": workflow})


def test_two_inserts_at_once_do_not_meet(db):
    one, two = (begun(db, ({"application": "a", "name": name} for _ in range(JOBS))) for name in ("one", "two"))
    while one.advance() | two.advance():
        with db.read() as cx:
            assert select.job_rows(cx) == []
    second = two.release()
    assert [job.id for job in BalsamJob.objects.using(db).all()] == list(second.ids)
    one.undo()
    assert [job.name for job in BalsamJob.objects.using(db).all()] == ["two"] * JOBS
    assert add(db, 1) == [second.ids[-1] + 1]
    rows_agree(db)


def test_a_conflict_in_the_middle_removes_all_and_raises_what_it_did(db):
    add(db, 1)
    given = "12345678-0000-4000-8000-000000000000"
    jobs = [{"application": "a"} for _ in range(JOBS)]
    before = dump(db)[:5]
    ids = [f"{n:08x}-0000-4000-8000-000000000000" for n in range(JOBS)]
    ids[3] = ids[25] = given
    with pytest.raises(DuplicateJobId, match=f"{given} is that of job"):
        insert.add_jobs(db, [{**job, "given_id": ids[n]} for n, job in enumerate(jobs)])
    assert dump(db)[:5] == before
    with pytest.raises(InvalidSpec, match="Job number 26: job number 4 has the workdir x/y too"):
        insert.add_jobs(db, [{**job, "workdir": "x/y" if n in (3, 25) else f"x/{n}"} for n, job in enumerate(jobs)])
    with pytest.raises(UnknownApp):
        insert.add_jobs(db, [{**job, "application": "b"} for job in jobs])
    with pytest.raises(UnknownJob, match="Job number 1 cannot have that parent: There is no job #77 "):
        insert.add_jobs(db, [{**job, "parents": [77]} for job in jobs])
    assert dump(db)[:5] == before
    rows_agree(db)


def test_a_parent_that_is_removed_meanwhile_stops_the_insert(db):
    (parent,) = add(db, 1)
    insertion = begun(db, rows([parent]))
    insertion.advance()
    user_actions.delete(db, [parent])
    with pytest.raises(UnknownJob, match=r"Job number \d+ cannot have that parent"):
        write_all(insertion)
    insertion.undo()
    assert dump(db)[0] == []
    rows_agree(db)


def test_a_workdir_that_another_takes_meanwhile_stops_the_insert(db):
    insertion = begun(db, ({"application": "a", "workdir": f"x/{n}"} for n in range(JOBS)))
    insertion.advance()
    add(db, 1, workdir="x/25")
    with pytest.raises(InvalidSpec, match="Job number 26: The workdir x/25 is that of job"):
        write_all(insertion)
    insertion.undo()
    rows_agree(db)


def test_an_interrupt_removes_all(db, monkeypatch):
    def interrupt(rows):
        if rows < 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        insert.add_jobs(db, [{"application": "a"} for _ in range(JOBS)], interrupt)
    assert dump(db)[0] == []
    rows_agree(db)
    assert add(db, 1) == [JOBS + 1], "numbers are not used twice"


def test_a_second_interrupt_leaves_the_rest_to_the_next_command(db, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pieces, "pause", interrupt)
        with pytest.raises(KeyboardInterrupt, match="nothing is added; the next balsam command or launcher removes"):
            insert.add_jobs(db, [{"application": "a"} for _ in range(JOBS)])
    with db.read() as cx:
        assert large_writes.is_any(cx)
    add(db, 1)
    assert len(dump(db)[0]) == 1
    rows_agree(db)


def test_a_live_insert_is_left_alone_and_one_taken_for_dead_ends_with_an_error(db):
    insertion = begun(db, ({"application": "a"} for _ in range(JOBS)))
    insertion.advance()
    with db.write() as cx:
        cx.execute("UPDATE large_write SET touched = 1")  # long ago: a stopped process, which lives
    assert not pieces.advance_abandoned(db)
    with db.write() as cx:
        cx.execute("UPDATE large_write SET pid = 0")
    while pieces.advance_abandoned(db):
        pass
    with pytest.raises(DatabaseError, match="took this one for dead"):
        insertion.advance()
    insertion.undo()
    assert dump(db)[0] == []
    rows_agree(db)


def test_another_hosts_insert_is_undone_when_it_has_been_silent_by_our_own_clock(db, monkeypatch):
    insertion = begun(db, ({"application": "a"} for _ in range(JOBS)))
    insertion.advance()
    with db.write() as cx:
        cx.execute("UPDATE large_write SET host = 'elsewhere', touched = 1")
    assert not pieces.advance_abandoned(db)
    insertion.advance()
    monkeypatch.setattr(pieces, "SILENT_S", 0)
    assert not pieces.advance_abandoned(db), "it has been touched since"
    assert pieces.advance_abandoned(db)


def test_a_copy_does_not_wait_for_the_originals_insert(db):
    insertion = begun(db, ({"application": "a"} for _ in range(JOBS)))
    insertion.advance()
    with db.write() as cx:
        leases.make_own(cx, SystemClock.now_us(), is_in_place=False)
    add(db, 1)
    assert len(dump(db)[0]) == 1
    rows_agree(db)


def test_salvage_leaves_hidden_jobs_out(db, tmp_path):
    *_, free = seen(db)
    insertion = begun(db, rows([free]))
    write_all(insertion)
    db.close()
    salvage.salvage(db.directory, str(tmp_path / "saved"))
    saved = directories.open_database(str(tmp_path / "saved"))
    with closing(saved):
        assert len(dump(saved)[0]) == 4
        rows_agree(saved)


def test_a_launcher_beside_an_insert_runs_what_it_sees_and_then_all(tmp_path):
    bench = Bench(tmp_path)
    with closing(bench):
        bench.app("a", "true")
        bench.add([{"application": "a"}])
        insertion = begun(bench.db, ({"application": "a", "priority": 5} for _ in range(JOBS)))
        insertion.advance()
        assert killed(bench.db, [{"application": "a"} for _ in range(JOBS)], "after-piece:2")
        insertion.undo()
        added = insert.add_jobs(bench.db, [{"application": "a", "priority": 5} for _ in range(JOBS)])
        assert bench.run() == 0
        with bench.db.read() as cx:
            assert select.count_states(cx) == {states.JOB_FINISHED: JOBS + 1}
            assert [row[0] for row in select.job_rows(cx, columns=("id",))] == [1, *added.ids]
        rows_agree(bench.db)


def test_db_check_finds_nothing_wrong_while_a_cut_insert_is_removed(db):
    *_, free = seen(db)
    insertion = begun(db, rows([free]))
    write_all(insertion)
    with db.write() as cx:
        cx.execute("UPDATE large_write SET pid = 0")
    while pieces.advance_abandoned(db):
        assert not [one for one in doctor.look_over(db, now_us=2, expiry_s=60) if one.topic == "rows" and one.level != "ok"]
    rows_agree(db)
