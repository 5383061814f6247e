"""The rooms of the house: which module may import which, and that importing does nothing.

A new module belongs into one of `ROOMS`; the table in CONTRIBUTING.rst shows the same picture.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import ROOT

PACKAGE = "balsam_lite"


class Room(NamedTuple):
    """Modules that may import one another, and those on lower floors."""

    floor: int
    name: str
    modules: tuple[str, ...]  # with all that lies below them


ROOMS = (
    Room(0, "ground floor", ("core",)),
    Room(1, "database", ("db",)),
    Room(2, "schedulers", ("schedulers",)),
    Room(
        3, "what the launcher is made of",
        (
            *(f"launcher.{name}" for name in ("exec", "template", "mpirun", "staging", "placement", "failpoints")),
            *("launcher.environment", "launcher.logs", "launcher.notifier", "launcher.reaper", "launcher.parents_exchange"),
            *(f"pyapps.{name}" for name in ("payload", "result_file", "class_loader", "run_call", "ranks")),
        ),
    ),
    Room(
        4, "launcher",
        (
            *(f"launcher.{name}" for name in ("steps", "runner", "run_results", "exit_grace", "pacing", "reporting", "loop")),
            *(f"launcher.multinode.{name}" for name in ("coordinator", "worker", "messages", "mpi_transport")),
        ),
    ),
    Room(4, "service", ("service",)),
    Room(
        5, "wiring of the launcher",
        (
            *(f"launcher.{name}" for name in ("main", "resources")),
            *(f"launcher.multinode.{name}" for name in ("supervisor", "rank")),
        ),
    ),
    Room(5, "sites", ("sites",)),
    Room(6, "campaigns", ("campaigns",)),
    Room(5, "waiting for jobs", ("launcher.waiter",)),
    Room(6, "newer Python interface", ("api", "analytics", "plots")),
    Room(7, "Python code in jobs", ("pyapps", "launcher.start", "launcher.call")),
    Room(
        8, "Python interface",
        tuple(f"launcher.{name}" for name in ("dag", "futures", "executor", "local_launcher", "call_keys", "call_future")),
    ),
    Room(9, "names of Balsam", ("compat",)),
    Room(10, "command line", ("cli",)),
)  # fmt: skip

#: Packages whose own __init__ any module may import: it holds nothing.
EMPTY = ("", "launcher", "launcher.multinode", "pyapps")

#: What only a few may import; `db` is that module or any below it.
RESERVED = {
    "peewee": ("db",),
    "playhouse": ("db",),
    "sqlite3": ("db", "launcher.dag", "cli.ls"),  # above db only for annotations
    "subprocess": ("core.subprocess_run", "launcher.exec.spawner", "launcher.exec.program"),
    "ctypes": ("launcher.exec.program",),
    "multiprocessing": (),
    "asyncio": (),
    "click": ("cli",),
    "tabulate": ("cli",),
    "mpi4py": ("launcher.multinode.mpi_transport",),
    "apprise": ("core.event_hook",),
    "textual": ("cli.watch_screens",),
    "rich": ("cli.watch_screens",),
}

#: Calls that make processes, and who may make them. Everybody else asks these.
PROCESS_CALLS = {
    "posix_spawn": ("launcher.exec.program", "launcher.exec.workers"),
    "posix_spawnp": (),
    "fork": ("core.daemon", "schedulers.shepherd"),
    "execve": ("schedulers.shepherd",),
    "system": (),
    "popen": (),
}


def within(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def room_of(module: str) -> Room | None:
    return next((room for room in ROOMS if within(module, room.modules)), None)


class Source(NamedTuple):
    """A module of the package."""

    name: str  # without the package's: "db.store.claims", "" for balsam_lite itself
    is_package: bool
    tree: ast.Module


def _sources() -> list[Source]:
    found = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found.append(Source(name, is_package, ast.parse(path.read_text(encoding="utf-8"), str(path))))
    return found


SOURCES = _sources()
NAMES = {source.name for source in SOURCES}


def imports(source: Source) -> Iterator[str]:
    """Whatever the module imports, wherever it does so: `balsam_lite.db.query.queries`, `peewee`."""
    here = [PACKAGE, *source.name.split(".")] if source.name else [PACKAGE]
    package = here if source.is_package else here[:-1]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                is_module = inner.removeprefix(f"{PACKAGE}.") in NAMES
                yield inner if is_module else base


def own_imports(source: Source) -> set[str]:
    """The modules of the package that it imports."""
    found = {name.removeprefix(PACKAGE).lstrip(".") for name in imports(source) if within(name, (PACKAGE,))}
    return found - set(EMPTY)


def ids(source: Source) -> str:
    return source.name or PACKAGE


def test_the_reader_of_imports_sees_each_way_to_write_one() -> None:
    text = (
        "import peewee, os\nfrom . import transitions\nfrom ..engine.schema import X\nfrom ...core import states, clock\n"
        "def f():\n import click"
    )
    source = Source("db.store.claims", False, ast.parse(text))
    assert set(imports(source)) == {
        "peewee", "os", "click", "balsam_lite.db.store.transitions", "balsam_lite.db.engine.schema", "balsam_lite.core.states",
        "balsam_lite.core.clock",
    }  # fmt: skip
    assert own_imports(source) == {"db.store.transitions", "db.engine.schema", "core.states", "core.clock"}
    assert own_imports(Source("cli", True, ast.parse("from . import main"))) == {"cli.main"}


def faults(source: Source) -> list[str]:
    """The imports of the module that go up or sideways."""
    room = room_of(source.name)
    assert room is not None, f"{source.name} is in no room; give it a place in ROOMS"
    wrong = []
    for name in sorted(own_imports(source)):
        other = room_of(name)
        assert other is not None, f"{source.name} imports {name}, which is in no room"
        if other is not room and other.floor >= room.floor:
            wrong.append(f"{source.name} ({room.name}) imports {name} ({other.name})")
    return wrong


def test_imports_that_go_up_or_sideways_are_found() -> None:
    text = (
        "from ..core import states\nfrom ..launcher import loop\nfrom ..launcher.exec import spawner\n"
        "def f():\n    from ..launcher import dag"
    )
    assert faults(Source("launcher.main", False, ast.parse(text))) == [
        "launcher.main (wiring of the launcher) imports launcher.dag (Python interface)"
    ]
    assert len(faults(Source("db.models", False, ast.parse(text)))) == 3


@pytest.mark.parametrize("source", SOURCES, ids=ids)
def test_each_module_imports_only_from_its_room_and_the_floors_below(source: Source) -> None:
    if source.name in EMPTY:
        assert not own_imports(source), "a package that any module may import must not import anything"
    else:
        assert faults(source) == []


def circles(imported: Mapping[str, set[str]]) -> list[set[str]]:
    """Return the largest sets of modules that reach one another by imports, inside functions or not."""
    reached = {name: set(names) for name, names in imported.items()}
    for through in imported:
        for names in reached.values():
            if through in names:
                names |= reached[through]
    found = [{other for other in names if name in reached.get(other, ())} for name, names in reached.items() if name in names]
    return [circle for number, circle in enumerate(found) if circle not in found[:number]]


def test_circles_are_found_through_several_modules() -> None:
    imported = {"a": {"b"}, "b": {"c", "x"}, "c": {"a"}, "x": {"y"}, "y": set(), "s": {"t", "a"}, "t": {"s"}}
    assert circles(imported) == [{"a", "b", "c"}, {"s", "t"}]


def test_no_modules_import_one_another_in_a_circle() -> None:
    assert circles({source.name: own_imports(source) - {source.name} for source in SOURCES}) == []


@pytest.mark.parametrize("library", RESERVED)
def test_only_its_room_imports(library: str) -> None:
    users = {s.name for s in SOURCES if any(within(name, (library,)) for name in imports(s))}
    assert {name for name in users if not within(name, RESERVED[library])} == set()


@pytest.mark.parametrize("call", PROCESS_CALLS)
def test_processes_are_made_in_one_place_by(call: str) -> None:
    users = {
        source.name
        for source in SOURCES
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute) and node.attr == call and ast.unparse(node.value) == "os"
    }
    assert {name for name in users if not within(name, PROCESS_CALLS[call])} == set()


def test_contributing_names_each_room_of_the_house() -> None:
    text = (ROOT / "CONTRIBUTING.rst").read_text(encoding="utf-8")
    assert {room.name for room in ROOMS if room.name not in text} == set()


#: Imports every module in turn; prints what each of them did beyond reading code.
WATCHED = r"""
import json, os, sys

