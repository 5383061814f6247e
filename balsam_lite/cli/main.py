"""The entry point `balsam`. It imports next to nothing, so that `balsam --version` costs what an empty Python does."""

from __future__ import annotations

import sys

from .. import __version__


def main(arguments: list[str] | None = None) -> int:
    """Run `balsam` with these words (by default those of the process) and return its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if words == ["--version"]:
        if sys.stdout is not None:  # the caller may have closed it
            sys.stdout.write(f"balsam {__version__}\n")
        return 0
    try:
        if arguments is None:
            import gc

            gc.disable()  # until the modules are imported: none of that is garbage
        from .run import leave, run

        code = run(words)
        return leave(code) if arguments is None else code
    except KeyboardInterrupt:
        return 130
