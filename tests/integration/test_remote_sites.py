"""Sites on other hosts: addresses, the question and its answer, and a real sshd on this host's loopback."""

from __future__ import annotations

import asyncio
import inspect
import io
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers import ROOT, wait_until
from sshd import HOST, Remote, remote_host

from balsam_lite import __version__
from balsam_lite.cli import run
from balsam_lite.cli.main import main
from balsam_lite.core import errors, subprocess_run
from balsam_lite.core.errors import BalsamError, InputError, InvalidSpec, SiteUnreachable, StateError, UnknownField
from balsam_lite.core.process_table import JOB_VARIABLES
from balsam_lite.core.settings import SettingsWarning
from balsam_lite.core.subprocess_run import Completed
from balsam_lite.db.engine import directories, registry
from balsam_lite.db.engine.registry import SiteEntry
from balsam_lite.sites import fanout
from balsam_lite.sites.interface import SiteInterface
from balsam_lite.sites.local import LocalSite
from balsam_lite.sites.rpc import protocol, remote, ssh
from balsam_lite.sites.rpc.protocol import respond
from balsam_lite.sites.rpc.remote import ABOUT_S, CONNECT_S, RemoteSite

#: A desk that says what it was asked; in the place of the one that asks the DB, here and over there.
STUB = """
import select, sys
from balsam_lite import __version__
from balsam_lite.core.errors import StateError

class LocalSite:
    def __init__(self, entry, database):
        self.entry = entry
    def about(self):
        return {"version": __version__, "path": self.entry.path}
    def select(self, kind, where={}, order="", start=0, stop=None):
        print("words on stdout")
        return [{"kind": kind, "where": where, "order": order, "start": start, "stop": stop}]
    def count(self, kind, where={}):
        return 1 // 0
    def create(self, kind, rows):
        if kind == "slow":
            poll = select.poll()
            poll.register(1, 0)
            poll.poll(20_000)  # until the other end is closed
        return rows
    def update(self, kind, changes):
        raise StateError("It's \\u2013 no!\\n$(really)", hint="Do `nothing`.")
    def secret(self):
        return "not to be told"
"""


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "path"),
    [
        ("ssh://far/db", "far", "/db"),
        ("ssh://me@far.org:2222/a/b/", "me@far.org:2222", "/a/b"),
        ("ssh://[::1]:22//db", "[::1]:22", "/db"),
        ("ssh://far/~/my db", "far", "/~/my db"),
        ("ssh://first@second@far/$(x)/it's%20", "first@second@far", "/$(x)/it's%20"),
    ],
)
def test_an_address_has_a_host_and_a_path_as_they_are_written(text: str, host: str, path: str) -> None:
    assert ssh.parse_address(text) == (host, path)
    assert ssh.parse_address(SiteEntry(1, "x", path, host).address) == (host, path)


@pytest.mark.parametrize(
    "text",
    [
        "", "far:/db", "scp://far/db", "ssh://far", "ssh://far/", "ssh:///db", "ssh://-oProxyCommand=x/db", "ssh://-l@far/db",
        "ssh://me@-far/db", "ssh://me@/db", "ssh://far:0/db", "ssh://far:65536/db", "ssh://far:x/db", "ssh://a b/db",
        "ssh://$(x)/db", "ssh://`x`/db", "ssh://a;b/db", "ssh://a'b/db", "ssh://%h/db", "ssh://far\n/db", "ssh://far/d\nb",
        "ssh://far/d\0b", "ssh://me:password@far/db",
    ],
)  # fmt: skip
def test_an_address_ssh_or_a_shell_could_misread_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        ssh.parse_address(text)
    assert "ssh://[USER@]HOST[:PORT]/PATH" in caught.value.hint


def test_the_host_and_the_command_of_a_registry_written_by_others_are_checked_as_well() -> None:
    with pytest.raises(InvalidSpec, match="cannot be a host"):
        RemoteSite(SiteEntry(1, "x", "/db", "-oProxyCommand=touch x"))
    for balsam in ("", "-c", "a\nb", "a\0b"):
        with pytest.raises(InputError, match="cannot be the command"):
            RemoteSite(SiteEntry(1, "x", "/db", "far", balsam))


