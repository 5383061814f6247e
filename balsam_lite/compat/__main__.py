"""Run a program that was written for Balsam: `python -m balsam_lite.compat [-m MODULE | -c CODE | SCRIPT] [ARGUMENT]...`.

It runs as `python` would run it, with the modules of Balsam found in this package. Also reads `balsam.launcher.async`, which
Python since 3.7 cannot compile.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from types import ModuleType

from . import importer

_USAGE = "usage: python -m balsam_lite.compat [-m MODULE | -c CODE | SCRIPT] [ARGUMENT]...\n"


def main(words: Sequence[str]) -> int:
    """Run the program that these words name. Return 2, with a message, if they name none; else what it raises is raised."""
    option, rest = (words[0], list(words[1:])) if words else ("", [])
    if option in ("-h", "--help"):
        sys.stdout.write(_USAGE)
        return 0
    if not rest if option in ("-m", "-c") else option[:1] in ("", "-"):
        sys.stderr.write(_USAGE)
        return 2
    if option == "-m":
        sys.argv = rest
        sys.path.insert(0, os.getcwd())
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif option == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        _run(rest[0].encode(), "<string>", None)
    else:
        _run_script(option, rest)
    return 0


def _run_script(path: str, arguments: list[str]) -> None:
    sys.argv = [path, *arguments]
    if os.path.isdir(path):
        runpy.run_path(path, run_name="__main__")
        return
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError as exc:
        sys.stderr.write(f"{path} cannot be read: {exc.strerror}\n")
        raise SystemExit(2) from exc
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    _run(source, path, path)


def _run(source: bytes, name: str, path: str | None) -> None:
    """Run source code as the module `__main__`, which it replaces."""
    module = ModuleType("__main__")
    module.__dict__.update(__builtins__=__builtins__, **({"__file__": path} if path else {}))
    sys.modules["__main__"] = module
    exec(compile(importer.without_async(source), name, "exec"), module.__dict__)


if __name__ == "__main__":
    if sys.path[:1] == [os.getcwd()]:  # where `python -m` was called; the program's own directory takes its place
        del sys.path[0]
    raise SystemExit(main(sys.argv[1:]))