done, now = [], ""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC

def hook(event, args):
    if event == "open":
        path, mode, flags = (*args, None, None)[:3]
        writes = bool(set(mode or "") & set("wax+")) or bool((flags or 0) & WRITING)
        if writes or str(path).endswith((".json", ".sqlite3", ".ini")):
            done.append([now, event, str(path)])
    elif event.startswith(("subprocess.", "sqlite3.connect", "os.posix_spawn", "os.fork", "os.exec", "os.system",
                           "os.mkdir", "os.rename", "os.remove", "os.chdir", "os.putenv", "os.spawn", "os.kill",
                           "socket.connect", "signal.pthread_kill")):
        done.append([now, event, str(args[:1])])

sys.addaudithook(hook)
import logging, signal
handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
for now in sys.argv[1:]:
    __import__(now)
assert not logging.getLogger().handlers
assert {number: signal.getsignal(number) for number in signal.valid_signals()} == handlers
assert sys.excepthook is sys.__excepthook__
print(json.dumps(done))
"""


#: Modules that import large packages of others, which may be missing, and do more at import than read code.
FOREIGN = (".launcher.multinode.mpi_transport", ".cli.watch_screens")


def test_importing_any_module_opens_nothing_and_starts_nothing(tmp_path: Path) -> None:
    modules = [f"{PACKAGE}.{name}" if name else PACKAGE for name in sorted(NAMES)]
    words = [sys.executable, "-B", "-c", WATCHED, *(m for m in modules if not m.endswith(FOREIGN))]
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": "/nowhere", "BALSAM_DB_PATH": str(tmp_path / "none")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_each_log_line_names_the_module_that_wrote_it() -> None:
    """A logger that several modules share does not tell where to look."""
    named = {}
    for source in SOURCES:
        for node in source.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and "getLogger" in ast.dump(node.value.func):
                named[source.name] = ast.unparse(node.value.args[0])
    assert {"launcher.loop", "launcher.multinode.rank", "service.loop"} <= named.keys()
    assert {name: logger for name, logger in named.items() if logger not in ("__name__", f"'{PACKAGE}.{name}'")} == {}


#: Classes of one name that users know by the modules they import them from: those of Balsam 0.3's and of 0.7's Python.
SHARED_NAMES = {
    "WaitResult": {"launcher.futures", "api.jobs"},
    "BalsamJob": {"db.models", "compat.models"},
    "ApplicationDefinition": {"api.jobs", "compat.models"},
    "Job": {"api.jobs", "compat.api"},
    "F": {"db.query.filters", "compat.models"},
}


def test_nothing_imports_the_names_of_balsam() -> None:
    users = {source.name for source in SOURCES for name in own_imports(source) if within(name, ("compat",))}
    assert {name for name in users if not within(name, ("compat",))} == set()


def test_no_two_classes_have_one_name() -> None:
    found: dict[str, set[str]] = {}
    for source in SOURCES:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name.lstrip("_"), set()).add(source.name)
    assert {name: modules for name, modules in found.items() if len(modules) > 1} == SHARED_NAMES
