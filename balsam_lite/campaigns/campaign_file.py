"""The campaign file of `balsam apply`: applications and groups of jobs, with the dependencies between groups, in YAML.

`read` checks all that needs no DB, and collects every problem with its line and column. `docs/guides/campaigns.rst` describes
the format, version 1.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

from ..core import command_line, field_specs
from ..core.errors import BalsamError, InvalidSpec, did_you_mean
from ..core.field_specs import APP_FIELD, JOB_FIELD, Field
from ..core.parameters import fields_of_launch_params
from ..sites.apps import parameters_of
from . import job_rows, readers, sweep
from .yaml_document import LIST, MAPPING, TEXT, PlainText, Problems, YamlNode, scalar
from .yaml_document import read as read_yaml

VERSION = 1

_TOP = ("version", "campaign", "workflow", "applications", "defaults", "groups")
#: Where the jobs of a group come from, apart from fields. Without one of these it is a single job.
_SOURCES = ("sweep", "array", "from_file", "commands", "jobs")
#: Options of a sweep, and of a table.
_OPTIONS = {"zip": "sweep", "random": "sweep", "seed": "random", "input_format": "from_file"}
_PARENTS = "parents"
#: Which jobs of another group a job waits for: all, or those with the same values of the variables that both groups have.
ALL, SAME = "all", "same"
#: Given besides fields of a job.
_EXTRA = ("launch_params", "workdir", "allow_shared_workdir")
_MAPPINGS = ("tags", "environ_vars", "data", "parameters", "launch_params")
_NAME = re.compile(r"[A-Za-z0-9_][\w.+-]*", re.ASCII)
_PLACEHOLDER = re.compile(r"\{(\w+)\}", re.ASCII)
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
#: Characters of a key after which a digest replaces the values.
_MAX_KEY = 200
#: Fields of an application that a campaign file cannot set.
_NOT_OF_FILES = ("name", "definition")


class Row(NamedTuple):
    """What distinguishes a job from the others of its group."""

    values: Mapping[str, str]  # of the variables, to be put in the place of {NAME}
    fields: Mapping[str, Any]  # which replace those of the group; mappings are merged
    key: str  # unique within the group
    where: str  # for errors


class JobGroup:
    """A group of jobs: their common fields, and what each of them adds."""

    def __init__(self, name: str, node: YamlNode) -> None:
        self.name, self.node = name, node
        self.fields: dict[str, Any] = {}  # as given, not yet in stored form
        self.places: dict[str, YamlNode] = {}  # of the fields
        self.parents: dict[str, tuple[str, YamlNode]] = {}  # group -> ALL or SAME
        self.variables: tuple[str, ...] = ()
        self.is_readable = True  # whether it is known where its jobs come from
        self.is_swept = False  # whether the variables are those of a sweep
        self.may_repeat = False  # whether rows may have the key of another one
        self.count = 1
        #: Takes the names of the parameters of its application.
        self.rows: Callable[[Collection[str]], Iterator[Row]] = lambda parameters: iter([Row({}, {}, "", "")])

    def jobs(self, parameters: Collection[str]) -> Iterator[tuple[Row, dict[str, Any]]]:
        """Yield each row with the fields of its job. Raises what reading a table raises.

        Args:
            parameters: the names of the parameters of its application.
        """
        constant = {name: value for name, value in self.fields.items() if not _mentions(value, self.variables)}
        others = {name: value for name, value in self.fields.items() if name not in constant}
        filled = sweep.replacer(self.variables)
        for row in self.rows(parameters):
            job = {**constant, **{name: filled(value, row.values) for name, value in others.items()}}
            for name, value in row.fields.items():
                job[name] = {**job[name], **value} if name in _MAPPINGS and isinstance(job.get(name), dict) else value
            yield row, job


class CampaignFile(NamedTuple):
    """A campaign file that was read. It can be used only after `problems.raise_if_any()`."""

    problems: Problems
    name: str
    applications: dict[str, tuple[dict[str, Any], YamlNode]]  # name -> all fields in stored form but `name`, place
    groups: list[JobGroup]  # each after those that it waits for


def read(content: bytes, name: str, directory: str) -> CampaignFile:
    """Return the campaign that a file describes. Its relative paths are below `directory`.

    Raises:
        InvalidSpec: it is no YAML document. Other problems are in the result.
    """
    root = read_yaml(content, name)
    return _FileReader(Problems(name), directory).campaign(root)


class _FileReader:
    """Reads the parts of a campaign file."""

    def __init__(self, problems: Problems, directory: str) -> None:
        self._problems, self._directory = problems, directory

    def campaign(self, root: YamlNode) -> CampaignFile:
        found = self._problems.entries(root, "a campaign file")
        self._refuse_unknown(found, _TOP, "a campaign file")
        self._check_version(root, found)
        if "campaign" not in found:
            self._problems.add(root, "`campaign: NAME` is missing")
        name = self._name(found["campaign"][1], "campaign") if "campaign" in found else ""
        if "groups" not in found and "applications" not in found:
            self._problems.add(root, "there are neither groups nor applications")
        applications = {}
        for app, (_, node) in self._part(found, "applications").items():
            fields = self._application(app, node)
            applications[app] = (fields, node)
        defaults = self._part(found, "defaults")
        self._refuse_unknown(defaults, (*_JOB_FIELDS, _PARENTS), "defaults")
        groups = {}
        for group, (key, node) in self._part(found, "groups").items():
            self._name(key, "group")
            groups[group] = self._group(group, node, defaults)
            if groups[group].fields.get("application") == job_rows.COMMANDS_APP["name"]:
                applications.setdefault(job_rows.COMMANDS_APP["name"], (_commands_app(), node))
        workflow = self._problems.text(found["workflow"][1], "workflow") if "workflow" in found else name
        for one in groups.values():
            one.fields.setdefault("workflow", workflow)
        return CampaignFile(self._problems, name, applications, self._in_order(groups))

    def _part(self, found: Mapping[str, tuple[YamlNode, YamlNode]], name: str) -> dict[str, tuple[YamlNode, YamlNode]]:
        return self._problems.entries(found[name][1], name) if name in found else {}

    def _refuse_unknown(self, found: Mapping[str, tuple[YamlNode, YamlNode]], known: Collection[str], what: str) -> None:
        for name, (key, _) in found.items():
            if name not in known:
                listed = f" Known are: {', '.join(known)}." if len(known) < 10 else ""
                self._problems.add(key, f"{what} has no {name!r}.{did_you_mean(name, known) or listed}")

    def _check_version(self, root: YamlNode, found: Mapping[str, tuple[YamlNode, YamlNode]]) -> None:
        node = found["version"][1] if "version" in found else root
        given = node.value if node is not root and node.kind is TEXT else None
        if given != str(VERSION):
            newer = f" (this balsam_lite reads version {VERSION})" if given else ""
            self._problems.add(node, f"`version: {VERSION}` is missing" if node is root else f"unknown version {given}{newer}")

    def _name(self, node: YamlNode, what: str) -> str:
        name = self._problems.text(node, f"the name of a {what}")
        if name and not _NAME.fullmatch(name):
            self._problems.add(node, f"the name of a {what} has letters, digits and _ . + - only, not {name!r}")
        return name

    # --- applications ---

    def _application(self, name: str, node: YamlNode) -> dict[str, Any]:
        """Return all fields of an application but its name, in stored form."""
        known = [field for field in APP_FIELD if field not in _NOT_OF_FILES]
        entries = self._problems.entries(node, f"application {name}")
        self._refuse_unknown(entries, known, f"application {name}")
        app = {field.name: field.default for field in APP_FIELD.values()} | {"name": name}
        for field, (_, value) in entries.items():
            if field in known:
                app[field] = self._stored(APP_FIELD[field], self._value(APP_FIELD[field], value), value, f"application {name}")
        as_given = {**app, "parameters": json.loads(app["parameters"] or "{}"), "definition": {}}
        try:
            app["parameters"] = field_specs.check_app({"parameters": parameters_of(as_given, "parameters" in entries)})[
                "parameters"
            ]
        except BalsamError as exc:
            if not self._problems.found or self._problems.found[-1].line < node.line:  # else it may follow from that problem
                self._problems.add(node, _in_one_line(exc))
        return app

    # --- groups ---

    def _group(self, name: str, node: YamlNode, defaults: Mapping[str, tuple[YamlNode, YamlNode]]) -> JobGroup:
        group = JobGroup(name, node)
        own = self._problems.entries(node, f"group {name}")
        known = (*_JOB_FIELDS, *_SOURCES, *_OPTIONS, _PARENTS)
        self._refuse_unknown(own, known, f"group {name}")
        for field, (_, value) in {**defaults, **own}.items():
            if field in _JOB_FIELDS:
                group.fields[field] = self._field(field, value)
                group.places[field] = value
        if "unique_key" in group.fields:
            self._problems.add(group.places["unique_key"], "unique_key is for the jobs of a list or table, not for a group")
        for field in set(_MAPPINGS) & own.keys() & defaults.keys():  # both count, key by key
            first = self._field(field, defaults[field][1])
            if isinstance(first, dict) and isinstance(group.fields[field], dict):
                group.fields[field] = {**first, **group.fields[field]}
        if not group.fields.get("application") and "commands" in own:
            group.fields["application"] = job_rows.COMMANDS_APP["name"]
        if not group.fields.get("application"):
            self._problems.add(node, f"group {name} needs `application: NAME`")
        parents = own.get(_PARENTS) or defaults.get(_PARENTS)
        if parents:
            group.parents = self._parents(parents[1])
        self._set_source(group, own)
        group.fields.setdefault("name", name)
        self._check_fields(group)
        return group

    def _field(self, name: str, node: YamlNode) -> Any:
        """Return the value of a job's field as it was given: a text, or a mapping of texts or data."""
        name = field_specs.OUR_NAMES.get(name, name)
        if name == "allow_shared_workdir":
            return self._stored(JOB_FIELD["wait_for_parents"]._replace(name=name), node.value, node, "job") == 1
        if name == "workdir":
            return self._problems.text(node, name)
        if name == "launch_params":
            return self._texts(node, name)
        return self._value(JOB_FIELD[name], node, is_spelled=name == "parameters")

    def _value(self, field: Field, node: YamlNode, is_spelled: bool = False) -> Any:
        """Return the value of a field as it was given, with relative paths made absolute.

        Args:
            is_spelled: leave numbers in JSON objects as `PlainText`.
        """
        if field.kind in ("tags", "environ"):
            return self._texts(node, field.name)
        if field.kind == "object":
            self._problems.entries(node, field.name)
            return self._problems.data(node, field.name, PlainText if is_spelled else scalar) or {}
        if node.kind is LIST and field.kind == "codes":
            return [self._problems.text(one, field.name) for one in node.value]
        if node.kind is TEXT and node.value == "" and not node.is_plain:
            return ""
        text = self._problems.text(node, field.name)
        if field.kind in ("count", "count0", "integer", "id") and _LEADING_ZERO.fullmatch(text):
            self._problems.add(node, f"{field.name} {text} could be an octal number; write it without the leading zero")
        if text and (field.kind == "path" or (field.kind == "place" and field_specs.relative_path_of(text))):
            path = text.removeprefix("local:") if field.kind == "place" else text
            if not os.path.expanduser(path).startswith("/") and not path.startswith("{"):
                text = text[: len(text) - len(path)] + os.path.normpath(os.path.join(self._directory, path))
        if field.name in command_line.FIELDS and text:
            try:
                text = command_line.as_program(text, sys.executable, self._directory)
            except ValueError:
                pass  # it cannot be split, which the check of the field reports
        return text

    def _texts(self, node: YamlNode, what: str) -> dict[str, str]:
        found = {}
        for key, (_, value) in self._problems.entries(node, what).items():
            if value.kind is TEXT:
                found[key] = "" if value.is_null else value.value
            else:
                self._problems.text(value, f"{what} {key}")
        return found

    def _stored(self, field: Field, value: Any, node: YamlNode, what: str) -> Any:
        try:
            return field_specs.checked(field, value, what)
        except BalsamError as exc:
            self._problems.add(node, _in_one_line(exc))
            return field.default

    def _check_fields(self, group: JobGroup) -> None:
        """Check the fields that are the same for all jobs of a group."""
        for name, value in group.fields.items():
            node = group.places.get(name, group.node)
            for one in _placeholders(value):
                near = next((name for name in group.variables if name.lower() == one.lower()), one)
                if near != one and one not in group.variables:
                    self._problems.add(node, f"{name} has {{{one}}}, and the variable is {{{near}}}")
            if _mentions(value, group.variables):
                continue
            try:
                if name == "launch_params":
                    fields_of_launch_params(value)
                elif name == "workdir":
                    field_specs.checked_workdir(value)
                elif name != "allow_shared_workdir":
                    field_specs.check_job({field_specs.OUR_NAMES.get(name, name): value})
            except BalsamError as exc:
                self._problems.add(node, _in_one_line(exc))

    def _parents(self, node: YamlNode) -> dict[str, tuple[str, YamlNode]]:
        """Return the groups that a group waits for: a name, a list of names, or a mapping of names to ALL or SAME."""
        if node.kind is MAPPING:
            found = {}
            for group, (_, mode) in self._problems.entries(node, _PARENTS).items():
                if mode.value not in (ALL, SAME):
                    text = f"{_PARENTS} {group} must be {ALL} or {SAME}, not {mode.value!r}" if mode.kind is TEXT else ""
                    self._problems.add(mode, text or f"{_PARENTS} {group} must be {ALL} or {SAME}")
                found[group] = (mode.value, mode)
            return found
        nodes = self._problems.items(node, _PARENTS) if node.kind is LIST else [node]
        return {self._problems.text(one, _PARENTS): (ALL, one) for one in nodes}

    def _in_order(self, groups: Mapping[str, JobGroup]) -> list[JobGroup]:
        """Return the groups, each after its parents; a cycle or an unknown parent is a problem."""
        done: dict[str, JobGroup] = {}
        open_groups: list[str] = []

        def visit(group: JobGroup) -> None:
            if group.name in done:
                return
            open_groups.append(group.name)
            for name, (mode, node) in group.parents.items():
                if name not in groups:
                    self._problems.add(node, f"there is no group {name!r}.{did_you_mean(name, groups)}")
                elif name in open_groups:
                    cycle = " -> ".join([*open_groups[open_groups.index(name) :], name])
                    self._problems.add(node, f"groups wait for each other: {cycle}")
                else:
                    visit(groups[name])
                    is_known = group.is_readable and groups[name].is_readable
                    if mode == SAME and is_known and not set(group.variables) & set(groups[name].variables):
                        has = ", ".join(groups[name].variables) or "none"
                        text = f"{group.name} has no variable of {name} (which has {has}), so no job has the same values"
                        self._problems.add(node, f"{text}; write {name}: {ALL}")
            open_groups.pop()
            done[group.name] = group

        for group in groups.values():
            visit(group)
        return list(done.values())

    # --- where the jobs of a group come from ---

    def _set_source(self, group: JobGroup, own: Mapping[str, tuple[YamlNode, YamlNode]]) -> None:
        """Set the variables, the number and the rows of a group."""
        given = [name for name in _SOURCES if name in own]
        for option, source in _OPTIONS.items():
            if option in own and source not in own:
                self._problems.add(own[option][0], f"{option} goes with {source}, which group {group.name} has not")
        if len(given) > 1 and given != ["sweep", "array"]:
            self._problems.add(own[given[1]][0], f"group {group.name} has {' and '.join(given)}; its jobs come from one")
        elif given == ["jobs"]:
            self._set_list(group, own["jobs"][1])
        elif given == ["from_file"]:
            self._set_table(group, own)
        elif given == ["commands"]:
            self._set_commands(group, own["commands"][1])
        elif given:
            self._set_sweep(group, own)

    def _set_table(self, group: JobGroup, own: Mapping[str, tuple[YamlNode, YamlNode]]) -> None:
        group.may_repeat = True
        node = own["from_file"][1]
        form = self._problems.text(own["input_format"][1], "input_format") if "input_format" in own else None
        try:
            path = self._file(node, "from_file")
            form = readers.format_of(path, form)
            if form not in readers.FORMATS.values():
                raise InvalidSpec(f"input_format must be csv, tsv or jsonl, not {form!r}")
            group.count = _count_lines(path)
            group.variables = _columns(path, form)
        except BalsamError as exc:
            self._problems.add(node, _in_one_line(exc))
            group.is_readable = False
            return

        def rows(parameters: Collection[str]) -> Iterator[Row]:
            table = _open_table(path, form)
            with table:
                for number, fields in enumerate(job_rows.FileRows(table, {"name": _UNNAMED}, parameters), 1):
                    where = f"{path}, line {table.line}"
                    if "parents" in fields:
                        raise table.fail("there is a column parents; in a campaign file groups wait for groups, by `parents`")
                    is_named = fields["name"] != f"{_UNNAMED}-{number}"
                    name = fields["name"] if is_named else ""
                    rest = {field: value for field, value in fields.items() if field not in ("name", "workflow")}
                    if "workflow" in group.variables:
                        rest["workflow"] = fields["workflow"]
                    # Without defaults: another row's column, and one that is added later, leave the key as it is.
                    distinct = {
                        one: value
                        for one, value in rest.items()
                        if value not in ([], getattr(JOB_FIELD.get(one), "default", None))
                    }
                    key = _key(rest.get("unique_key") or name or distinct)
                    rest.pop("unique_key", None)
                    given = {**rest, "name": name or f"{group.name}-{number}"}
                    yield Row({**dict.fromkeys(group.variables, ""), **_texts_of(given)}, given, key, where)

        group.rows = rows

    def _set_commands(self, group: JobGroup, node: YamlNode) -> None:
        """Take lines of commands for bash: those of a file, or a list."""
        group.may_repeat = True
        lines: list[str] = []
        path = ""
        try:
            if node.kind is LIST:
                lines = [self._problems.text(one, "a command") for one in node.value]
            else:
                path = self._file(node, "commands")
            group.count = len(lines) if not path else _count_lines(path)
        except BalsamError as exc:
            self._problems.add(node, _in_one_line(exc))
            group.is_readable = False
            return

        def rows(parameters: Collection[str]) -> Iterator[Row]:
            source = readers.Commands(path) if path else None
            with source or nullcontext():
                for number, command in enumerate(source or lines, 1):
                    where = f"{path}, line {source.line}" if source else f"command {number}"
                    fields = {"name": f"{group.name}-{number}", "args": shlex.quote(command)}
                    yield Row({}, fields, _key(command), where)

        group.rows = rows

    def _file(self, node: YamlNode, what: str) -> str:
        """Return the path of a file that can be read. Raises InputError, NotFound."""
        path = os.path.join(self._directory, os.path.expanduser(self._problems.text(node, what)))
        with readers.RowReader(path):
            return path

    def _set_sweep(self, group: JobGroup, own: Mapping[str, tuple[YamlNode, YamlNode]]) -> None:
        source = own["sweep" if "sweep" in own else "array"][1]
        try:
            variables = self._variables(source, f"sweep of group {group.name}") if "sweep" in own else []
            if "array" in own:
                variables.append(sweep.parse_array(self._problems.text(own["array"][1], "array")))
            group.is_swept = True
            group.variables = tuple(one.name for one in variables)
            whole = sweep.Zip(variables) if self._flag(own, "zip") else sweep.Product(variables)
            sample = (
                sweep.Sample(whole, self._whole(own, "random", 1), self._whole(own, "seed", 0)) if "random" in own else None
            )
            found = sample or whole
            sweep.refuse_too_many(found.total)
        except BalsamError as exc:
            self._problems.add(source, _in_one_line(exc))
            group.is_readable = False
            return
        group.count = found.total
        is_named = "name" in group.fields
        stem = group.name

        def rows(parameters: Collection[str]) -> Iterator[Row]:
            for values in found:
                fields = {} if is_named else {"name": sweep.name_of(stem, values)}
                shown = ", ".join(f"{name}={value}" for name, value in values.items())
                yield Row(values, fields, _key(values), shown)

        group.rows = rows

    def _variables(self, node: YamlNode, what: str) -> list[sweep.Variable]:
        """Return the variables of a mapping from names to texts as `balsam job --sweep` takes them, or to lists of values."""
        found = []
        for name, (key, value) in self._problems.entries(node, what).items():
            try:
                if value.kind is not LIST:
                    text = self._problems.text(value, f"{what}: {name}")
                    found.append(sweep.parse(f"{name}={text}", self._lines))
                    continue
                sweep.parse(f"{name}=1", self._lines)  # checks the name
            except BalsamError as exc:
                self._problems.add(value if value.kind is TEXT else key, _in_one_line(exc))
                continue
            values = [self._problems.text(one, f"{what}: a value of {name}") for one in value.value]
            if not values:
                self._problems.add(value, f"{what}: {name} has no values")
            found.append(sweep.Variable(name, values))
        if not found:
            self._problems.add(node, f"{what} has no variables")
        return found

    def _lines(self, path: str) -> list[str]:
        """Return the lines of a file of values."""
        return readers.values_of(os.path.join(self._directory, os.path.expanduser(path)))

    def _flag(self, own: Mapping[str, tuple[YamlNode, YamlNode]], name: str) -> bool:
        field = JOB_FIELD["wait_for_parents"]._replace(name=name, default=0)
        return name in own and self._stored(field, own[name][1].value, own[name][1], "group") == 1

    def _whole(self, own: Mapping[str, tuple[YamlNode, YamlNode]], name: str, least: int) -> int:
        field = JOB_FIELD["num_nodes"]._replace(name=name, kind="count" if least else "count0", default=least)
        return int(self._stored(field, own[name][1].value, own[name][1], "group")) if name in own else least

    def _set_list(self, group: JobGroup, node: YamlNode) -> None:
        rows: dict[str, Row] = {}
        for place, item in enumerate(self._problems.items(node, f"jobs of group {group.name}"), 1):
            what = f"job {place} of group {group.name}"
            entries = self._problems.entries(item, what)
            self._refuse_unknown(entries, _JOB_FIELDS, what)
            one = JobGroup(group.name, item)
            for field, (_, value) in entries.items():
                if field in _JOB_FIELDS:
                    one.fields[field], one.places[field] = self._field(field, value), value
            self._check_fields(one)
            given = one.fields.pop("unique_key", None) or one.fields.get("name") or ""
            row = Row(_texts_of(one.fields), one.fields, _key(given or one.fields), f"job {place} (line {item.line})")
            if row.key in rows:
                self._problems.add(item, f"{what} is the same as {rows[row.key].where}; give one another name or unique_key")
            rows.setdefault(row.key, row)
        group.count = len(rows)
        group.rows = lambda parameters: iter(rows.values())
        names = [set(row.values) for row in rows.values()]
        group.variables = tuple(sorted(set.intersection(*names))) if names else ()


