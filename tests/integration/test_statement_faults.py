"""SQLite's own method (https://sqlite.org/testing.html#i_o_error_testing): each statement of each writing command fails.

A loop lets statement 1, 2, 3 … fail with BUSY, FULL or IOERR in turn, and another one kills the process there. The DB
is then as before or as after, never between. A command of several transactions leaves what the same command completes.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import click
import pytest
from helpers import TESTS

from balsam_lite.cli.group import balsam as command_group
from balsam_lite.cli.main import main
from balsam_lite.core.clock import SystemClock
from balsam_lite.core.errors import BalsamError
from balsam_lite.core.process_table import Holder
from balsam_lite.core.settings import Settings
from balsam_lite.db.engine import connection, directories, doctor
from balsam_lite.db.store import apps, batch_jobs, graph, insert, large_writes, leases, pieces, user_actions
from balsam_lite.schedulers import base
from balsam_lite.schedulers.base import BatchStatus

#: What SQLite raises (https://sqlite.org/rescode.html).
FAULTS = {"BUSY": ("database is locked", 5), "FULL": ("database or disk is full", 13), "IOERR": ("disk I/O error", 10)}
KILL = "KILL"
ROLLS_BACK = ("FULL", "IOERR")  # by itself: https://sqlite.org/lang_transaction.html
NEVER = 10**9
#: How many launchers are tried, each with a fault at another statement.
LAUNCHERS = 16
#: The exit code of an exception that no command may let out.
UNEXPECTED = 99
#: What a command says that has failed after it had written.
STAYS = "has written to the DB, and that stays"


# --- faults -----------------------------------------------------------------------------------------------------------


class Fault:
    """Let one statement of this process fail, whichever connection runs it."""

    def __init__(self, kind: str, number: int) -> None:
        self.kind, self.number, self.count = kind, number, 0
        connect = sqlite3.connect

        def connect_armed(*args: Any, factory: type[sqlite3.Connection] = sqlite3.Connection, **options: Any) -> Any:
            return connect(*args, factory=self.armed(factory), **options)

        sqlite3.connect = connect_armed

    @functools.cache  # noqa: B019  # one for each process
    def armed(self, factory: type[sqlite3.Connection]) -> type[sqlite3.Connection]:
        def method(name: str) -> Callable[..., Any]:
            def run(cx: sqlite3.Connection, *args: Any, **options: Any) -> Any:
                self.strike(cx, args)
                return getattr(super(made, cx), name)(*args, **options)

            return run

        made = type("Armed", (factory,), {name: method(name) for name in ("execute", "executemany", "backup")})
        return made

    def strike(self, cx: sqlite3.Connection, args: tuple[Any, ...]) -> None:
        if args[0] == "ROLLBACK" and self.kind != KILL:
            return
        self.count += 1
        if self.count != self.number:
            return
        if self.kind == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind in ROLLS_BACK and cx.in_transaction:
            sqlite3.Connection.execute(cx, "ROLLBACK")
        text, code = FAULTS[self.kind]
        error = sqlite3.OperationalError(text)
        error.sqlite_errorcode = code
        raise error


# --- what is tried ----------------------------------------------------------------------------------------------------


class World:
    """A directory with a DB, a registry, and what else a command needs; as often as one likes."""

    def __init__(self, place: Path) -> None:
        self.path, self.template = place / "world", place / "template"
        self.path.mkdir()
        os.environ.update(BALSAM_HOME=str(self.path / "home"), BALSAM_DB_PATH=self.db, BALSAM_BUSY_TIMEOUT_S="2")

    @property
    def db(self) -> str:
        return str(self.path / "db")

    def keep(self) -> None:
        shutil.copytree(self.path, self.template, symlinks=True)

    def restore(self) -> None:
        shutil.rmtree(self.path)
        shutil.copytree(self.template, self.path, symlinks=True)


ONE, AGAIN, INTENT, HIDDEN = "one", "again", "intent", "hidden"


class Case(NamedTuple):
    """A writing command, as words or as a call."""

    run: tuple[str, ...] | Callable[[], object]
    setup: Callable[[World], object] = lambda world: None
    #: ONE transaction; or AGAIN: whatever several have left, the same command again completes it; or INTENT: the intent is
    #: in the DB before the effect is in the scheduler, so what is left depends on that; or HIDDEN: as ONE, when the next
    #: command has removed rows that no reader sees.
    how: str = "one"
    access: str = "local"


def words(text: str, setup: Callable[[World], object] = lambda world: None, **more: Any) -> Case:
    return Case(tuple(text.split()), setup, **more)


def without_db(world: World) -> None:
    shutil.rmtree(world.db)


def with_old_db(world: World) -> None:
    without_db(world)
    directories.create(world.db).close()
    os.unlink(f"{world.db}/{connection.FILE_NAME}")
    cx = sqlite3.connect(f"{world.db}/{connection.FILE_NAME}", isolation_level=None)
    cx.executescript((TESTS / "data" / "schema_5.sql").read_text())
    cx.close()
    Path(world.db, "settings.json").write_text('{"LEASE_EXPIRY_S": 0.05}')  # its launchers on other hosts are watched


def with_removal(world: World) -> None:
    assert main(["--db", world.db, "rm", "jobs", "--name", "free", "--yes"]) == 0


def with_campaign(world: World) -> None:
    Path(world.db).parent.joinpath("campaign.yaml").write_text(
        "version: 1\ncampaign: c\napplications: {new: {executable: 'true'}, unused: {executable: 'false'}}\n"
        "groups: {a: {application: new, array: 1-3}, b: {application: say, parents: a}}\n"
    )


def with_archive(world: World) -> None:
    """Archive all jobs, one of them changed, and remove them for good, so that an import adds all rows that there can be."""
    archive = str(Path(world.db).parent / "archive.tar")
    for command in ("modify free priority 4", "export", "rm jobs --all --force --no-trash", "rm apps --name unused --force"):
        assert main(["--db", world.db, *command.split(), *([archive] if command == "export" else [])]) == 0


def with_launch(world: World) -> None:
    row = {"scheduler": "fake", "nodes": 1, "wall_minutes": 5, "job_mode": "serial"}
    db = directories.open_database(world.db)
    with db.write() as cx:
        batch_jobs.mark_submitted(cx, batch_jobs.add(cx, row, 1), "77")
    db.close()


def dag_job(name: str) -> Any:
    from balsam_lite.launcher import dag

    return dag.BalsamJob.objects.get(name=name)


def bulk_create() -> None:
    from balsam_lite.launcher import dag

    dag.BalsamJob.objects.bulk_create(
        [dag.BalsamJob(name=f"bulk{n}", workflow="w", application="say", tags={"n": str(n)}) for n in range(3)]
    )


def large_insert() -> None:
    """Add jobs in pieces, which are hidden until all are there."""
    few = mock.patch.object(large_writes, "MAX_DIRECT_JOBS", 1)
    with few, mock.patch.object(pieces, "PAUSE_S", 0), mock.patch.multiple(pieces, INSERT_UNIT=1, INSERT_PIECE_S=0):
        insert.add_jobs(
            directories.open_database(directories.find()),
            [{"name": f"bulk{n}", "application": "say", "tags": {"n": str(n)}, "parents": [1, 3]} for n in range(3)],
        )


def add_in_transaction() -> None:
    from balsam_lite.launcher import dag

    with dag.transaction():
        first = dag.add_job(name="t1", workflow="w", application="say")
        second = dag.add_job(name="t2", workflow="w", application="say")
        dag.add_dependency(first, second)


def update_many() -> None:
    from balsam_lite.launcher import dag

    dag.BalsamJob.objects.filter(workflow="w").update(priority=3)


def update_states() -> None:
    from balsam_lite.launcher import dag

    ids = [dag_job(name).job_id for name in ("done", "bad")]
    dag.BalsamJob.batch_update_state(ids, "RESTART_READY")


def delete_many() -> None:
    from balsam_lite.launcher import dag

    dag.BalsamJob.objects.filter(workflow="w").delete()


def add_dependencies() -> None:
    from balsam_lite.launcher import dag

    dag.add_dependencies([(dag_job("free"), dag_job("tagged"))])


def kill_all() -> None:
    from balsam_lite.launcher import dag

    dag.kill(dag_job("top"), recursive=True)


def set_parents() -> None:
    dag_job("tagged").set_parents([dag_job("free")])


def add_app() -> None:
    from balsam_lite.launcher import dag

    dag.add_app("more", "/bin/true")


def service_turn() -> None:
    from balsam_lite.service.loop import Service
    from balsam_lite.service.policy import Queue, Range

    db = directories.open_database(os.environ["BALSAM_DB_PATH"])
    with db.write() as cx:
        lease = leases.open_lease(cx, "service", Holder.current(), "", SystemClock.now_us())
    queues = (Queue("debug", True, 2, (Range(1, 4, 1, 60),)),)
    Service(db, Settings(), queues, FakeScheduler(), lease, SystemClock()).turn()


CALLS = {
    "service_turn": Case(service_turn, how=INTENT),
    "large_insert": Case(large_insert, how=HIDDEN),
    **{
        call.__name__: Case(call)
        for call in (
            *(bulk_create, add_in_transaction, update_many, update_states, delete_many, add_dependencies, kill_all),
            *(set_parents, add_app),
        )
    },
}

#: For each command that writes, what is tried.
WRITING: dict[str, tuple[Case, ...]] = {
    "init": (
        Case(("init", "{world}/db"), without_db, how=AGAIN),
        Case(("init", "{world}/db"), with_old_db, how=AGAIN),
    ),
    "site init": (Case(("site", "init", "{world}/db", "--name", "here"), without_db, how=AGAIN),),
    "app": (words("app --name new --executable /bin/true"),),
    "app rm": (words("app rm --name unused --yes"),),
    "job": (
        words("job --name new --workflow w --app say --tag a=b --yes"),
        words("job --name new --workflow w --app say --yes", access="shared"),
    ),
    "job create": (words("job create --app say --workdir x/y --tag a=b --yes"),),
    "job modify": (words("job modify --id free --state RESTART_READY"),),
    "job rm": (words("job rm --id free --yes"),),
    "apply": (Case(("apply", "{world}/campaign.yaml", "--update-apps"), with_campaign),),
    "import": (
        Case(("import", "{world}/archive.tar", "--runnable"), with_archive, how=HIDDEN),
        Case(("import", "{world}/archive.tar"), with_archive, how=HIDDEN, access="shared"),
    ),
    "mkchild": (words("mkchild --parent free --name new --application say --yes"),),
    "dep": (words("dep free tagged"),),
    "modify": (words("modify free priority 4"), words("modify done state RESTART_READY")),
    "rerun": (
        words("rerun --name done --downstream --yes"),
        words("rerun --workflow w --yes"),
        words("rerun --workflow w --yes", access="shared"),
    ),
    "rm": (
        words("rm jobs --all --force"),
        words("rm apps --name unused --force"),
        words("rm jobs --name free --force", access="shared"),
    ),
    "killjob": (words("killjob --id top --recursive --yes"),),
    "undo": (Case(("undo", "--yes"), with_removal),),
    "make_dummies": (words("make_dummies 3", how=INTENT),),
    "submit-launch": (words("submit-launch -n 1 -t 5 -q q -A p --job-mode serial", how=INTENT),),
    "queue submit": (words("queue submit -n 1 -t 5 -q q -A p --job-mode mpi", how=INTENT),),
    "queue rm": (words("queue rm 77", with_launch, how=AGAIN),),
    "queue term": (words("queue term 1", with_launch, how=AGAIN),),
    "db backup": (Case(("db", "backup", "{world}/copy", "--force")),),
    "db vacuum": (words("db vacuum", how=AGAIN),),
    "site mv": (Case(("site", "mv", "{world}/db", "{world}/elsewhere"), how=AGAIN),),
}

#: What is tried elsewhere or writes nothing into a DB, and why.
OTHERS = {
    "app ls job ls ls which log notify plot report queue ls site ls site sample-settings": "they only read",
    "tail show status sql results export diff": "they only read",
    "completion": "it prints a script",
    "watch": "it only reads until a key is pressed that kills or runs again, as killjob and rerun do",
    "wait": "it only registers itself, as waits in Python do; see test_waits.py",
    "explain": "it only reads",
    "db info db check db count db salvage": "they only read this DB",
    "job kill job rerun": "other names of killjob and rerun",
    "login server": "old scripts call them; they do nothing",
    "site add site forget site rename site rm": "the registry, one file that is replaced",
    "site start site stop site sync service answer": "programs that run for long; a turn of the service is below",
    "launcher": "a sample of its statements, below",
}


def commands(group: click.Command, prefix: str = "") -> Iterator[str]:
    """Find all commands that there are."""
    if not isinstance(group, click.Group):
        yield prefix
        return
    if group.invoke_without_command and prefix:
        yield prefix
    for name in group.list_commands(click.Context(group)):
        found = group.get_command(click.Context(group), name)
        assert found is not None
        yield from commands(found, f"{prefix} {name}".strip())


def test_every_command_is_tried_here_or_is_known_to_write_nothing():
    others = " ".join(OTHERS)
    unknown = [name for name in commands(command_group) if name not in WRITING and name not in others]
    assert not unknown, f"make statements of these fail, too: {unknown}"


# --- the loop ---------------------------------------------------------------------------------------------------------


class FakeScheduler:
    """Takes everything."""

    name, template, domain, timeout_s = "FakeScheduler", "local.tmpl", "fake", 60.0

    def submit(self, submission: object) -> str:
        return "78"

    def poll(self, ids: dict[str, str]) -> dict[str, BatchStatus]:
        return {one: BatchStatus(one, base.QUEUED) for one in ids}

    def cancel(self, native_id: str) -> None:
        pass

    def find(self, submission: object, since_us: int) -> str | None:
        return None


class Ended(NamedTuple):
    """How a process ended."""

    code: int  # negative: of that signal
    statements: int
    said: str


@pytest.fixture
def world(monkeypatch):
    """A DB with jobs in several states."""
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where a sync costs nothing
    place = Path(tempfile.mkdtemp(prefix="balsam-faults-", dir=fast))
    for name in ("BALSAM_HOME", "BALSAM_DB_PATH", "BALSAM_BUSY_TIMEOUT_S"):
        monkeypatch.setenv(name, "")  # to be put back at the end
    for module in ("base", "submission", "script"):
        monkeypatch.setattr(f"balsam_lite.schedulers.{module}.select", lambda settings: FakeScheduler())
    yield World(place)
    shutil.rmtree(place, ignore_errors=True)


def fill(world: World, access: str) -> None:
    db = directories.create(world.db, access)
    with db.write() as cx:
        for name in ("say", "unused"):
            apps.add_app(cx, {"name": name, "executable": "/bin/true"})
    more = {"workflow": "w", "application": "say"}
    given = [{"name": name, **more} for name in ("done", "bad", "free", "top", "middle", "low", "below")]
    ids = list(insert.add_jobs(db, [*given, {"name": "tagged", **more, "tags": {"kind": "x"}}]).ids)
    with db.write() as cx:
        for parent, child in ((3, 4), (4, 5), (0, 6)):
            graph.add_dependency(cx, ids[parent], ids[child], 1)
    for number, state in ((ids[0], "JOB_FINISHED"), (ids[1], "FAILED"), (ids[6], "JOB_FINISHED")):
        user_actions.set_state(db, [number], state)
    db.close()


def run(case: Case, world: World, kind: str, number: int) -> Ended:
    """Do it in a process of its own, in which that statement fails."""
    said, counted = world.path.parent / "said", world.path.parent / "counted"
    counted.write_text("0")
    process = os.fork()
    if process == 0:
        code = UNEXPECTED
        try:
            os.chdir(world.path)
            handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")
            fault = Fault(kind, number)
            code = attempt(case, world)
            connection.close_all()
            counted.write_text(str(fault.count))
        except BaseException:  # noqa: BLE001  # the parent reads what it was
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(process, 0)
    return Ended(os.waitstatus_to_exitcode(status), int(counted.read_text()), said.read_text())


def attempt(case: Case, world: World) -> int:
    if not callable(case.run):
        return main([word.replace("{world}", str(world.path)) for word in case.run])
    try:
        case.run()
    except BalsamError as exc:
        sys.stderr.write(f"Error: {exc}\n")
        return 1
    return 0


_RANDOM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?<=_)[0-9a-f]{8}|\b[0-9a-f]{32}\b|\d{16}")
_OF_A_PROCESS = ("pid", "started", "pid_namespace", "heartbeat", "opened", "closed", "host")


def state_of(world: World) -> dict[str, list[tuple[Any, ...]]]:
    """Read all rows, without what is random, of a moment or of a process. Nothing where there is no DB."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    for directory in (world.db, str(world.path / "elsewhere")):
        path = f"{directory}/{connection.FILE_NAME}"
        if not os.path.exists(path):
            continue
        cx = sqlite3.connect(path, isolation_level=None, timeout=0)
        try:
            assert cx.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            # Numbers that were reserved for jobs are not used again, whether these were added or not.
            names = "SELECT name FROM sqlite_master WHERE type = 'table' AND name <> 'sqlite_sequence' ORDER BY 1"
            for (table,) in cx.execute(names).fetchall():
                cursor = cx.execute(f"SELECT * FROM {table}" + (" WHERE key NOT IN ('file', 'id')" if table == "meta" else ""))
                kept = [n for n, column in enumerate(cursor.description) if column[0] not in _OF_A_PROCESS]
                rows = [tuple(plain(row[n]) for n in kept) for row in cursor]
                found[f"{os.path.basename(directory)} {table}"] = sorted(rows, key=repr)
        finally:
            cx.close()
    return found


