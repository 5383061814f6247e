"""Through how many modules and functions of balsam_lite a command goes: what a reader has to open to follow it.

`balsam ls` and `balsam job ls` of a DB with 20 jobs, called twice in one process through the entry point; the second call is
traced with `sys.setprofile`, so that imports and caches do not count. `modules` and `functions` are distinct ones, `changes` is
how often the trace goes on in another module, `calls` all calls. Lambdas and comprehensions count as their function.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import redirect_stdout
from types import CodeType, FrameType
from typing import Any

import common

_PACKAGE = f"{os.sep}balsam_lite{os.sep}"
_JOBS = 20
#: The code objects that are part of the function around them.
_INNER = ("<lambda>", "<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>", "<module>")
COMMANDS = (("ls",), ("job", "ls"))


def main() -> None:
    """Trace each command, one line; --list prints the functions on stderr."""
    parser = common.parser(__doc__)
    parser.add_argument("--list", action="store_true", help="print the modules with their functions on stderr")
    arguments = parser.parse_args()
    with common.scratch(arguments.dir) as place:
        bench = common.Bench(place, arguments.balsam)
        directory = bench.new_directory()
        common.make_db_with_jobs(directory, common.TRUE, common.job_dicts(_JOBS))
        os.environ["BALSAM_DB_PATH"] = directory
        figures = {}
        for words in COMMANDS:
            trail = trace(words)
            figures[f"balsam {' '.join(words)}"] = _figures(trail)
            if arguments.list:
                common.say(_as_text(words, trail))
        common.emit("walk", figures, bench.machine)


def trace(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return (module, function) of every call of a function of balsam_lite in the second of two equal commands."""
    from balsam_lite.cli.main import main as balsam

    trail: list[tuple[str, str]] = []
    known: dict[CodeType, tuple[str, str] | None] = {}

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        if event != "call":
            return
        code = frame.f_code
        if code not in known:
            known[code] = _place(frame)
        place = known[code]
        if place:
            trail.append(place)

    with redirect_stdout(io.StringIO()):
        for profile in (None, watch):
            sys.setprofile(profile)
            try:
                code = balsam(list(words))
            finally:
                sys.setprofile(None)
            if code != 0:
                raise SystemExit(f"balsam {' '.join(words)} ended with {code}")
    return trail


def _place(frame: FrameType) -> tuple[str, str] | None:
    """Return the module and the function that a frame runs; None where it is not the package's."""
    code = frame.f_code
    _, inside, path = code.co_filename.rpartition(_PACKAGE)
    if not inside or code.co_name in _INNER:
        return None
    return path.removesuffix(".py").replace(os.sep, "."), f"{code.co_name}:{code.co_firstlineno}"


def _figures(trail: list[tuple[str, str]]) -> dict[str, int]:
    changes = sum(before[0] != after[0] for before, after in zip(trail, trail[1:]))
    return {
        "modules": len({module for module, _ in trail}),
        "functions": len(set(trail)),
        "changes": changes,
        "calls": len(trail),
    }


def _as_text(words: tuple[str, ...], trail: list[tuple[str, str]]) -> str:
    by_module: dict[str, dict[str, None]] = {}
    for module, function in trail:
        by_module.setdefault(module, {})[function] = None
    lines = [f"    {module:24} {len(functions):3}  {' '.join(functions)}" for module, functions in by_module.items()]
    return "\n".join([f"balsam {' '.join(words)}", *lines])


if __name__ == "__main__":
    main()
