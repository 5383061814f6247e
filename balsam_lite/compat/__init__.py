"""Let programs that were written for Balsam 0.3 or 0.7 run unchanged: `import balsam_lite.compat` before they import `balsam`.

From then on `balsam`, `balsam.launcher.dag`, `balsam.core.models`, `balsam.api` and the other modules in `importer.MODULES` are
those of this package, in this process; so are the few names of Django that programs for Balsam 0.3 use. `python -m
balsam_lite.compat script.py` does the same for a script that must not be changed (see `__main__`).

This package wins over an installed `balsam` or Django that was not imported before. If `balsam` was, the import fails; if
Django was, it stays, as a whole.
"""

from __future__ import annotations

from .importer import install

__all__: list[str] = []

install()