def test_nothing_but_a_home_is_left_to_the_shell_there(tmp_path: Path) -> None:
    nasty = tmp_path / "it's a $(touch pwned) `touch pwned`; \\ & *"
    nasty.mkdir()
    command = nasty / "balsam"
    command.write_text('#!/bin/sh\necho "$0" "$@"\n')
    command.chmod(0o755)
    for line in (ssh.shell_line(str(command)), ssh.shell_line("~/" + str(command.relative_to(tmp_path)))):
        done = subprocess.run(
            ["sh", "-c", line], cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True
        )
        assert done.stdout == f"{command} answer\n", done.stderr
    assert sorted(tmp_path.iterdir()) == [nasty]


def test_ssh_never_asks_and_takes_the_host_for_nothing_else() -> None:
    argv = ssh.command(ssh.parse_host("me@[::1]:2222"), "exec balsam answer", 3)
    assert argv[-5:] == ["-p", "2222", "--", "me@::1", "exec balsam answer"]
    assert {"BatchMode=yes", "ConnectTimeout=3"} < set(argv)


# --- sockets ----------------------------------------------------------------------------------------------------------


def test_a_long_temporary_directory_is_no_place_for_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert ssh._control_directory() in ("", f"/tmp/balsam-ssh-{os.getuid()}")
    assert list(long.iterdir()) == []


def test_sockets_lie_where_only_this_user_can_enter() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        directory = f"{short}/mine"
        assert ssh._is_private(directory)
        assert os.stat(directory).st_mode & 0o777 == 0o700
        os.chmod(directory, 0o755)
        assert not ssh._is_private(directory)  # others can look in
        os.symlink(directory, f"{short}/link")
        assert not ssh._is_private(f"{short}/link")
        assert not ssh._is_private(f"{short}/nothing/here")


def test_a_program_may_leave_processes_behind_that_keep_its_stderr_open() -> None:
    started = time.monotonic()
    done = subprocess_run.run(
        ["sh", "-c", "echo early >&2; sleep 60 >/dev/null & echo $!; exit 3"], leaves_some=True, timeout_s=50
    )
    os.kill(int(done.stdout), signal.SIGKILL)
    assert done.returncode == 3
    assert done.stderr == "early\n"
    assert time.monotonic() - started < 40


# --- the question and the answer --------------------------------------------------------------------------------------


def test_what_can_be_asked_is_the_interface_and_remote_sites_take_the_same_arguments() -> None:
    asked = {
        name: value for name, value in vars(SiteInterface).items() if inspect.isfunction(value) and not name.startswith("_")
    }
    assert sorted([*protocol.METHODS, "at_one_moment"]) == sorted(asked)
    assert {"about", "select", "create"} < set(asked)
    for name, method in asked.items():
        assert inspect.signature(getattr(RemoteSite, name)) == inspect.signature(method), name


ALL_ERRORS = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, BalsamError)]


