"""The options that choose jobs, the same for every command that lists, changes, kills, removes or plots them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from ..core import states
from ..core.errors import AmbiguousSite, InvalidSpec, NotFound, did_you_mean
from ..db.query.filters import all_of, condition_from_text, condition_on_text
from ..db.query.queries import has_wildcard
from . import completion
from .common import ask_all_sites, jobs_fitting, pairs, row_number
from .group import ConditionOption, LaterOption, Option, SeparateOption, option

if TYPE_CHECKING:
    from ..db.engine.connection import Connection, Database
    from ..db.engine.registry import SiteEntry

_Function = TypeVar("_Function", bound=Callable[..., Any])

Where = dict[str, Any]

#: How a job is named, for help texts.
A_JOB = "number, unique prefix of the id, or name"

#: The options that match text, each by the field that it compares, and all of them.
_TEXTS = {"name": "--name", "workflow": "--wf", "app": "--app"}
_OPTIONS = {
    **_TEXTS, "ids": "--id", "wanted": "--state", "unwanted": "--exclude-state", "tags": "--tag", "workdir": "--workdir",
    "conditions": "--where",
}  # fmt: skip


def selection_options(*, without: Collection[str] = (), ids: type[Option] = SeparateOption) -> Callable[[_Function], _Function]:
    """Give a command the options that choose jobs; it gets what was given as its parameter `chosen`, a `Selection`.

    Args:
        without: parameters to leave out, such as "wanted" where --state means something else.
        ids: the kind of the option --id, which takes several words unless the command has arguments as well.
    """
    options = {
        "ids": option(
            "-i", "--id", "ids", cls=ids, multiple=True, metavar="JOB" if ids is Option else "JOB...",
            shell_complete=completion.jobs, help=f"Job: {A_JOB}; '#37' is always a number.",
        ),
        "wanted": option(
            "-s", "--state", "wanted", multiple=True, metavar="STATE", shell_complete=completion.states,
            help="Jobs in this state.",
        ),
        "unwanted": option(
            "-ns", "--exclude-state", "unwanted", cls=LaterOption, multiple=True, metavar="STATE",
            shell_complete=completion.states, help="Jobs in any other state.",
        ),
        "workflow": option(
            "-wf", "--wf", "--workflow", "workflow", multiple=True, metavar="NAME", shell_complete=completion.workflows,
            help="Jobs of this workflow.",
        ),
        "name": option("--name", "name", multiple=True, metavar="NAME", help="Jobs of this name."),
        "app": option(
            "-a", "--app", "--application", "app", cls=LaterOption, multiple=True, metavar="NAME",
            shell_complete=completion.applications, help="Jobs of this application.",
        ),
        "tags": option(
            "-t", "--tag", "tags", cls=LaterOption, multiple=True, metavar="KEY=VALUE", shell_complete=completion.tags,
            help="Jobs with this tag.",
        ),
        "workdir": option(
            "-w", "--workdir", "workdir", cls=LaterOption, multiple=True, metavar="TEXT",
            help="Jobs with TEXT in their workdir.",
        ),
        "conditions": option(
            "--where", "conditions", cls=LaterOption, multiple=True, metavar="CONDITION",
            help="Jobs that meet a condition, such as num_nodes__lte=4 or data__x__gt=1.",
        ),
        "contains": option(
            "--contains", cls=LaterOption, is_flag=True, help="Match --name, --wf and --app anywhere, whatever the case."
        ),
    }  # fmt: skip
    given = [name for name in options if name not in without]

    def decorate(function: _Function) -> _Function:
        @wraps(function)
        def gathered(*args: Any, **values: Any) -> Any:
            return function(*args, chosen=Selection({name: values.pop(name) for name in given}), **values)

        command: Any = gathered
        for name in reversed(given):
            command = options[name](command)
        return command

    return decorate


JOB_MODE_HELP = "serial: jobs of one rank; mpi: all by the MPI start command; mixed: jobs of several ranks by it."
PART_HELP = "Reserve this many nodes for a separate launcher; repeat until every node is covered."


def launch_filter_options(function: _Function) -> _Function:
    """Give a command the options that choose the jobs of a launcher: those that an index of the DB can claim by."""
    workflow = option(
        "--wf-filter", "--workflow", "wf_filter", cls=ConditionOption, metavar="NAME", shell_complete=completion.workflows,
        help="Run only jobs of this workflow; * and ? (in quotes) match anything.",
    )  # fmt: skip
    tag = option(
        "-tag", "--tag", multiple=True, metavar="KEY=VALUE", shell_complete=completion.tags,
        help="Run only jobs with this tag; may be repeated, and all must match.",
    )  # fmt: skip
    return workflow(tag(function))


class Selection:
    """The options that choose jobs, as given: all must hold, of several values of one option one must, or all tags.

    Raises:
        InvalidSpec: a text is empty, as of an unset variable.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        self._given = {name: value for name, value in given.items() if value and name != "contains"}
        self._contains = bool(given.get("contains"))
        self.ids: tuple[str, ...] = given.get("ids", ())
        for name, values in self._given.items():
            if "" in values:
                raise InvalidSpec(f"{_OPTIONS[name]} must not be empty; leave it out to mean any.")

    def __bool__(self) -> bool:
        return bool(self._given)

    def __str__(self) -> str:
        """As it was typed, for messages."""
        words = [f"{_OPTIONS[name]} {value}" for name, values in self._given.items() for value in values]
        return " ".join(words + ["--contains"] * self._contains)

    def values(self, name: str) -> tuple[str, ...]:
        """Return what was given as one of the options, which goes by the name of its parameter."""
        return tuple(self._given.get(name, ()))

    @property
    def first(self) -> str:
        """The first value that was given."""
        return next(value for values in self._given.values() for value in values)

    def has_only(self, *names: str) -> bool:
        """Return whether no other parameters than these were given."""
        return set(self._given) <= set(names)

    def conditions(
        self, *, is_digits_number: bool = False, is_name_part: bool = False, ids: Iterable[str] | None = None
    ) -> Where:
        """Return the conditions of `db.query`.

        Args:
            is_digits_number: take digits as the number of a job, as Balsam 0.7 did, and not as the beginning of an id.
            is_name_part: match --name anywhere, as `balsam ls` does.
            ids: words that take the place of those of --id.

        Raises:
            InvalidSpec: a tag has no `=`. InvalidStateError, UnknownField.
        """
        given = self._given
        if not given and not ids:
            return {}
        words = self.ids if ids is None else tuple(ids)
        terms: list[Where] = [condition_of(words)] if is_digits_number else [{"which": list(words)}] if words else []
        for field in _TEXTS:
            if field in given:
                is_part = field == "name" and is_name_part and not any(map(has_wildcard, given[field]))
                terms.append(_of_texts(field, given[field], self._contains or is_part))
        terms += [_of_states("state", given.get("wanted", ())), _of_states("state__ne", given.get("unwanted", ()))]
        terms += [_of_tags(given.get("tags", ()))]
        if "workdir" in given:
            terms.append({"$or": [{"workdir__contains": text} for text in given["workdir"]]})
        terms += [condition_from_text(text) for text in given.get("conditions", ())]
        return all_of(*terms)

    def refuse_none(self, db: Database | None = None) -> NotFound:
        """Return the error that no job matches, with the nearest workflow or application if one is unknown."""
        from ..db.query import queries

        meant = ""
        if db is not None and not self._contains:
            with db.read() as cx:
                known = {"workflow": queries.workflows(cx), "app": [app["name"] for app in queries.apps(cx)]}
            for field, names in known.items():
                unknown = [word for word in self._given.get(field, ()) if word not in names and not has_wildcard(word)]
                meant += "".join(did_you_mean(word, names) for word in unknown)
        return NotFound(f"No job matches{f' {self}' * bool(self)}.{meant}", hint="`balsam ls` shows the jobs.")


