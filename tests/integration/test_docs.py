"""What the documents show exists, and nothing that the program has is missing in them."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import click
import pytest
from documents import DOCS, README, blocks_of, page
from helpers import ROOT

from balsam_lite.cli import group
from balsam_lite.core import errors, field_specs, settings, states
from balsam_lite.db.query.catalogue import CATALOGUE

CONTRIBUTING = (ROOT / "CONTRIBUTING.rst").read_text(encoding="utf-8")
PAGES = (ROOT / "README.rst", *sorted(DOCS.rglob("*.rst")))


def command(name: str) -> click.Command:
    found = group.balsam.get_command(click.Context(group.balsam), name)
    assert found is not None
    return found


def every_parameter() -> list[click.Parameter]:
    """Of all commands, and of those below them."""
    found = [command(name) for name in group.COMMANDS]
    below = [inner for outer in found if isinstance(outer, click.Group) for inner in outer.commands.values()]
    return [parameter for one in (*found, *below) for parameter in one.params]


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", group.COMMANDS)
def test_a_command_and_each_of_its_options_have_help(name: str) -> None:
    found = command(name)
    assert found.help, f"{name} is missing its help"
    assert group.COMMANDS[name].summary
    for parameter in found.params:
        if isinstance(parameter, click.Option):
            assert getattr(parameter, "help", None), f"{name} {parameter.opts[0]} is missing its help"
    for part in getattr(found, "commands", {}).values():
        assert part.hidden or not part.get_short_help_str(100).endswith("..."), f"{name} {part.name} is cut in the list"


def test_the_table_of_commands_has_all_that_are_not_hidden() -> None:
    shown = re.findall(r"^   \* - ``balsam (.*)``$", generated()["commands.txt"], re.MULTILINE)
    assert sorted(shown) == sorted(set(group.COMMANDS) - set(group.HIDDEN))


def commands_of(text: str) -> list[str]:
    """Return the command lines of `balsam` in a document: those of Bash and console blocks."""
    lines = []
    for block in blocks_of(text):
        if block.language in ("bash", "console"):
            lines += re.findall(r"^\s*(?:\$ )?(balsam .*)$", block.text.replace("\\\n", " "), re.MULTILINE)
    return [line for line in lines if "…" not in line]


def literals_of(text: str) -> list[str]:
    """Return what a document names in a sentence: a command with an option, maybe without all that it needs."""
    return [" ".join(found.split()) for found in re.findall(r"``(balsam [^`…]*--[^`…]*)``", text)]


def parse(words: list[str]) -> None:
    """Let click parse a command line, without doing anything."""
    context = group.balsam.make_context("balsam", words)
    found: click.Command = group.balsam
    while isinstance(found, click.Group):
        rest = [*getattr(context, "_protected_args", ()), *context.args]
        if not rest:
            break
        name, inner, rest = found.resolve_command(context, rest)
        assert inner is not None
        context, found = inner.make_context(name, rest, parent=context), inner


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_each_command_line_of_a_document_can_be_parsed(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    whole = commands_of(text)
    for line in [*whole, *literals_of(text)]:
        words = shlex.split(line, comments=True)
        end = next((place for place, word in enumerate(words) if word in ("&", "&&", "|", ";", ">")), len(words))
        try:
            parse(words[1:end])
        except click.exceptions.Exit:
            pass  # --help, --version
        except click.ClickException as exc:
            is_short = isinstance(exc, (click.MissingParameter, click.BadOptionUsage)) and line not in whole
            assert is_short, f"{line}: {exc.format_message()}"


@pytest.mark.parametrize("code", CATALOGUE)
def test_each_command_in_the_remedy_of_a_reason_can_be_parsed(code: str) -> None:
    for line in re.findall(r"`(balsam [^`]+)`", CATALOGUE[code].remedy):
        with suppress(click.MissingParameter):  # it names a command, not all that it needs
            parse(shlex.split(re.sub(r"\{\w+\}|MINUTES|NUMBER", "7", line))[1:])


#: Pages that also tell of other programs' options.
OF_OTHERS = {"coming_from", "decisions", "clusters", "mpi_and_gpus.rst", "sites_and_ssh.rst"}


def test_options_in_the_documents_exist() -> None:
    known = {word for p in every_parameter() for word in (*p.opts, *p.secondary_opts)}
    known |= {word for parameter in group.balsam.params for word in parameter.opts} | {"--help"}
    for path in PAGES:
        if not OF_OTHERS & set(path.parts):
            used = set(re.findall(r"``(--[a-z][a-z_-]+)[^`]*``", path.read_text(encoding="utf-8")))
            assert {word for word in used if not any(other.startswith(word) for other in known)} == set(), path


# --- completeness -----------------------------------------------------------------------------------------------------


def generated() -> dict[str, str]:
    """The texts that the build of the documentation takes from the code, by the names of their files."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.files()


def test_each_setting_and_each_field_has_a_meaning_in_one_line() -> None:
    assert list(settings.MEANINGS) == list(settings.Settings._fields)
    meanings = [*settings.MEANINGS.values(), *(f.meaning for f in field_specs.JOB_FIELDS + field_specs.APP_FIELDS)]
    assert [text for text in meanings if not text or len(text) > 110 or text.endswith(".") or "\n" in text] == []


