"""The graph of jobs by state: a layout for pictures, and the languages of Graphviz and Mermaid."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ..core.display import COLOURS, SIGNS, ink
from .campaign import CODES, MAX_NAMES, Campaign

#: Maximum number of nodes in one column of a picture.
_COLUMN = 20
#: Maximum number of nodes that are shown with their names; columns of a picture with names, and without; space between groups.
MAX_NAMED, _NAMED_WIDTH, _WIDTH, _GAP = 60, 4, 18, 0.5
_STATES = {code: state for state, code in CODES.items()}
_SWEEPS = 4


class Vertex(NamedTuple):
    """A job, or a group of jobs, with the number of its jobs in each state and its place in columns and rows."""

    name: str
    below: str  # the second line: the application, or the workflow
    states: dict[str, int]
    x: float
    y: float

    @property
    def jobs(self) -> int:
        """The number of jobs."""
        return sum(self.states.values())

    @property
    def state(self) -> str:
        """The state of most of the jobs."""
        return max(self.states, key=self.states.__getitem__)


class Graph(NamedTuple):
    """Nodes, and edges (parent, child, number of dependencies) between their places in the list."""

    nodes: list[Vertex]
    edges: list[tuple[int, int, int]]
    is_condensed: bool

    @property
    def size(self) -> tuple[float, float]:
        """The number of columns and rows of the layout."""
        return max(node.x for node in self.nodes) + 1, max(node.y for node in self.nodes) + 1


def graph_of(of: Campaign) -> Graph:
    """Return the graph of all jobs; of more than MAX_NAMES jobs that of their applications and workflows."""
    is_condensed = len(of.jobs) > MAX_NAMES
    if is_condensed:
        is_by_application = len(of.groups.values) > MAX_NAMES
        keys: dict[Any, int] = {}
        place_of = [keys.setdefault(group[1] if is_by_application else group, len(keys)) for group in of.groups.values]
        member: Sequence[int] = [place_of[group] for group in of.group]
        labels = [(key, "") if is_by_application else (key[1], key[0]) for key in keys]
    else:
        member = range(len(of.jobs))
        labels = [(name, of.groups.values[group][1]) for name, group in zip(of.names, of.group)]
    counts: list[Counter[int]] = [Counter() for _ in labels]
    for place, code in zip(member, of.states):
        counts[place][code] += 1
    found: Counter[tuple[int, int]] = Counter()
    for parent, child in zip(of.parents, of.children):
        ends = bisect_left(of.jobs, parent), bisect_left(of.jobs, child)
        if all(end < len(of.jobs) and of.jobs[end] == job for end, job in zip(ends, (parent, child))):
            found[member[ends[0]], member[ends[1]]] += 1
    edges = [(parent, child, number) for (parent, child), number in sorted(found.items()) if parent != child]
    places = _layout(len(labels), edges)
    nodes = [
        Vertex(name, below, {_STATES[code]: jobs for code, jobs in sorted(states.items())}, *places[number])
        for number, ((name, below), states) in enumerate(zip(labels, counts))
    ]
    return Graph(nodes, edges, is_condensed)


# --- layout -----------------------------------------------------------------------------------------------------------


def layers(count: int, edges: Iterable[tuple[int, int, int]]) -> list[list[int]]:
    """Return the nodes by the longest path that leads to them. In a circle, which groups may form, the first node is a start.

    >>> layers(4, [(0, 1, 1), (1, 2, 1), (0, 2, 1)])
    [[0, 3], [1], [2]]
    """
    children, left = defaultdict(list), Counter[int]()
    for parent, child, _ in edges:
        children[parent].append(child)
        left[child] += 1
    depth = dict.fromkeys(range(count), 0)
    waiting = dict.fromkeys(range(count))
    ready = [node for node in waiting if not left[node]]
    while waiting:
        if not ready:
            ready.append(next(iter(waiting)))
        node = ready.pop(0)
        if node not in waiting:
            continue
        del waiting[node]
        for child in children[node]:
            left[child] -= 1
            if child in waiting:
                depth[child] = max(depth[child], depth[node] + 1)
                if not left[child]:
                    ready.append(child)
    found: list[list[int]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for node, level in depth.items():
        found[level].append(node)
    return [level for level in found if level]


def _layout(count: int, edges: Sequence[tuple[int, int, int]]) -> list[tuple[float, float]]:
    """Return a place (column, row) for each node: connected nodes together, parents to the left of their children.

    Groups of connected nodes stand side by side, in as many shelves as they need. Single nodes are one group.
    """
    groups = _connected(count, edges)
    single = [group[0] for group in groups if len(group) == 1]
    groups = [group for group in groups if len(group) > 1] + ([single] if single else [])
    of_group = {node: number for number, group in enumerate(groups) for node in group}
    inner: list[list[tuple[int, int]]] = [[] for _ in groups]
    for parent, child, _ in edges:
        inner[of_group[parent]].append((parent, child))
    places = [(0.0, 0.0)] * count
    limit = _NAMED_WIDTH if count <= MAX_NAMED else _WIDTH
    left, top, shelf = 0.0, 0.0, 0.0  # of the next group, and the height of its shelf
    for group, pairs in zip(groups, inner):
        own, width, height = _group_layout(group, pairs)
        if left and left + width > limit:
            left, top, shelf = 0.0, top + shelf + _GAP, 0.0
        for node, (x, y) in zip(group, own):
            places[node] = left + x, top + y
        left, shelf = left + width + _GAP, max(shelf, height)
    return places


def _connected(count: int, edges: Iterable[tuple[int, int, int]]) -> list[list[int]]:
    """Return the nodes in groups of those that are connected by edges, in the order of their first nodes."""
    root = list(range(count))

    def find(node: int) -> int:
        while root[node] != node:
            root[node] = node = root[root[node]]
        return node

    for parent, child, _ in edges:
        one, two = sorted((find(parent), find(child)))
        root[two] = one
    groups: dict[int, list[int]] = {}
    for node in range(count):
        groups.setdefault(find(node), []).append(node)
    return list(groups.values())


def _group_layout(group: Sequence[int], pairs: Sequence[tuple[int, int]]) -> tuple[list[tuple[float, float]], int, int]:
    """Return the places of the nodes of a group of relatives, near one another, and the group's columns and rows."""
    number = {node: place for place, node in enumerate(group)}
    edges = [(number[parent], number[child], 1) for parent, child in pairs]
    count = len(group)
    levels = layers(count, edges)
    relatives: list[list[list[int]]] = [[[] for _ in range(count)] for _ in range(2)]
    for parent, child, _ in edges:
        relatives[0][child].append(parent)
        relatives[1][parent].append(child)
    rank = [0.0] * count
    for level in levels:
        for place, node in enumerate(level):
            rank[node] = place / len(level)
    for sweep in range(_SWEEPS):
        near = relatives[sweep % 2]
        for level in levels if sweep % 2 == 0 else reversed(levels):
            mean = {
                node: sum(rank[one] for one in near[node]) / len(near[node]) if near[node] else rank[node] for node in level
            }
            level.sort(key=mean.__getitem__)
            for place, node in enumerate(level):
                rank[node] = (place + 0.5) / len(level)
    widths = [-(-len(level) // _COLUMN) for level in levels]
    if len(levels) == 1 and count > 1:  # single nodes: as many columns as rows
        widths = [min(math.ceil(math.sqrt(2 * count)), _NAMED_WIDTH if count <= MAX_NAMED else _WIDTH)]
    height = max(-(-len(level) // columns) for level, columns in zip(levels, widths))
    places = [(0.0, 0.0)] * count
    left = 0
    for level, columns in zip(levels, widths):
        in_column = -(-len(level) // columns)
        for place, node in enumerate(level):
            column, row = divmod(place, in_column)
            places[node] = left + column, row + (height - min(in_column, len(level) - column * in_column)) / 2
        left += columns
    return places, left, height


# --- languages --------------------------------------------------------------------------------------------------------


def _label(node: Vertex) -> list[str]:
    """Return the lines of a node's label."""
    states = ", ".join(f"{number:,} {state}" for state, number in node.states.items()) if node.jobs > 1 else node.state
    return [line for line in (f"{SIGNS[node.state]} {node.name}", node.below, states) if line.strip()]


def dot(graph: Graph, title: str) -> Iterator[str]:
    """Yield the lines of the graph in the DOT language of Graphviz (https://graphviz.org/doc/info/lang.html)."""

    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'

    yield "digraph jobs {"
    yield f"  label={quoted(title)}; labelloc=t; rankdir=LR;"
    yield '  node [shape=box, style="rounded,filled", fontname="sans-serif"];'
    for number, node in enumerate(graph.nodes):
        colour = COLOURS[node.state]
        label = quoted("\n".join(_label(node)))
        yield f'  n{number} [label={label}, fillcolor="{colour}", fontcolor="{"black" if ink(colour) == "#000" else "white"}"];'
    for parent, child, number in graph.edges:
        yield f"  n{parent} -> n{child}{f' [label={number}]' * (number > 1)};"
    yield "}"


def mermaid(graph: Graph, title: str) -> Iterator[str]:
    """Yield the lines of the graph as a flowchart of Mermaid (https://mermaid.js.org/syntax/flowchart.html)."""

    def quoted(text: str) -> str:
        return re.sub(r'[#"<>&`\n]', lambda found: f"#{ord(found[0])};", text)

    yield f"%% {' '.join(title.split())}"
    yield "flowchart LR"
    for number, node in enumerate(graph.nodes):
        yield f'  n{number}["{"<br>".join(map(quoted, _label(node)))}"]:::{node.state}'
    for parent, child, number in graph.edges:
        yield f"  n{parent} -->{f'|{number}|' * (number > 1)} n{child}"
    for state in dict.fromkeys(node.state for node in graph.nodes):
        yield f"  classDef {state} fill:{COLOURS[state]},color:{ink(COLOURS[state])}"


LANGUAGES = {".dot": dot, ".gv": dot, ".mmd": mermaid}