def condition_of(words: Iterable[str]) -> Where:
    """Return the condition for the jobs that these words name; digits are the number. {} for no words."""
    numbers = {word: row_number(word.removeprefix("#")) for word in words}
    if None not in numbers.values():
        return {"id": list(numbers.values())} if numbers else {}
    return {"which": [word if number is None else f"#{number}" for word, number in numbers.items()]}


def _of_texts(field: str, values: Collection[str], anywhere: bool) -> Where:
    terms = [condition_on_text(field, value, anywhere) for value in values]
    numbers = [number for number in map(row_number, values) if number is not None] if field == "app" and not anywhere else []
    terms += [{"app_id": numbers}] if numbers else []
    return terms[0] if len(terms) == 1 else {"$or": terms}


def _of_states(condition: str, words: Collection[str]) -> Where:
    """Return the condition for states; in `*` and `?` they are globs."""
    found: list[str] = []
    for word in words:
        if has_wildcard(word):
            from fnmatch import fnmatchcase

            found += [state for state in states.STATES if fnmatchcase(state, word.replace("[", "[[]"))]
        else:
            found.append(states.check_state(word))
    return {condition: found} if words else {}


def _of_tags(words: Collection[str]) -> Where:
    found = pairs(words, "--tag")
    exact = {key: value for key, value in found.items() if not has_wildcard(value)}
    globs = {f"tags__{key}__glob": value for key, value in found.items() if key not in exact}
    return {**({"tags": exact} if exact else {}), **globs}