def test_the_pages_have_each_setting_state_field_and_exit_code_of_the_code() -> None:
    texts = generated()
    for key, default in settings.Settings()._asdict().items():
        assert f"* - ``{key}``\n     - ``{json.dumps(default)}``" in texts["settings.txt"]
    for key in settings.CHOICES:
        assert key in texts["setting_choices.txt"]
    for state in states.STATES:
        assert f"* - ``{state}``" in texts["states.txt"]
        assert f">{state}<" in texts["states.svg"]
    for field in field_specs.JOB_FIELDS:
        assert f"* - ``{field.name}``" in texts["job_fields.txt"]
    for alias in field_specs.ALIASES:
        assert f", ``{alias}``" in texts["job_fields.txt"]
    for field in field_specs.APP_FIELDS:
        assert f"* - ``{field.name}``" in texts["app_fields.txt"]
    codes = {
        kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.BalsamError)
    }
    for code in codes | {0}:
        assert f"* - ``{code}``" in texts["exit_codes.txt"]


def test_each_generated_file_is_on_a_page_and_each_that_a_page_wants_is_generated() -> None:
    wanted = set()
    for path in DOCS.rglob("*.rst"):
        wanted |= set(re.findall(r"generated/(\S+)", path.read_text(encoding="utf-8")))
    assert wanted == set(generated())


#: Not for users: for tests, and between processes of balsam_lite.
SECRET = {"BALSAM_DETACHED", "BALSAM_FAILPOINT", "BALSAM_LEASE_ID", "BALSAM_IMPORTING"}


def test_the_pages_name_each_environment_variable_of_the_program() -> None:
    named = page("reference/environment")
    used: set[str] = set()
    for path in (ROOT / "balsam_lite").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)):
                text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
                used |= {text} if re.fullmatch(r"_?BALSAM_[A-Z_]*[A-Z]", text) else set()
    assert "BALSAM_DB_PATH" in used
    assert {name for name in used - SECRET if f"``{name}``" not in named} == set()


def test_links_to_other_places_are_whole_addresses() -> None:
    for path in DOCS.rglob("*.rst"):
        text = path.read_text(encoding="utf-8")
        for address in re.findall(r"`[^`<]+<([^`>]+)>`_", text):
            assert re.fullmatch(r"https://[a-z0-9.-]+\.[a-z]+(/[\w./~%#?=&+-]*)?", address), f"{path}: {address}"
        assert "http://" not in text, path


def test_each_name_of_the_python_interface_is_on_a_page() -> None:
    from balsam_lite import analytics, api
    from balsam_lite.launcher import dag, futures

    text = page("reference/api") + page("guides/python_api") + page("guides/sites_and_ssh")
    for module in (dag, futures, analytics, api):
        for name in getattr(module, "__all__", ()):
            assert re.search(rf"\b{name}\b", text), f"{module.__name__}.{name}"


def test_each_lookup_is_on_the_page_about_conditions() -> None:
    from balsam_lite.db.query.filters import LOOKUPS

    assert [name for name in LOOKUPS if f"``{name}``" not in page("reference/conditions")] == []


def test_files_that_the_documents_name_exist() -> None:
    roots = (ROOT, ROOT / "balsam_lite", DOCS)
    for path in (*PAGES, ROOT / "CONTRIBUTING.rst"):
        for name in re.findall(r"``([a-z_]+(?:/[\w.]+)+\.(?:py|rst))``", path.read_text(encoding="utf-8")):
            assert any((root / name).exists() for root in roots), f"{path}: {name}"


def test_the_reading_path_exists_and_is_short() -> None:
    files = re.findall(r"^ +\* - ``(balsam_lite/\S+\.py)``$", page("reading_path"), re.MULTILINE)
    assert len(files) == 10
    lines = {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in files}
    assert sum(lines.values()) <= 2500, lines


def test_the_versions_in_the_documents_are_those_of_setup_cfg() -> None:
    text = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    floor = re.search(r"python_requires = >=(\S+)", text)
    assert floor
    assert f"Python {floor[1]} or newer" in README
    assert f"Python {floor[1]}" in CONTRIBUTING


# --- the blocks of the pages ------------------------------------------------------------------------------------------


def test_the_python_in_the_documents_can_be_compiled() -> None:
    for path in (ROOT / "README.rst", *DOCS.rglob("*.rst")):
        for block in blocks_of(path.read_text(encoding="utf-8")):
            if block.language == "python":
                compile(block.text, str(path), "exec")


# --- the files in the repository --------------------------------------------------------------------------------------


def tracked_files() -> list[Path]:
    """The files of the repository, or of the directory where it is a copy."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    ) if shutil.which("git") and (ROOT / ".git").exists() else None  # fmt: skip
    if done is not None and done.returncode == 0:
        return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]
    made = {".venv", "build", "dist", "__pycache__"}
    return [
        path for path in ROOT.rglob("*")
        if path.is_file() and not any(part in made or part.endswith((".egg-info", "_cache")) for part in path.parts)
    ]  # fmt: skip


def test_no_file_names_a_place_on_a_developers_machine() -> None:
    places = [f"/{name}/" for name in ("work", "root", "tmp/v")]
    guilty = []
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", "replace")
        guilty += [f"{path.relative_to(ROOT)}: {place}" for place in places if re.search(rf"(?<![\w.{{}}]){place}", text)]
    assert guilty == []


def test_each_verb_of_the_makefile_has_a_line_of_help() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    done = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True) if shutil.which("make") else None
    if done is None:
        pytest.skip("no make")
    assert done.returncode == 0, done.stderr
    listed = re.findall(r"^ +make ([\w-]+) +\S", done.stdout, re.MULTILINE)
    assert set(listed) == set(phony[1].split())


def test_the_module_runs_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "balsam_lite.cli", "server"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "no server: this DB is a file\n")