def plain(value: Any) -> Any:
    if isinstance(value, int) and value > 10**15:
        return "time"
    return _RANDOM.sub("#", value) if isinstance(value, str) else value


def can_be_written(world: World) -> bool:
    """Return whether no process has kept the DB locked. There may be none, or one without tables."""
    path = f"{world.db}/{connection.FILE_NAME}"
    if os.path.exists(path):
        cx = sqlite3.connect(path, isolation_level=None, timeout=0)
        try:
            cx.execute("BEGIN IMMEDIATE")
            cx.execute("ROLLBACK")
        except sqlite3.OperationalError:
            return False
        finally:
            cx.close()
    return True


def faults_of(world: World) -> list[str]:
    """Let the DB say what is wrong with it, and whether it can be written now."""
    directory = world.db if directories.is_db(world.db) else str(world.path / "elsewhere")
    db = directories.open_database(directory)
    try:
        found = [one.text for one in doctor.look_over(db, now_us=2, expiry_s=120) if one.level == doctor.WRONG]
        with db.write():
            pass
        return found
    except BalsamError as exc:
        return [str(exc)]
    finally:
        db.close()


def remove_hidden(world: World) -> None:
    """Do what the next command does after its own work."""
    db = directories.open_database(world.db)
    while pieces.advance_abandoned(db):
        pass
    db.close()


