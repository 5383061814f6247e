"""Export and import: what comes back is what was there, and archives that are damaged or malicious change nothing."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Balsam, wait_until
from launching import Bench

from balsam_lite.campaigns import archive, containers, exports, imports
from balsam_lite.campaigns.containers import ArchiveError
from balsam_lite.cli.main import main
from balsam_lite.core import states
from balsam_lite.core.errors import BalsamError, DatabaseFull, InputError
from balsam_lite.db.engine import connection, directories, doctor
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.models import use
from balsam_lite.db.query import edits, results, runs, select
from balsam_lite.db.store import apps, insert, user_actions
from balsam_lite.db.store.merge import MergeOptions
from balsam_lite.launcher.executor import BalsamExecutor

TABLES = ("event", "run", "dependency", "edit", "failure")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    """A DB of several workflows whose jobs have run, with scripts, secrets and files."""
    made = directories.create(str(tmp_path / "db"))
    script = Path(made.directory, "scripts", "run.sh")
    script.parent.mkdir()
    script.write_text("#!/bin/sh\necho $1 > result.txt\n")
    script.chmod(0o755)
    with made.write() as cx:
        apps.add_app(cx, {"name": "sim", "executable": f"{script} -x", "environ_vars": {"API_KEY": "s3cret", "N": "1"}})
        apps.add_app(cx, {"name": "unused", "executable": "true"})
    job = {"workflow": "w", "application": "sim", "environ_vars": {"HF_TOKEN": "s3cret", "OMP": "2"}}
    insert.add_jobs(made, [
        {**job, "name": "first", "data": {"x": [1.5, None], "nan": float("nan")}, "tags": {"t": "ä"}, "unique_key": "k"},
        {**job, "name": "second", "parents": [insert.Position(0)], "wall_time_minutes": 5},
        {**job, "name": "bad", "priority": -3},
        {**job, "name": "other", "workflow": "v", "parents": [insert.Position(2)], "run_when": "all_ended"},
    ])  # fmt: skip
    user_actions.set_state(made, [1], states.JOB_FINISHED)
    user_actions.set_state(made, [3], states.FAILED)
    user_actions.update_fields(made, [2], {"num_nodes": 2, "environ_vars": {"HF_TOKEN": "n3w", "OMP": "3"}})
    with made.write() as cx:
        cx.execute("UPDATE job SET attempt = 1, return_code = 0 WHERE id = 1")
        cx.execute(
            "INSERT INTO run (job, attempt, lease, nodes, started, ended, return_code, user_us, max_memory, cause)"
            " VALUES (1, 1, 7, 'nid[1-2]', 1000000, 3000000, 0, 55, 4096, '')"
        )
    for row in rows(made)[:2]:
        place = Path(made.directory, "data", row["workdir"], "sub")
        place.mkdir(parents=True)
        (place / "result.txt").write_text(row["name"])
        (place.parent / "big.bin").write_bytes(b"\0" * 100_000)
        (place.parent / "link.txt").symlink_to("sub/result.txt")
    yield made
    made.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Database]:
    made = directories.create(str(tmp_path / "other"))
    yield made
    made.close()


def rows(db: Database, **where: Any) -> list[dict[str, Any]]:
    with db.read() as cx:
        return select.jobs(cx, where)


def faults(db: Database) -> list[str]:
    found = doctor.look_over(db, now_us=0, expiry_s=60)
    return [one.text for one in found if one.topic == "rows" and one.level != doctor.OK]


def content(db: Database) -> dict[str, Any]:
    """All that is known of the jobs, without numbers and what belongs to a DB."""
    with db.read() as cx:
        found = {}
        uuids = dict(cx.execute("SELECT id, job_id FROM job"))
        for row in select.jobs(cx):
            kept = {name: value for name, value in row.items() if name not in ("id", "app_id", "parent_ids", "last_update")}
            kept["parents"] = [uuids[number] for number in row["parent_ids"]]
            kept["events"] = cx.execute(
                "SELECT time, from_state, to_state, message FROM event WHERE job = ? ORDER BY id", (row["id"],)
            ).fetchall()
            kept["runs"] = [run._replace(job=0, lease=None) for run in runs.runs_of(cx, row["id"])]
            kept["edits"] = [{**one, "job": 0} for one in edits.edits(cx, [row["id"]]) if "TOKEN" not in one["field"]]
            kept["environ_vars"] = {name: value for name, value in row["environ_vars"].items() if name != "HF_TOKEN"}
            found[row["job_id"]] = json.dumps(kept, sort_keys=True, default=str)
    return found


def export(db: Database, path: Path, where: Any = None, **more: Any) -> exports.Exported:
    return exports.export(db, str(path), where or {}, **more)


KINDS = ("a.tar", "a.tar.gz", "a.tar.zst", "directory")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("has_package", [True, False])
def test_what_is_imported_is_what_was_exported(
    db: Database, other: Database, tmp_path: Path, kind: str, has_package: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "_has_zstandard", lambda: has_package)
    done = export(db, tmp_path / kind, patterns=["*"])
    assert done.counts == {"apps": 1, "jobs": 4, "events": 6, "runs": 1, "edits": 2, "files": 6}
    back = imports.import_archive(other, str(tmp_path / kind), MergeOptions(is_runnable=True))
    assert (back.merged.added.number, back.files) == (4, 6)
    assert content(other) == content(db)
    assert faults(other) == []
    for row in rows(other)[:2]:
        place = Path(other.directory, "data", row["workdir"])
        assert (place / "link.txt").read_text() == (place / "sub" / "result.txt").read_text() == row["name"]
        assert not (place / "link.txt").is_symlink()
    script = Path(other.directory, "scripts", "run.sh")
    assert os.access(script, os.X_OK)
    with other.read() as cx:
        (app,) = select.apps(cx)
        assert cx.execute("SELECT kind, file, directory FROM source").fetchone() == (
            "archive", str(tmp_path / kind), db.directory,
        )  # fmt: skip
    assert app["executable"] == f"{script} -x" and app["environ_vars"] == {"N": "1"}
    assert done.secrets == {"HF_TOKEN": 4, "API_KEY": 1} == back.missing_environ
    again = imports.import_archive(other, str(tmp_path / kind))
    assert (again.merged.already_here, again.merged.added.number, again.files) == (4, 0, 0)


def test_no_secret_is_in_an_archive_and_an_import_can_give_it(db: Database, other: Database, tmp_path: Path) -> None:
    export(db, tmp_path / "a", patterns=["*"])
    for path in (tmp_path / "a").rglob("*"):
        assert not path.is_file() or not {b"s3cret", b"n3w"} & set(path.read_bytes().split(b'"'))
    done = imports.import_archive(other, str(tmp_path / "a"), environ={"HF_TOKEN": "mine"})
    assert {row["environ_vars"]["HF_TOKEN"] for row in rows(other)} == {"mine"}
    assert done.missing_environ == {"API_KEY": 1}


def test_a_part_of_the_jobs_names_the_parents_that_stayed(db: Database, other: Database, tmp_path: Path) -> None:
    done = export(db, tmp_path / "v.tar", {"workflow": "v"})
    assert done.absent_parents == 1
    assert imports.import_archive(other, str(tmp_path / "v.tar")).merged.orphaned == 1
    export(db, tmp_path / "w.tar", {"name": "bad"})
    imports.import_archive(other, str(tmp_path / "w.tar"))
    copies = imports.import_archive(other, str(tmp_path / "v.tar"), MergeOptions(new_ids=True))
    assert rows(other, id=copies.merged.added.first)[0]["parent_ids"] == [2]


def test_files_go_where_they_are_wanted_and_never_over_others(db: Database, other: Database, tmp_path: Path) -> None:
    export(db, tmp_path / "a.tar", patterns=["sub/*", "*.nothing"])
    first = rows(db)[0]
    there = Path(other.directory, "data", first["workdir"], "sub", "result.txt")
    there.parent.mkdir(parents=True)
    there.write_text("mine")
    with pytest.raises(InputError, match="differs"):
        imports.import_archive(other, str(tmp_path / "a.tar"))
    assert rows(other) == [] and there.read_text() == "mine"
    assert sorted(os.listdir(other.directory + "/data")) == ["w"] and not os.path.exists(f"{other.directory}/scripts")
    imports.import_archive(other, str(tmp_path / "a.tar"), MergeOptions(files_to=str(tmp_path / "far")))
    found = rows(other)[0]
    assert found["workdir"] == found["user_workdir"] == str(tmp_path / "far" / first["workdir"])
    assert (tmp_path / "far" / first["workdir"] / "sub" / "result.txt").read_text() == "first"


def fail(*_: object) -> None:
    raise RuntimeError("cut")


def test_an_archive_is_written_whole_or_not_at_all(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in KINDS:
        path = tmp_path / kind
        export(db, path)
        with pytest.raises(InputError, match="exists already"):
            export(db, path)
        before = sorted(os.listdir(tmp_path))
        with monkeypatch.context() as patch:
            patch.setattr(exports, "_add_file", fail)
            with pytest.raises(RuntimeError):
                export(db, path, patterns=["*"], force=True)
        assert sorted(os.listdir(tmp_path)) == before
        assert export(db, path, patterns=["*"], force=True).counts["files"] == 6
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()
    with pytest.raises(InputError, match="no archive"):
        export(db, tmp_path / "mine", force=True)
    with pytest.raises(InputError, match="end in"):
        export(db, tmp_path / "a.zip")
    with pytest.raises(InputError, match="no directory"):
        export(db, tmp_path / "no" / "a.tar")
    assert (tmp_path / "mine" / "precious").exists()


def test_a_shared_db_is_exported_from_a_copy(tmp_path: Path, db: Database, other: Database) -> None:
    export(db, tmp_path / "a.tar")
    shared = directories.create(str(tmp_path / "shared"), "shared")
    imports.import_archive(shared, str(tmp_path / "a.tar"), MergeOptions(is_runnable=True))
    export(shared, tmp_path / "b.tar")
    assert not os.path.exists(f"{shared.directory}/session.lock")
    imports.import_archive(other, str(tmp_path / "b.tar"), MergeOptions(is_runnable=True))
    assert content(other) == content(db)


# --- RO-Crate ---------------------------------------------------------------------------------------------------------


def crate_of(path: Path) -> Any:
    """The crate as the package `rocrate` reads it, which refuses one without what RO-Crate requires."""
    return pytest.importorskip("rocrate.rocrate").ROCrate(str(path))


def test_an_export_is_a_workflow_run_crate(db: Database, other: Database, tmp_path: Path) -> None:
    export(db, tmp_path / "c", patterns=["*"], is_crate=True)
    crate = crate_of(tmp_path / "c")
    assert {"https://w3id.org/ro/wfrun/process/0.5", "https://w3id.org/ro/wfrun/workflow/0.5"} <= {
        one if isinstance(one, str) else one.id for one in crate.root_dataset["conformsTo"]
    }
    workflow = crate.mainEntity
    assert workflow.id == "jobs.jsonl" and set(workflow.type) == {"File", "SoftwareSourceCode", "ComputationalWorkflow"}
    whole, action = crate.root_dataset["mentions"] if isinstance(crate.root_dataset["mentions"], list) else [None, None]
    assert whole["instrument"] == workflow and action["instrument"].type == "SoftwareApplication"
    assert action["actionStatus"].endswith("CompletedActionStatus")
    assert action["startTime"] == "1970-01-01T00:00:01.000+00:00" and action["endTime"] == "1970-01-01T00:00:03.000+00:00"
    first = rows(db)[0]["workdir"]
    assert {file.id for file in action["result"]} == {
        f"files/{first}/{name}" for name in ("big.bin", "link.txt", "sub/result.txt")
    }
    # What RO-Crate requires of each entity: a type, and files that are there; each reference leads to an entity.
    graph = json.loads((tmp_path / "c" / "ro-crate-metadata.json").read_text())["@graph"]
    ids = [entity["@id"] for entity in graph]
    assert len(set(ids)) == len(ids)
    assert all((tmp_path / "c" / entity["@id"]).is_file() for entity in graph if "File" in entity["@type"])
    named = [value["@id"] for entity in graph for one in entity.values() for value in (one if isinstance(one, list) else [one])
             if isinstance(value, dict)]  # fmt: skip
    assert {one for one in named if one not in ids} == {"https://w3id.org/ro/crate/1.1"}
    assert "s3cret" not in json.dumps(graph)
    assert imports.import_archive(other, str(tmp_path / "c")).merged.added.number == 4


def test_the_metadata_of_very_many_jobs_stay_small(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from balsam_lite.campaigns import crate

    monkeypatch.setattr(crate, "MAX_ACTIONS", 5)
    monkeypatch.setattr(crate, "MAX_FILES", 3)
    with db.write() as cx:
        for attempt in range(2, 20):
            cx.execute("INSERT INTO run (job, attempt, started, ended, return_code) VALUES (1, ?, 1000, 2000, 1)", (attempt,))
    export(db, tmp_path / "c", patterns=["*"], is_crate=True)
    found = crate_of(tmp_path / "c")
    whole, *actions = found.root_dataset["mentions"]
    assert sorted(action["name"].split()[0] for action in actions) == ["1", "18"]
    assert not any(entity.id.startswith("files/") and entity.type == "File" for entity in found.get_entities())
    assert {entity.id for entity in found.get_entities() if entity.type == "Dataset"} == {"./", "files/w/", "scripts/scripts/"}


# --- damaged and malicious archives -----------------------------------------------------------------------------------


def repacked(path: Path, change: Callable[[str, bytes], bytes | None], *more: tuple[tarfile.TarInfo, bytes]) -> None:
    """Write the members again, each as `change` returns it (None: without it), and then more."""
    with tarfile.open(path) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar if info.isfile()]  # type: ignore[union-attr]
    with tarfile.open(path, "w") as tar:
        for info, data in members:
            new = change(info.name, data)
            if new is not None:
                info.size = len(new)
                tar.addfile(info, io.BytesIO(new))
            if info.name.startswith("files/"):
                for other, content in more:
                    tar.addfile(other, io.BytesIO(content))
                more = ()


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


def same(name: str, data: bytes) -> bytes:
    return data


def manifest(**changes: Any) -> Callable[[str, bytes], bytes]:
    return lambda name, data: json.dumps({**json.loads(data), **changes}).encode() if name == "manifest.json" else data


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "climbs out": (lambda p: repacked(p, same, (member("files/../../x", size=1), b"x")), "leads out"),
    "absolute": (lambda p: repacked(p, same, (member("/tmp/x", size=1), b"x")), "leads out"),
    "link": (lambda p: repacked(p, same, (member("files/w/l", tarfile.SYMTYPE, link="/etc"), b"")), "link"),
    "hard link": (lambda p: repacked(p, same, (member("files/w/l", tarfile.LNKTYPE, link="manifest.json"), b"")), "link"),
    "device": (lambda p: repacked(p, same, (member("files/w/l", tarfile.CHRTYPE), b"")), "no regular file"),
    "file without checksum": (lambda p: repacked(p, same, (member("files/w/l", size=1), b"x")), "no checksum"),
    "file cut": (lambda p: repacked(p, lambda n, d: d[:-1] if n.endswith("big.bin") else d), "damaged"),
    "file missing": (lambda p: repacked(p, lambda n, d: None if n.endswith("big.bin") else d), "missing"),
    "no list of files": (lambda p: repacked(p, lambda n, d: None if n == "files.jsonl" else d), "cut"),
    "jobs changed": (
        lambda p: repacked(p, lambda n, d: d.replace(b"bad", b"dab") if n == "jobs.jsonl" else d),
        "checksum",
    ),
    "jobs cut": (lambda p: repacked(p, lambda n, d: d[:-9] if n == "jobs.jsonl" else d), "manifest tells"),
    "no jobs": (lambda p: repacked(p, lambda n, d: None if n == "jobs.jsonl" else d), "cut"),
    "tar cut": (lambda p: os.truncate(p, os.path.getsize(p) // 2), "damaged|cut"),
    "newer": (lambda p: repacked(p, manifest(format_version=99)), "newer balsam_lite"),
    "foreign": (lambda p: repacked(p, manifest(format="zip")), "format"),
    "manifest damaged": (lambda p: repacked(p, manifest(tables={})), "damaged"),
    "manifest no JSON": (lambda p: repacked(p, lambda n, d: b"[" if n == "manifest.json" else d), "damaged"),
    "empty": (lambda p: p.write_bytes(b""), "damaged|no archive"),
    "no tar": (lambda p: p.write_bytes(b"hello" * 1000), "damaged"),
    "gzip cut": (lambda p: p.write_bytes(gzip.compress(p.read_bytes())[:900]), "damaged"),
    "zstd damaged": (lambda p: p.write_bytes(b"\x28\xb5\x2f\xfd" + b"x" * 100), "damaged|zstd"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_archive_changes_nothing(db: Database, other: Database, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.tar"
    export(db, path, patterns=["*"])
    spoil, words = BAD[kind]
    spoil(path)
    before = sorted(str(one) for one in Path(other.directory).rglob("*"))
    with pytest.raises(ArchiveError, match=words):
        imports.import_archive(other, str(path))
    assert rows(other) == [] and faults(other) == []
    with other.read() as cx:
        assert select.apps(cx) == []
    connection.close_all()
    left = {str(one) for one in Path(other.directory).rglob("*")} - set(before)
    assert not {one for one in left if "sqlite3" not in one}
    assert not (tmp_path / "x").exists()


def test_directories_with_links_are_refused(db: Database, other: Database, tmp_path: Path) -> None:
    export(db, tmp_path / "a", patterns=["*"])
    (tmp_path / "a" / "files" / "l").symlink_to("/etc/passwd")
    with pytest.raises(ArchiveError, match="link"):
        imports.import_archive(other, str(tmp_path / "a"))
    shutil.rmtree(tmp_path / "a" / "files")
    with pytest.raises(ArchiveError, match="missing"):
        imports.import_archive(other, str(tmp_path / "a"))
    with pytest.raises(InputError, match=r"manifest\.json"):
        imports.import_archive(other, str(tmp_path))
    with pytest.raises(InputError, match="No such file"):
        imports.import_archive(other, str(tmp_path / "nothing"))


def test_huge_members_and_headers_are_refused_before_they_are_unpacked(
    db: Database, other: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tar"
    export(db, path, patterns=["*"])
    repacked(path, manifest(tables={name: {"bytes": 1 << 60, "lines": 1, "sha256": ""} for name in archive.TABLES}))
    with pytest.raises(ArchiveError, match="manifest tells"):
        imports.import_archive(other, str(path))
    export(db, path, patterns=["*"], force=True)
    monkeypatch.setattr(archive, "_RESERVE_BYTES", 1 << 60)
    with pytest.raises(DatabaseFull, match="bytes free"):
        imports.import_archive(other, str(path))
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(member("x" * (2 << 20), size=0))
    with pytest.raises(ArchiveError, match="header"):
        imports.import_archive(other, str(path))
    assert rows(other) == []


# --- commands -----------------------------------------------------------------------------------------------------------


def test_the_commands_tell_what_they_did(balsam: Balsam, db: Database, other: Database, tmp_path: Path) -> None:
    path = str(tmp_path / "c.tar.gz")
    code, out, err = balsam("--db", db.directory, "export", path, "--wf", "w", "--files", "*.txt", "--files", "*.no")
    assert code == 0 and out.startswith("Exported 1 application, 3 jobs, 4 events, 1 run, 2 edits and 4 files to")
    assert "No file matches --files *.no" in err and "HF_TOKEN (3 times)" in err
    code, out, err = balsam("--db", other.directory, "import", path, "--dry-run")
    assert code == 0 and out.startswith("Would import 3 jobs") and out.endswith("Nothing was changed.\n") and rows(other) == []
    code, out, err = balsam("--db", other.directory, "import", path, "--into-workflow", "new", "--env", "HF_TOKEN=x")
    assert code == 0 and "Imported 3 jobs with 4 files" in out and out.endswith("as #1 to #3.\n")
    assert "1 job had not ended (CREATED" not in err and "USER_KILLED. `balsam rerun`" in err and "API_KEY (1 time)" in err
    assert {row["workflow"] for row in rows(other)} == {"new"}
    code, out, err = balsam("--db", other.directory, "show", "first")
    assert f"#1 of the DB {db.directory}" in " ".join(out.split())
    code, out, err = balsam("--db", other.directory, "import", path, "--json")
    (found,) = json.loads(out)
    assert (code, found["jobs"], found["already_here"]) == (0, 0, 3)
    code, out, err = balsam("--db", db.directory, "export", str(tmp_path / "d"), "--name", "nothing")
    assert code == 3 and not (tmp_path / "d").exists()
    code, out, err = balsam("--db", db.directory, "export", path)
    assert code == 2 and "exists already" in err


def test_a_directory_that_cannot_be_made_refuses_the_import(
    balsam: Balsam, db: Database, other: Database, tmp_path: Path
) -> None:
    export(db, tmp_path / "a.tar", patterns=["*"])
    (tmp_path / "file").write_text("")
    code, _, err = balsam("--db", other.directory, "import", str(tmp_path / "a.tar"), "--files-to", str(tmp_path / "file"))
    assert code == 2 and "cannot be written" in err and err.endswith("nothing was imported.\n")
    assert rows(other) == []


def test_an_import_that_was_taken_back_has_written_nothing(
    balsam: Balsam, db: Database, other: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(db, tmp_path / "a.tar", patterns=["*"])
    monkeypatch.setattr(imports, "refuse_size", lambda *about: archive.refuse_size("/proc", *about[1:]))
    code, _, err = balsam("--db", other.directory, "import", str(tmp_path / "a.tar"))
    assert code == 1 and err.endswith("nothing was imported.\n")
    assert rows(other) == []


def test_an_archive_has_a_name(balsam: Balsam, db: Database, tmp_path: Path) -> None:
    code, _, err = balsam("--db", db.directory, "export", "-")
    assert code == 2 and "give it a name" in err and not os.path.lexists("-")


def test_a_crash_in_an_import_leaves_no_job_and_the_same_import_completes_it(
    db: Database, other: Database, tmp_path: Path
) -> None:
    export(db, tmp_path / "a.tar", patterns=["*"])
    other.close()
    words = [sys.executable, "-m", "balsam_lite.cli", "--db", other.directory, "import", str(tmp_path / "a.tar"), "--runnable"]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    for place in ("before-piece:1", "after-piece:1", "before-piece:2"):  # the last one: files are in place, jobs are hidden
        environ = {**os.environ, "BALSAM_FAILPOINT": place, "TMPDIR": str(temporary)}
        done = subprocess.run(words, env=environ, timeout=60, capture_output=True)
        assert done.returncode == -signal.SIGKILL
        assert rows(other) == [] and os.listdir(temporary) == []
        other.close()
    assert subprocess.run(words, timeout=60, check=True, capture_output=True).returncode == 0
    assert content(other) == content(db) and faults(other) == []


def test_a_launcher_goes_on_during_an_import_and_runs_nothing_of_it(tmp_path: Path, db: Database) -> None:
    (tmp_path / "busy").mkdir()
    bench = Bench(tmp_path / "busy")
    try:
        bench.app("sim", "sleep 0.02")
        own = bench.add([{"application": "sim", "name": f"own{n}"} for n in range(100)])
        export(db, tmp_path / "a.tar")
        launcher = bench.launch()
        wait_until(lambda: rows(bench.db, state=states.JOB_FINISHED))
        options = MergeOptions(on_differing_app="rename")
        added = imports.import_archive(bench.db, str(tmp_path / "a.tar"), options).merged
        assert launcher.wait(60) == 0
        assert sum(added.stopped.values()) == 2
        assert {row["state"] for row in rows(bench.db, id=own)} == {states.JOB_FINISHED}
        imported = rows(bench.db, id=list(added.added.ids))
        assert {row["state"] for row in imported} == {states.JOB_FINISHED, states.FAILED, states.USER_KILLED}
        assert sum(row["attempt"] for row in imported) == 1
        assert faults(bench.db) == []
    finally:
        bench.close()


def test_every_error_is_one_of_ours(db: Database, other: Database, tmp_path: Path) -> None:
    """Each byte of an archive damaged in turn: an error in words, or what was exported."""
    path = tmp_path / "a.tar"
    export(db, path, patterns=["*.txt"])
    whole = path.read_bytes()
    for place in range(0, len(whole), 997):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            imports.import_archive(other, str(path), MergeOptions(is_runnable=True))
        except BalsamError:
            assert rows(other) == []
        else:
            assert set(content(other)) == set(content(db))
            user_actions.delete(other, [row["id"] for row in rows(other)], force=True)
            shutil.rmtree(f"{other.directory}/data/w")
    assert main(["--db", other.directory, "db", "check"]) == 0


def test_calls_come_along_and_run_if_their_parents_do(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    there, here = Bench(tmp_path / "one", BALSAM_IDLE_TTL_S="20"), Bench(tmp_path / "two")
    try:
        with use(there.db), BalsamExecutor() as executor:
            launcher = there.launch()
            first = executor.submit(abs, -3)
            complicated = executor.submit(slice, 1, 2)
            assert (first.result(60), complicated.result(60)) == (3, slice(1, 2))
            launcher.terminate()
            assert launcher.wait(60) == 0
            waiting = executor.submit(divmod, 17, first)
            numbers = first.number, complicated.number, waiting.number
            export(there.db, tmp_path / "all.tar")
            export(there.db, tmp_path / "one.tar", {"id": [numbers[2]]})
            waiting.cancel()
        merged = imports.import_archive(here.db, str(tmp_path / "all.tar"), MergeOptions(is_runnable=True)).merged
        assert here.run() == 0
        with here.db.read() as cx:
            found = results.page(cx, {}, ("name", "state", results.RESULT), 0, 10, "", "")
        assert sorted(tuple(row[1:]) for row in found) == [
            ("abs", states.JOB_FINISHED, "3"), ("divmod", states.JOB_FINISHED, "[5, 2]"), ("slice", states.JOB_FINISHED, None),
        ]  # fmt: skip
        assert merged.added.number == 3
        copies = imports.import_archive(here.db, str(tmp_path / "one.tar"), MergeOptions(is_runnable=True, new_ids=True)).merged
        with here.db.read() as cx:  # without its parent it could get the wrong number
            (payload,) = cx.execute("SELECT payload FROM call WHERE job = ?", (copies.added.first,)).fetchone()
        assert not payload and faults(here.db) == []
    finally:
        there.close()
        here.close()