@pytest.mark.parametrize("kind", ALL_ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_keeps_its_class_its_words_and_its_hint(kind: type[BalsamError]) -> None:
    reply = protocol.find_answer(protocol.write_error("m", kind("Ü: \"a\"\n'b'", hint="Do so.")), "m")
    assert reply is not None and reply.error is not None
    assert type(reply.error) is kind
    assert (reply.error.message, reply.error.hint) == ("Ü: \"a\"\n'b'", "Do so.")


def test_a_class_of_error_that_is_not_known_becomes_the_nearest_that_is() -> None:
    class Special(StateError):
        pass

    reply = protocol.find_answer(protocol.write_error("m", Special("no")), "m")
    assert reply is not None and type(reply.error) is StateError
    other = protocol.find_answer('{"marker": "m", "version": "1", "error": {"type": "os", "message": "a", "hint": ""}}', "m")
    assert other is not None and type(other.error) is BalsamError


@pytest.mark.parametrize("noise", ["", "Welcome!\n", '{"marker": "m", "version": "0", "answer": 2}\n', "no end of line"])
def test_the_answer_is_found_among_what_login_scripts_print(noise: str) -> None:
    reply = protocol.find_answer(f"{noise}{protocol.write_answer('mm', {'a': [1, None]})}\nbye\n", "mm")
    assert reply == protocol.Reply(__version__, {"a": [1, None]})


@pytest.mark.parametrize("text", ["", "{}", '{"marker": "m"', '{"marker": "m"}', '{"marker": "m", "version": "1", "error": 3}'])
def test_half_an_answer_is_none(text: str) -> None:
    assert protocol.find_answer(text, "m") is None
    assert protocol.find_answer(protocol.write_answer("m", "x" * 100)[:-3], "m") is None


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("balsam_lite.sites.local")
    exec(STUB, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture
def db(tmp_path: Path) -> str:
    directory = str(tmp_path / "db")
    directories.create(directory).close()
    return directory


@pytest.mark.parametrize(
    ("line", "kind", "words"),
    [
        (b"", "InvalidSpec", "This is no request"),
        (b"[1, 2]", "InvalidSpec", "This is no request"),
        (b"\xff", "InvalidSpec", "This is no request"),
        (b"[" * 100_000, "InvalidSpec", "This is no request"),
        (b'{"method": "about", "arguments": {}}', "InvalidSpec", "does not have the version"),
        (b'{"version": "V", "method": "about", "arguments": []}', "InvalidSpec", "must be an object"),
        (b'{"version": "V", "method": ["about"], "arguments": {}}', "InvalidSpec", "everything else in it text"),
        (b'{"version": "V", "method": "secret", "arguments": {}}', "InvalidSpec", "no method 'secret'"),
        (b'{"version": "V", "method": "__class__", "arguments": {}}', "InvalidSpec", "no method '__class__'"),
        (b'{"version": "V", "method": "about", "arguments": {"a": 1}}', "BalsamError", "unexpected TypeError"),
        (b'{"version": "V", "method": "count", "arguments": {"kind": "job"}}', "BalsamError", "unexpected ZeroDivisionError"),
        (b'{"version": "0.0.1", "method": "create", "arguments": {}}', "SiteUnreachable", "asked by balsam_lite 0.0.1"),
        (b'{"version": "V", "method": "about", "arguments": {}, "db": "/nowhere"}', "NotABalsamDB", "/nowhere"),
    ],
)
def test_whatever_is_asked_wrongly_is_an_answer(line: bytes, kind: str, words: str, stub: types.ModuleType, db: str) -> None:
    reply = json.loads(respond(line.replace(b'"V"', json.dumps(__version__).encode()), db))
    assert set(reply) == {"version", "error"}
    assert reply["error"]["type"] == kind
    assert words in reply["error"]["message"]


def test_the_command_prints_one_object_and_nothing_else_on_stdout(
    stub: types.ModuleType, db: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def about(self: Any) -> dict[str, str]:
        print("from a user's module")
        warnings.warn("of a setting", SettingsWarning, stacklevel=1)
        return {"path": self.entry.path, "name": "ü"}

    stub.LocalSite.about = about
    request = json.dumps({"version": __version__, "method": "about", "arguments": {}}).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(request)))
    assert main(["--db", db, "answer", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"version": __version__, "answer": {"path": db, "name": "ü"}}
    assert captured.out.count("\n") == 1
    assert captured.err == "from a user's module\nWarning: of a setting\n"


def test_a_closed_stdin_is_no_request(db: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # as Python has it after `<&-`
    assert main(["--db", db, "answer"]) == 0
    assert "This is no request" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_a_registry_with_an_endless_number_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BALSAM_HOME", str(tmp_path))
    (tmp_path / registry.FILE_NAME).write_text('{"last": 1e400, "sites": []}')
    assert main(["site", "ls"]) == 1
    assert f"{registry.FILE_NAME} cannot be read: cannot convert float infinity" in capsys.readouterr().err


def test_where_a_traceback_goes_is_found_whatever_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "find", lambda named: 1 // 0)
    assert run._db_log([]) == ""


def test_sets_and_ranges_may_be_asked_for_and_what_json_has_not_is_refused() -> None:
    request = protocol.RpcRequest("select", {"where": {"id": {3}, "job_id": range(2)}})
    assert protocol.read_request(protocol.write_request(request)).arguments == {"where": {"id": [3], "job_id": [0, 1]}}
    with pytest.raises(InvalidSpec, match=r"cannot be sent to another host: .*object"):
        protocol.write_request(protocol.RpcRequest("create", {"rows": [object()]}))


# --- when there is no answer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returncode", "stderr", "what", "advice", "is_early"),
    [
        (255, "me@far: Permission denied (publickey,password).", "Permission denied (publickey,password)", "ssh-add", True),
        (255, "ssh: Could not resolve hostname far: Name or service not known", "Could not resolve", "site ls", True),
        (255, "No ED25519 host key is known for far\nHost key verification failed.", "verification failed", "`ssh far`", True),
        (255, "ssh: connect to host far port 22: Connection timed out", "Connection timed out", "Is the host up", True),
        (255, "Connection timed out during banner exchange\nConnection to 1.2.3.4 port 22 timed out", "exchange", "up", True),
        (255, "/h/.ssh/config: line 1: Bad configuration option: x", "Bad configuration", "~/.ssh/config", True),
        (255, "Timeout, server far not responding.", "not responding", "Is the host up", False),
        (255, "", "the connection ended", "Is the host up", False),
        (127, "bash: line 1: exec: balsam: not found", "no command balsam on far", "--balsam /path/to/bin/balsam", True),
        (1, "balsam: Command not found.", "no command balsam on far", "--balsam /path/to/bin/balsam", True),
        (126, "sh: 1: exec: balsam: Permission denied", "cannot be run", "--balsam", True),
        (2, "Error: No such command 'answer'.", "too old, or no balsam_lite", "Install the version", True),
        (1, "ModuleNotFoundError: No module named 'click'", "ended with 1 and printed: ModuleNotFoundError", "by hand", False),
        (0, "", "ended with 0 and printed nothing", "by hand", False),
        (None, "ssh could not be started: [Errno 2]", "could not be started", "OpenSSH", True),
        (None, "no answer within 4 s, so it was killed", "no answer within 4 s.", "busy", False),
        (None, "it printed more than 2 MiB, so it was killed", "printed more than 2 MiB", "fewer", False),
    ],
)
def test_silence_is_explained(returncode: int | None, stderr: str, what: str, advice: str, is_early: bool) -> None:
    entry, done = SiteEntry(1, "s", "/db", "far"), Completed([], returncode, "", stderr)
    told = ssh.diagnose(entry, ssh.parse_host("far"), done, changing=True)
    assert told.message.startswith("ssh://far/db: ")
    assert what in told.message
    assert advice in told.hint
    assert ("It is unknown" in told.message) is not is_early
    assert "It is unknown" not in ssh.diagnose(entry, ssh.parse_host("far"), done, changing=False).message


# --- a real sshd ------------------------------------------------------------------------------------------------------


class Far(NamedTuple):
    """The other host."""

    folder: Path  # on both: it is the same machine
    port: int
    log: Path

    def balsam(self, setup: str = "", before: str = "", after: str = "") -> str:
        """A command for the other host with a home of its own. `setup` is Python, `before` and `after` are of the shell."""
        folder = Path(tempfile.mkdtemp(dir=self.folder, prefix="it's $(touch pwned) "))
        script = folder / "script.py"
        script.write_text(
            f"import sys, types; sys.path.insert(0, {str(ROOT)!r}); import balsam_lite\n{setup}\n"
            "from balsam_lite.cli.main import main\nsys.exit(main())\n"
        )
        command = folder / "balsam"
        home = shlex.quote(str(self.folder / "home"))
        variables = f"BALSAM_HOME={home} BALSAM_SCHEDULER_CLASS=LocalScheduler"
        line = f'{variables} {shlex.quote(sys.executable)} {shlex.quote(str(script))} "$@"'
        command.write_text(f"#!/bin/sh\n{before}\n{line}\n{after}\n")
        command.chmod(0o755)
        return str(command)

    def connections(self) -> int:
        return self.log.read_text().count("Accepted publickey")


@pytest.fixture(scope="module")
def sockets() -> Iterator[str]:
    """A short temporary directory; no connection outlives the tests."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        yield folder
        _disconnect(folder)


def _disconnect(folder: str) -> None:
    for path in Path(folder).glob("balsam-ssh-*/*"):
        subprocess.run(["ssh", "-o", f"ControlPath={path}", "-O", "exit", "x"], capture_output=True, timeout=10)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Remote]]:
    folder = tmp_path_factory.mktemp("far")
    with remote_host(folder) as remote:
        yield folder, remote


@pytest.fixture
def far(server: tuple[Path, Remote], sockets: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Far]:
    folder, remote = server
    monkeypatch.setenv("PATH", remote.path)
    monkeypatch.setattr(tempfile, "tempdir", sockets)
    ssh._has_own_control_path.cache_clear()
    yield Far(folder, remote.port, folder / "sshd.log")
    ssh._has_own_control_path.cache_clear()


_WITH_STUB = (
    f"local = types.ModuleType('balsam_lite.sites.local')\nsys.modules[local.__name__] = local\nexec({STUB!r}, local.__dict__)"
)


@pytest.fixture(scope="module")
def stub_there(server: tuple[Path, Remote]) -> str:
    return Far(server[0], 0, Path()).balsam(_WITH_STUB)


def test_a_site_behind_ssh_is_told_what_it_is_asked_and_nothing_is_read_by_a_shell(
    far: Far, stub_there: str, tmp_path: Path
) -> None:
    path = str(tmp_path / '-it\'s "$(touch pwned)" `touch pwned`; \\ ü')
    directories.create(path).close()
    desk = RemoteSite(SiteEntry(1, "far", path, HOST, stub_there))
    assert desk.about() == {"version": __version__, "path": path}
    where = {"tags": {"a'b": '"$(touch pwned)"\n', "ü": "\u2013\0"}, "id": [1, 2**60]}
    assert desk.select("job", where, "-id", 2, 7) == [{"kind": "job", "where": where, "order": "-id", "start": 2, "stop": 7}]
    for folder in (Path.home(), far.folder, tmp_path, Path(stub_there).parent):
        assert not (folder / "pwned").exists()


def test_an_error_over_there_is_raised_here_and_its_cause_names_the_site(far: Far, stub_there: str, db: str) -> None:
    desk = RemoteSite(SiteEntry(1, "far", db, HOST, stub_there))
    with pytest.raises(StateError) as caught:
        desk.update("job", [{"id": 1}])
    assert caught.value.message == "It's \u2013 no!\n$(really)"
    assert caught.value.hint == "Do `nothing`."
    assert f"ssh://{HOST}{db}" in str(caught.value.__cause__)


def test_a_hundred_thousand_rows_go_there_and_come_back(far: Far, stub_there: str, db: str) -> None:
    rows = [{"id": number, "tags": {"system": "H2O"}} for number in range(100_000)] + [{"text": "x" * 2**24}]
    assert RemoteSite(SiteEntry(1, "far", db, HOST, stub_there)).create("job", rows) == rows


def test_a_connection_is_kept_for_the_next_questions(far: Far, stub_there: str, db: str) -> None:
    desk = RemoteSite(SiteEntry(1, "far", db, HOST, stub_there))
    desk.about()
    before = far.connections()
    desk.about()
    desk.about()
    assert far.connections() == before


def test_a_kept_connection_is_no_part_of_the_job_that_asked(
    far: Far, stub_there: str, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in JOB_VARIABLES:
        monkeypatch.setenv(variable, "42")
    _disconnect(tempfile.gettempdir())
    RemoteSite(SiteEntry(1, "far", db, HOST, stub_there)).about()
    [path] = Path(tempfile.gettempdir()).glob("balsam-ssh-*/*")
    told = subprocess.run(["ssh", "-o", f"ControlPath={path}", "-O", "check", "x"], capture_output=True, text=True)
    master = int(told.stderr.partition("pid=")[2].partition(")")[0])
    environ = Path(f"/proc/{master}/environ").read_bytes().split(b"\0")
    assert {word.partition(b"=")[0].decode() for word in environ}.isdisjoint(JOB_VARIABLES)
    assert os.getsid(master) != os.getsid(0)
    assert {os.readlink(f"/proc/{master}/fd/{number}") for number in (0, 1)} == {os.devnull}


def test_results_of_another_host_are_those_of_a_site_here(far: Far, db: str, capsys: pytest.CaptureFixture[str]) -> None:
    there = LocalSite(SiteEntry(0, "here", db))
    there.create("app", [{"name": "say", "executable": "echo"}])
    data = ({"energy": float("nan")}, {"fit": {"a": 1}}, {})
    there.create("job", [{"name": f"j{n}", "app": "say", "workflow": "w", "data": one} for n, one in enumerate(data)])
    entry = SiteEntry(1, "far", db, HOST, far.balsam())
    fields = ("name", "data", "created", "node", "result")
    assert [tuple(row) for row in RemoteSite(entry).results({}, fields, 0, 2)] == list(
        map(tuple, there.results({}, fields, 0, 2))
    )
    added = registry.add(db, "far-results", HOST, far.balsam())
    assert main(["results", "--site", "far-results", "--columns", "name,data", "--sort", "-name", "--format", "csv"]) == 0
    assert capsys.readouterr().out == "name,data.fit.a,data.energy\nj2,,\nj1,1,\nj0,,nan\n"
    registry.forget(added.number)


def test_many_jobs_are_added_at_another_host_as_here(
    far: Far, db: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = LocalSite(SiteEntry(0, "here", db))
    there.create("app", [{"name": "say", "executable": "echo"}])
    added = registry.add(db, "far-intake", HOST, far.balsam())
    table = tmp_path / "t.csv"
    table.write_text("name,parents,unique_key\nb,a,\na,,k\n")
    words = ["job", "--from-file", str(table), "--app", "say", "--workflow", "w", "--site", "far-intake"]
    assert main([*words, "--yes"]) == 0
    assert main([*words, "--yes", "--on-duplicate", "skip"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "Added 2 jobs to database: #1 to #2",
        "Added 1 job to database: #3",
        "Skipped 1 job whose unique key is there already: #2",
    ]
    assert [job["parent_ids"] for job in there.select("job")] == [[2], [], [2]]
    table.write_text("name,num_nodes\na,1\nb,x\n")
    assert main([*words, "--yes"]) == 2
    assert "t.csv, line 3, column 2: job num_nodes must be a whole number" in capsys.readouterr().err
    commands = tmp_path / "c.txt"
    commands.write_text("echo 1\necho 2\n")
    assert main(["job", "--commands", str(commands), "--yes", "--site", "far-intake"]) == 0
    assert [app["name"] for app in there.select("app")] == ["say", "commands"]
    monkeypatch.setattr(remote, "MAX_SENT_JOBS", 1)
    assert main(["job", "--commands", str(commands), "--yes", "--site", "far-intake"]) == 2
    assert "More than 1 jobs cannot be added at ssh://" in capsys.readouterr().err
    assert there.count("job") == 5
    registry.forget(added.number)


def test_a_site_of_another_host_is_watched_from_here(far: Far, db: str) -> None:
    from balsam_lite.cli.watch_screens import WatchApp

    there = LocalSite(SiteEntry(0, "here", db))
    there.create("app", [{"name": "say", "executable": "echo"}])
    (job,) = there.create("job", [{"name": "one", "app": "say", "workflow": "w"}])
    entry = SiteEntry(1, "far", db, HOST, far.balsam())
    assert {**RemoteSite(entry).overview(), "time": 0} == {**there.overview(), "time": 0}

    async def run() -> None:
        app = WatchApp(RemoteSite(entry), {}, 0.2)
        async with app.run_test(size=(80, 24)) as pilot:
            for _ in range(400):
                text = "".join(part.text for line in app.screen._compositor.render_strips() for part in line)
                if "0 of 1 ended" in text:
                    break
                await pilot.pause(0.1)
            assert "far" in text
            assert "1 CREATED" in text

    asyncio.run(run())
    assert job["state"] == "CREATED"


def test_two_sites_of_one_host_are_two(far: Far, stub_there: str, tmp_path: Path) -> None:
    entries = [SiteEntry(number, f"far{number}", str(tmp_path / f"db{number}"), HOST, stub_there) for number in (1, 2)]
    for entry in entries:
        directories.create(entry.path).close()
    answers = fanout.query_all(entries, lambda desk: desk.about()["path"])
    assert answers.found == [(entry, entry.path) for entry in entries]
    assert answers.failed == []


def test_users_own_shared_connections_are_used_as_they_are(far: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = ssh.parse_host(HOST)
    assert any(setting.startswith("ControlPath=") for setting in ssh._sharing(host))
    config = tmp_path / "ssh_config"
    config.write_text(f"Host {HOST}\n    ControlPath ~/.ssh/%C\n")
    (tmp_path / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {config} "$@"\n')
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    ssh._has_own_control_path.cache_clear()
    assert ssh._sharing(host) == []


def test_words_of_login_scripts_do_not_matter(far: Far, db: str) -> None:
    balsam = far.balsam(
        _WITH_STUB, before="echo 'Welcome! {\"version\": 1}'; printf 'no end of line'", after="echo bye; exit 3"
    )
    assert RemoteSite(SiteEntry(1, "far", db, HOST, balsam)).about()["path"] == db


def test_another_version_is_told_with_both_and_nothing_is_done(far: Far, db: str, tmp_path: Path) -> None:
    done = tmp_path / "done"
    balsam = far.balsam(
        f"{_WITH_STUB}\nbalsam_lite.__version__ = '9.8.7'\nlocal.LocalSite.create = lambda *a, **k: open({str(done)!r}, 'w')"
    )
    with pytest.raises(SiteUnreachable) as caught:
        RemoteSite(SiteEntry(1, "far", db, HOST, balsam)).create("job", [{}])
    assert f"balsam_lite is 9.8.7 there and {__version__} here" in caught.value.message
    assert not done.exists()


def test_a_host_without_balsam_is_told_with_the_option_that_helps(far: Far, db: str) -> None:
    with pytest.raises(SiteUnreachable, match="there is no command /nowhere/balsam on far-away") as caught:
        RemoteSite(SiteEntry(1, "far", db, HOST, "/nowhere/balsam")).create("job", [{}])
    assert f"balsam site add far ssh://{HOST}{db} --balsam /path/to/bin/balsam" in caught.value.hint
    assert "It is unknown" not in caught.value.message


def test_a_directory_without_a_db_is_told(far: Far, stub_there: str, tmp_path: Path) -> None:
    for number, is_known in ((1, True), (0, False)):  # one that is being added cannot be forgotten
        with pytest.raises(SiteUnreachable) as caught:
            RemoteSite(SiteEntry(number, "far", str(tmp_path), HOST, stub_there)).about()
        assert caught.value.message == f"ssh://{HOST}{tmp_path}: There is no Balsam DB in {tmp_path}"
        assert f"balsam init {tmp_path}" in caught.value.hint
        assert ("`balsam site forget far`" in caught.value.hint) == is_known


def test_who_would_have_to_type_a_password_is_told_so_and_not_asked(far: Far) -> None:
    with pytest.raises(SiteUnreachable, match=r"Permission denied \(publickey\)") as caught:
        RemoteSite(SiteEntry(1, "far", "/db", f"no-such-user@{HOST}")).about()
    assert f"`ssh no-such-user@{HOST} true` must work without a question" in caught.value.hint


def test_a_host_whose_key_nobody_has_accepted_is_told(far: Far) -> None:
    with pytest.raises(SiteUnreachable, match="verification failed") as caught:
        RemoteSite(SiteEntry(1, "far", "/db", f"localhost:{far.port}")).about()
    assert f"`ssh -p {far.port} localhost` by hand" in caught.value.hint


def test_a_port_where_nobody_listens_is_told_at_once_and_a_silent_one_within_the_limit(far: Far) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(SiteUnreachable, match="Connection refused"):
            RemoteSite(SiteEntry(1, "far", "/db", f"127.0.0.1:{port}")).about()
        silent.listen()
        with pytest.raises(SiteUnreachable, match=r"timed out|no answer within 1\.5 s"):
            RemoteSite(SiteEntry(1, "far", "/db", f"127.0.0.1:{port}"), timeout_s=1.5).about()
        assert time.monotonic() - started < 10
    assert CONNECT_S < ABOUT_S < 5


def test_nobody_knows_what_became_of_a_change_that_was_cut(far: Far, stub_there: str, db: str) -> None:
    desk = RemoteSite(SiteEntry(1, "far", db, HOST, stub_there), timeout_s=1)
    RemoteSite(desk.entry).about()  # so that there is a connection
    with pytest.raises(SiteUnreachable, match=r"no answer within 1 s\. It is unknown whether it was done there"):
        desk.create("slow", [{}])
    assert RemoteSite(desk.entry).about()["path"] == db  # through a new connection


def test_a_connection_that_died_is_replaced(far: Far, stub_there: str, db: str) -> None:
    desk = RemoteSite(SiteEntry(1, "far", db, HOST, stub_there))
    desk.about()
    _disconnect(tempfile.gettempdir())
    wait_until(lambda: not list(Path(tempfile.gettempdir()).glob("balsam-ssh-*/*")))
    before = far.connections()
    assert desk.about()["path"] == db
    assert far.connections() == before + 1


# --- the desk of a DB, here and there ---------------------------------------------------------------------------------


def _ask_everything(desk: SiteInterface) -> Iterator[Any]:
    """All that a site can be asked, with answers that two sites with the same history give alike."""

    def rows(found: list[dict[str, Any]], *fields: str) -> list[Any]:
        return [[row[field] for field in fields] for row in found]

    echo = {
        "name": "say",
        "command_template": "echo {{ words }}",
        "parameters": {"words": {"required": True}},
    }
    yield rows(desk.create("app", [echo]), "id", "name", "kind", "command_template")
    jobs = [
        {"app": "say", "workdir": f"a/{number}", "parameters": {"words": "it's \u2013 $(x)"}, "tags": {"n": str(number)}}
        for number in range(4)
    ]
    yield desk.check_jobs(jobs)
    yield rows(desk.create("job", jobs), "id", "app", "workdir", "parameters", "tags", "state")
    yield rows(desk.select("job", {"tags": {"n": "2"}}), "id")
    yield rows(desk.select("job", {"id": [1, 2, 3, 4]}, "-id", 1, 3), "id", "workdir")
    yield desk.update("job", [{"id": 1, "state": "FAILED", "state_data": {"message": "no \u00fc"}}])
    yield desk.update_where("job", {"tags": {"n": "3"}}, {"tags": {"n": "9"}})
    yield rows(desk.select("event", {"job_id": 1}), "job_id", "from_state", "to_state", "data")
    yield desk.count_states({"id": [1, 2]})
    yield [list(event[1:5]) for event in desk.event_tuples({"job_id": 1})]
    yield rows(desk.page({}, ["id", "state"], 2, 10), "id", "state")
    yield desk.count("job", {"tags": {"n": "9"}})
    yield desk.result(1)
    (child,) = desk.create("job", [{"app": "say", "workdir": "c", "parameters": {"words": ""}, "parent_ids": [1]}])
    yield desk.count_downstream({"id": [1]}), desk.select("job", {"id": child["id"]})[0]["state"]
    yield desk.rerun({"id": [1]}, "CREATED", {"priority": 7}, downstream=True)
    yield rows(desk.select("job", {"id": [1, child["id"]]}), "state", "priority")
    yield desk.kill({"id": [1]}, recursive=True), desk.kill({"id": [1]})
    yield {**desk.rerun({"id": child["id"]}), "parent": ""}
    yield desk.count_states()
    for wrong in ({"to": "RUNNING"}, {"changes": {"state": "CREATED"}}, {"changes": {"prority": 1}}):
        with pytest.raises((InvalidSpec, UnknownField)) as caught:
            desk.rerun({}, **wrong)
        yield str(caught.value)
    yield desk.delete("job", {"id": [2, 3]})
    yield {**desk.about(), "path": "", "db_id": ""}
    yield desk.service("status")["said"]
    try:
        desk.create("job", [{"app": "nobody", "workdir": "b"}])
    except BalsamError as exc:
        yield type(exc), exc.message, exc.hint


def test_each_method_of_a_remote_site_answers_as_one_of_this_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_ssh(argv: list[str], *, stdin: bytes = b"", **options: Any) -> Completed:
        return Completed(argv, 0, respond(stdin) if stdin else "", "")

    answers = []
    for name, host in (("here", ""), ("there", "nowhere")):
        entry = SiteEntry(1, name, str(tmp_path / name), host)
        directories.create(entry.path).close()
        if host:
            monkeypatch.setattr(subprocess_run, "run", without_ssh)
        answers.append(list(_ask_everything(fanout.open_site(entry))))
    for here, there in zip(*answers):
        assert there == here
    assert len(answers[0]) == len(answers[1]) == 26


def test_a_db_behind_ssh_keeps_what_it_is_told(far: Far, db: str) -> None:
    desk = RemoteSite(SiteEntry(1, "far", db, HOST, far.balsam()))
    desk.create("app", [{"name": "say", "executable": "echo"}])
    [made] = desk.create("job", [{"app": "say", "workdir": "a", "tags": {"ü": "'$(x)'"}}])
    [there] = fanout.open_site(SiteEntry(1, "here", db)).select("job", {"tags": {"ü": "'$(x)'"}})
    assert made == {name: there[name] for name in made}
    assert desk.result(made["id"])["state"] == made["state"]


def test_a_service_started_through_ssh_goes_on_without_it(far: Far, db: str) -> None:
    assert main(["init", db]) == 0  # with a policy
    desk = RemoteSite(SiteEntry(1, "far", db, HOST, far.balsam()))
    try:
        assert desk.service("start")["said"]
        assert wait_until(lambda: fanout.open_site(SiteEntry(1, "here", db)).about()["is_active"])
    finally:
        desk.service("stop")
    assert fanout.open_site(SiteEntry(1, "here", db)).about()["is_active"] is False
