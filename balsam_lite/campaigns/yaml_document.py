"""Read a YAML document as nodes that know their line and column.

Texts keep the spelling of the file: whether `010`, `no` or `1e3` is a number is for the field that takes it to decide
(`Problems.data` follows the core schema of YAML 1.2, in which only `true` and `false` are truth values, and a date is text).
Refused are repeated keys, tags other than those of texts, lists and mappings, and documents that are too large or whose
aliases would make them so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from ..core.errors import InvalidSpec

TEXT, LIST, MAPPING = "a text", "a list", "a mapping"

MAX_BYTES = 20_000_000
MAX_DEPTH = 50
#: Nodes that aliases may add to those of the file.
MAX_COPIES = 100_000
#: Problems that an error names.
MAX_NAMED = 20

_TAGS = {None: None, "!": TEXT, "tag:yaml.org,2002:str": TEXT, "tag:yaml.org,2002:seq": LIST, "tag:yaml.org,2002:map": MAPPING}
_CONSTANTS = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    word: value for value, words in ((True, "true True TRUE"), (False, "false False FALSE")) for word in words.split()
}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_MERGE = "<<"


class YamlNode:
    """A text, a list of nodes, or a mapping as a list of pairs of nodes."""

    __slots__ = ("column", "is_plain", "kind", "line", "size", "value")

    def __init__(self, kind: str, value: Any, line: int, column: int, is_plain: bool = False) -> None:
        self.kind, self.value, self.line, self.column = kind, value, line, column  # both counted from 1
        self.is_plain = is_plain  # a text without quotes
        self.size = 1 if kind is TEXT else 0  # nodes with those below it, also through aliases; 0 while it is being read

    @property
    def is_null(self) -> bool:
        """Return whether there is nothing, as after `key:`."""
        return self.is_plain and self.value in _CONSTANTS and _CONSTANTS[self.value] is None


class PlainText(str):
    """A text without quotes, as it is spelled: `scalar` returns the value that YAML gives it."""

    __slots__ = ()


def scalar(text: str) -> Any:
    """Return the value of a text without quotes, by the core schema of YAML 1.2."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text) if len(text) < 1000 else text
    if _FLOAT.fullmatch(text):
        return float(text.replace(".inf", "inf").replace(".nan", "nan") if text[-1].isalpha() else text)
    return text


class Problem(NamedTuple):
    """What is wrong in a document, and where."""

    line: int
    column: int
    text: str


