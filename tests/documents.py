"""The documents of the repository: README.rst and the pages of docs/, and the blocks of code in them."""

from __future__ import annotations

import re
import textwrap
from typing import NamedTuple

from helpers import ROOT

DOCS = ROOT / "docs"
README = (ROOT / "README.rst").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The README's text below that heading, up to the next one of its rank."""
    found = re.search(rf"^{re.escape(title)}\n-+\n(.*?)(?=^[^\n]+\n---+\n|\Z)", README, re.DOTALL | re.MULTILINE)
    assert found, f"README.rst has no section {title!r}"
    return found[1]


BLOCK = re.compile(r"^\.\. code-block:: (\w+)\n((?: +:\w+:.*\n)*)\n((?:(?: {3,}.*)?\n)+)", re.MULTILINE)
#: Typed by the test where the reader has a look at the clock: wait until every launch has ended, 60 s at most.
WAIT = """
for _ in {1..300}; do
    [ "$(balsam queue ls --site all --json)" != "[]" ] || break
    sleep 0.2
done
"""
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
TIME = r"\d\d-\d\d-\d{4} \d\d:\d\d:\d\d\.\d{6}"


class Block(NamedTuple):
    """A block of code of a page."""

    language: str
    text: str
    file: str  # the file that the reader is to write it into, from its caption


def page(name: str) -> str:
    """Return the text of a page of docs/."""
    return (DOCS / f"{name}.rst").read_text(encoding="utf-8")


def blocks_of(text: str) -> list[Block]:
    """Return the blocks of a page in their order."""
    found = []
    for language, options, code in BLOCK.findall(text):
        caption = re.search(r":caption: (.*)", options)
        found.append(Block(language, textwrap.dedent(code).strip("\n") + "\n", caption[1] if caption else ""))
    return found


def as_script(blocks: list[Block]) -> str:
    """Return the blocks as one shell session: bash is typed, Python is run, or written into the file that it is for."""
    lines = []
    for block in blocks:
        if block.file and block.language != "text":
            lines.append(f"cat > {block.file} << 'END OF FILE'\n{block.text}END OF FILE\n")
        elif block.language == "bash":
            lines.append(block.text)
            if re.search("(submit-launch|queue submit)(?!.*--dry-run)", block.text):
                lines.append(WAIT)
        elif block.language == "python":
            lines.append(f"python - << 'END OF PYTHON'\n{block.text}END OF PYTHON\n")
    return "".join(lines)


def without_particulars(text: str) -> list[str]:
    """The lines of `text`, with ids, times and nodes made alike and the blanks between words made one."""
    text = re.sub(TIME, "TIME", re.sub(UUID, "UUID", text))
    text = re.sub(r"\bon \S+/\d+, [\d.]+ \w+$", "on NODE, DURATION", text, flags=re.MULTILINE)
    return [" ".join(re.sub("-{9,}", "---", line).split()) for line in text.splitlines() if line.strip()]