# --- acting on what was chosen, at one or several sites ---------------------------------------------------------------


def numbers_of(cx: Connection, chosen: Selection, *, is_name_part: bool = False) -> list[int]:
    """Return the numbers of the jobs of this DB that were chosen, in order; each word of --id must name one job.

    Raises:
        UnknownJob, AmbiguousJobId; else as `Selection.conditions`.
    """
    from ..db.query import queries, select

    words = [f"#{queries.find_job(cx, word)}" for word in chosen.ids]
    return select.job_ids(cx, chosen.conditions(ids=words, is_name_part=is_name_part))


def sites_with(site: str, chosen: Selection, *, is_digits_number: bool) -> tuple[Where, list[tuple[SiteEntry, int]]]:
    """Return the conditions, and each of the sites that has jobs that meet them, with their number.

    Raises:
        UnknownJob, AmbiguousJobId: a word of --id does not name one job. AmbiguousSite: numbers of jobs that several sites
        have. NotFound: no job matches. BalsamError: a site cannot be read.
    """
    words = [_whole_id(site, word, is_digits_number) for word in chosen.ids]
    where = chosen.conditions(ids=words, is_digits_number=is_digits_number)
    found = [(entry, jobs) for entry, jobs in ask_all_sites(site, lambda one: one.count("job", where)) if jobs]
    if len(found) > 1 and any(row_number(word.removeprefix("#")) is not None for word in words):
        names = ", ".join(entry.name for entry, _ in found)
        raise AmbiguousSite(f"More than one site has jobs of these numbers: {names}", hint="Choose one of them with --site.")
    if not found and chosen:
        raise chosen.refuse_none()
    return where, found


def _whole_id(site: str, word: str, is_digits_number: bool) -> str:
    """Return the UUID of the only job at these sites that a word names; a number stays as it is."""
    from ..db.query import queries

    if row_number(word.removeprefix("#")) is not None and (is_digits_number or word.startswith("#")):
        return word
    rows = [row for _, fitting in ask_all_sites(site, lambda one: jobs_fitting(one, word)) for row in fitting]
    queries.the_one(word, rows)
    return str(rows[0][queries.CANDIDATE.index("job_id")])


def jobs(number: int) -> str:
    """Return a number of jobs in words."""
    return "1 job" if number == 1 else f"{number} jobs"