def changed(before: dict[str, list[tuple[Any, ...]]], after: dict[str, list[tuple[Any, ...]]]) -> str:
    return "; ".join(
        f"{name}: {[row for row in before.get(name, []) if row not in after.get(name, [])]} -> "
        f"{[row for row in after.get(name, []) if row not in before.get(name, [])]}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    )


ALL = [(f"{name} {n}" if n else name, case) for name, cases in WRITING.items() for n, case in enumerate(cases)]


@pytest.mark.parametrize(("name", "case"), [*ALL, *CALLS.items()], ids=[name for name, _ in (*ALL, *CALLS.items())])
def test_a_statement_that_fails_leaves_the_db_as_before_or_as_after(name, case, world):
    fill(world, case.access)
    case.setup(world)
    world.keep()
    before = state_of(world)
    world.restore()
    passed = run(case, world, "", NEVER)
    assert passed.code == 0, passed.said
    after = state_of(world)
    assert case.how == INTENT or changed(before, after) or "backup" in name or "vacuum" in name, "it writes nothing"
    wrong = []
    for number in range(1, passed.statements + 1):
        for kind in (list(FAULTS)[number % len(FAULTS)], KILL):
            world.restore()
            ended = run(case, world, kind, number)
            text = judged(case, world, kind, ended, before, after)
            if text:
                wrong.append(f"{kind} at statement {number} of {passed.statements}: {text}\n{ended.said[-600:]}")
    assert not wrong, "\n\n".join(wrong[:6])


def judged(case: Case, world: World, kind: str, ended: Ended, before: Any, after: Any) -> str:  # noqa: PLR0911, PLR0912
    """Say what is wrong after a fault; "" if nothing is."""
    if ended.code == UNEXPECTED or "Traceback" in ended.said or "unexpected" in ended.said or "rollback" in ended.said:
        return "no message for users"
    if kind != KILL and ended.code < 0:
        return f"died of signal {-ended.code}"
    if ended.code > 0 and "Error" not in ended.said:
        return "no message"
    if kind != KILL and os.path.exists(f"{world.db}/session.lock"):
        return "the session is not released"
    if case.how == HIDDEN:
        remove_hidden(world)
    if case.how != INTENT:
        now = state_of(world)
        if ended.code == 0 and changed(now, after):
            return f"exit code 0, but {changed(now, after)}"
        is_told = STAYS in ended.said or callable(case.run)
        if case.how in (ONE, HIDDEN) and ended.code > 0 and changed(before, now) and (changed(now, after) or not is_told):
            return f"exit code {ended.code}, but {changed(before, now)}"
        if case.how == ONE and not (changed(now, before) and changed(now, after)):
            return "" if can_be_written(world) else "the DB is locked"
        if case.how in (ONE, HIDDEN) and ended.code < 0 and changed(before, now) and changed(now, after):
            return f"killed in between: {changed(before, now)}; after: {changed(now, after)}"
    if case.how == AGAIN and ended.code != 0:
        again = run(case, world, "", NEVER)
        if again.code != 0 and changed(state_of(world), after):
            return f"the same command again fails: {again.said}"
        if changed(state_of(world), after):
            return f"the same command again does not complete it: {changed(state_of(world), after)}"
    return "; ".join(faults_of(world))


def test_a_launcher_outlives_a_statement_that_fails_and_the_next_one_completes_what_a_killed_one_left(world, monkeypatch):
    monkeypatch.setenv("BALSAM_IDLE_TTL_S", "0.1")
    monkeypatch.setenv("BALSAM_START_DELAY_S", "0")
    fill(world, "local")
    world.keep()
    case = words("launcher --consume-all --job-mode serial --nodes 2")
    passed = run(case, world, "", NEVER)
    wanted = names_of(world)
    assert passed.code == 0 and set(wanted) == {("done", "JOB_FINISHED"), ("bad", "FAILED")} | {
        (name, "JOB_FINISHED") for name in ("free", "top", "middle", "low", "below", "tagged")
    }, passed.said
    kinds = [*FAULTS, KILL]
    wrong = []
    for turn, number in enumerate(range(1, passed.statements, max(1, passed.statements // LAUNCHERS))):
        world.restore()
        ended = run(case, world, kinds[turn % len(kinds)], number)
        again = run(case, world, "", NEVER)
        faults = faults_of(world)
        if "Traceback" in ended.said or ended.code == UNEXPECTED or names_of(world) != wanted or again.code or faults:
            wrong.append(f"{kinds[turn % len(kinds)]} at {number}: {ended} {again} {faults} {names_of(world)}")
    assert not wrong, "\n\n".join(wrong[:3])


def names_of(world: World) -> list[tuple[str, str]]:
    cx = sqlite3.connect(f"{world.db}/{connection.FILE_NAME}")
    try:
        return cx.execute("SELECT name, state FROM job ORDER BY id").fetchall()
    finally:
        cx.close()
