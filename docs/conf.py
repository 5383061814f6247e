"""Configuration of Sphinx: `make docs` builds the pages of this directory into build/docs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import generate  # noqa: E402  it is in this directory
from sphinx.application import Sphinx  # noqa: E402

from balsam_lite import __version__  # noqa: E402

project = "balsam_lite"
author = "balsam_lite maintainers"
copyright = author  # Sphinx's name for it  # noqa: A001
version = release = __version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["generated"]  # its files are included by pages
html_theme = "furo"
html_title = f"balsam_lite {release}"
html_copy_source = False
highlight_language = "none"
default_role = "code"
#: Every link inside the pages must lead somewhere. Of other projects' classes nothing is known without a network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!balsam_lite\.(launcher\.dag|launcher\.futures|api|analytics)\.).*")]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
#: Docstrings name several errors in a sentence.
napoleon_custom_sections = [("Raises", "returns_style")]

generate.write_all(HERE)


def plain_help(_app: object, _ctx: object, lines: list[str]) -> None:
    """Make RST of help texts, which are plain: examples stay as typed, and an asterisk is an asterisk."""
    done: list[str] = []
    for line in lines:
        if line.startswith("| "):  # sphinx-click's mark of what click does not wrap
            if not (done and done[-1].startswith("    ")):
                done += [".. code-block:: text", ""]
            done.append(f"    {line[2:]}")
        elif line.startswith((".. ", "   :")):
            done.append(line)
        else:
            done.append(line.replace("\\", r"\\").replace("*", r"\*"))
    lines[:] = done


def plain_default(_app: object, what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Mark the default in the docstring of a field as code. Napoleon takes what is before a colon for a type."""
    if what == "attribute":
        lines[:] = [re.sub(r"Default: (.*)\.$", r"Default ``\1``.", line) for line in lines]


def setup(app: Sphinx) -> None:
    """Connect what changes texts on their way from the code to the pages."""
    app.connect("autodoc-process-docstring", plain_default, priority=400)
    for part in ("description", "options", "arguments", "epilog"):
        app.connect(f"sphinx-click-process-{part}", plain_help)


man_pages = [("reference/commands", "balsam", "run many programs from one SQLite file", ["balsam_lite maintainers"], 1)]