class Problems:
    """The problems found in a document, to be raised together."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.found: list[Problem] = []

    def add(self, node: YamlNode, text: str) -> None:
        """Note a problem at a node."""
        problem = Problem(node.line, node.column, text)
        if problem not in self.found:  # an alias is read wherever it is used
            self.found.append(problem)

    def raise_if_any(self) -> None:
        """Raise InvalidSpec with all problems in the order of the file, if there are any."""
        if not self.found:
            return
        lines = [f"  line {line}, column {column}: {text}" for line, column, text in sorted(self.found)[:MAX_NAMED]]
        more = len(self.found) - MAX_NAMED
        lines += [f"  … and {more} more"] if more > 0 else []
        count = f"{len(self.found)} errors" if len(self.found) > 1 else "an error"
        raise InvalidSpec(f"{self.name} has {count}; nothing was changed.\n" + "\n".join(lines))

    def entries(self, node: YamlNode, what: str) -> dict[str, tuple[YamlNode, YamlNode]]:
        """Return the (key, value) nodes of a mapping by key; a problem if it is none, or a key is repeated or no text.

        The entries of `<<` are added, as far as the mapping has not these keys.
        """
        if node.is_null:
            return {}
        if node.kind is not MAPPING:
            self.add(node, f"{what} must be a mapping (KEY: VALUE lines), not {node.kind}{_quoted(node)}")
            return {}
        found: dict[str, tuple[YamlNode, YamlNode]] = {}
        merged: list[YamlNode] = []
        for key, value in node.value:
            if key.kind is not TEXT:
                self.add(key, f"a key of {what} must be a text, not {key.kind}")
            elif key.value == _MERGE and key.is_plain:
                merged += value.value if value.kind is LIST else [value]
            elif key.value in found:
                self.add(key, f"the key {key.value!r} is repeated; it is in line {found[key.value][0].line} already")
            else:
                found[key.value] = (key, value)
        for one in merged:
            found = {**self.entries(one, f"{_MERGE} in {what}"), **found}
        return found

    def items(self, node: YamlNode, what: str) -> list[YamlNode]:
        """Return the nodes of a list; a problem if it is none."""
        if node.kind is LIST:
            return list(node.value)
        self.add(node, f"{what} must be a list, not {node.kind}{_quoted(node)}")
        return []

    def text(self, node: YamlNode, what: str) -> str:
        """Return a text; a problem, and "", if it is none or empty."""
        if node.kind is TEXT and not node.is_null and node.value:
            return str(node.value)
        quotes = "; a text with braces needs quotes" if node.kind is MAPPING else ""
        self.add(node, f"{what} must be a text" + (", and is empty" if node.kind is TEXT else f", not {node.kind}{quotes}"))
        return ""

    def data(self, node: YamlNode, what: str, plain: Callable[[str], Any] = scalar) -> Any:
        """Return a value as JSON would have it: `plain` returns that of a text without quotes."""
        if node.kind is LIST:
            return [self.data(one, what, plain) for one in node.value]
        if node.kind is MAPPING:
            return {key: self.data(value, what, plain) for key, (_, value) in self.entries(node, what).items()}
        return plain(node.value) if node.is_plain else node.value


def _quoted(node: YamlNode) -> str:
    return f": {node.value[:40]!r}" if node.kind is TEXT else ""


def read(content: bytes, name: str) -> YamlNode:
    """Return the root of the only document in a file.

    Raises:
        InvalidSpec: it is empty, no UTF-8, no YAML, too large, or has tags that are not read.
    """
    if len(content) > MAX_BYTES:
        raise InvalidSpec(
            f"{name} has {len(content)} bytes, and at most {MAX_BYTES} are read.",
            hint="Put the rows of many jobs into a table, and name it with from_file.",
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = content.count(b"\n", 0, exc.start) + 1
        raise InvalidSpec(f"{name} is not valid UTF-8: line {line} has the byte {content[exc.start]:#04x}.") from None
    import yaml

    composer = _Composer(name)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        for event in yaml.parse(text, loader):
            composer.take(event)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        about = f" {exc.context}," if exc.context else ""
        raise InvalidSpec(f"{name}{place}: this is no YAML:{about} {exc.problem}", hint=_hint(text, mark)) from None
    except (yaml.YAMLError, RecursionError) as exc:
        raise InvalidSpec(f"{name} is no YAML: {exc}") from None
    if composer.root is None or composer.root.is_null:
        raise InvalidSpec(f"{name} is empty.", hint="A campaign file begins with `version: 1`.")
    return composer.root


def _hint(text: str, mark: Any) -> str:
    lines = text.splitlines()
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return "The line begins with a tab; YAML is indented by spaces."
    if "{" in line or ": " in line.partition(": ")[2]:
        return "A text with braces, or with a colon and a space, must be in quotes."
    return ""


class _Composer:
    """Builds the nodes of a document from its events, without recursion: no depth of a file exhausts the stack."""

    def __init__(self, name: str) -> None:
        self._name = name
        #: Lists and mappings that are being read, each with the nodes read until now.
        self._open: list[tuple[YamlNode, list[YamlNode]]] = []
        self._anchors: dict[str, YamlNode] = {}
        self._read = 0
        self._documents = 0
        self.root: YamlNode | None = None

    def take(self, event: Any) -> None:
        """Take the next event."""
        import yaml

        if isinstance(event, yaml.CollectionEndEvent):
            node, children = self._open.pop()
            node.size = 1 + sum(child.size for child in children)
            node.value = children if node.kind is LIST else list(zip(children[::2], children[1::2]))
            self._add(node, event)
        elif isinstance(event, yaml.AliasEvent):
            self._add(self._anchored(event), event)
        elif isinstance(event, yaml.NodeEvent):
            self._begin(event)
        elif isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise self._error(event, "a second document begins; a campaign is one document.")

    def _error(self, event: Any, text: str, hint: str = "") -> InvalidSpec:
        mark = event.start_mark
        return InvalidSpec(f"{self._name}, line {mark.line + 1}, column {mark.column + 1}: {text}", hint=hint)

    def _anchored(self, event: Any) -> YamlNode:
        node = self._anchors.get(event.anchor)
        if node is None or not node.size:
            problem = "there is no anchor of that name before it" if node is None else "it would contain itself"
            raise self._error(event, f"the alias *{event.anchor} cannot be used: {problem}.")
        return node

    def _begin(self, event: Any) -> None:
        import yaml

        kind = {yaml.ScalarEvent: TEXT, yaml.SequenceStartEvent: LIST, yaml.MappingStartEvent: MAPPING}[type(event)]
        if event.tag not in _TAGS or _TAGS[event.tag] not in (None, kind):
            raise self._error(event, f"the tag {event.tag} is not read.", "Leave it out; types follow from the fields.")
        is_plain = kind is TEXT and event.tag is None and event.style in (None, "")
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        node = YamlNode(kind, event.value if kind is TEXT else [], line, column, is_plain)
        self._read += 1
        if event.anchor:
            self._anchors[event.anchor] = node
        if kind is TEXT:
            self._add(node, event)
            return
        if len(self._open) == MAX_DEPTH:
            raise self._error(event, f"lists and mappings are nested more than {MAX_DEPTH} deep.")
        self._open.append((node, []))

    def _add(self, node: YamlNode, event: Any) -> None:
        if node.size > self._read + MAX_COPIES:
            raise self._error(event, f"aliases make this document too large: more than {MAX_COPIES} nodes are copies.")
        if self._open:
            self._open[-1][1].append(node)
        else:
            self.root = node