def _commands_app() -> dict[str, Any]:
    """Return all fields but the name of the application that runs lines of commands, in stored form."""
    fields = {**{field.name: field.default for field in APP_FIELD.values()}, **job_rows.COMMANDS_APP}
    return {name: value for name, value in fields.items() if name != "name"}


#: Begins the name of a job that a table gives none.
_UNNAMED = "\x7f"


def _open_table(path: str, form: str) -> readers.CsvTable | readers.JsonLines:
    return readers.JsonLines(path) if form == "jsonl" else readers.CsvTable(path, form)


def _columns(path: str, form: str) -> tuple[str, ...]:
    """Return the variables of a table: its columns, tags and parameters by their names; of JSON lines those of the first."""
    table = _open_table(path, form)
    with table:
        if isinstance(table, readers.CsvTable):
            return tuple(name.rpartition(".")[2] for name in table.columns)
        return tuple(_texts_of(next(iter(table), {})))


def _count_lines(path: str) -> int:
    with open(path, "rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))


def _texts_of(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return what can be compared with the variables of other groups: plain values, and what is in objects by its name."""
    found = {name: str(value) for name, value in fields.items() if isinstance(value, (str, int, float))}
    for mapping in ("data", "tags", "parameters"):
        found.update((name, str(value)) for name, value in _object(fields.get(mapping)).items())
    return found


_JOB_FIELDS = (*(field.name for field in JOB_FIELD.values() if field.settable), *_EXTRA, *field_specs.OUR_NAMES)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _placeholders(value: Any) -> Iterator[str]:
    """Yield the names in braces in the texts of a value."""
    if isinstance(value, str):
        if "{" in value:
            yield from _PLACEHOLDER.findall(value)
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _placeholders(one)
    elif isinstance(value, list):
        for one in value:
            yield from _placeholders(one)


def _mentions(value: Any, variables: Collection[str]) -> bool:
    return bool(variables) and any(name in variables for name in _placeholders(value))


def _key(given: str | Mapping[str, Any]) -> str:
    """Return the part of a unique_key for a text, or for the values of a job; a digest if that is long."""
    text = given if isinstance(given, str) else ",".join(f"{name}={value}" for name, value in _flat(given))
    return text if len(text) <= _MAX_KEY else hashlib.sha256(text.encode()).hexdigest()[:32]


def _flat(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a job and the keys of those that are objects; parameters by their names alone."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from ((key if name == "parameters" else f"{name}.{key}", one) for key, one in value.items())
        else:
            yield name, value


def _in_one_line(exc: BalsamError) -> str:
    return " ".join(exc.message.split())
