"""The options that choose jobs, the same for every command that lists, changes, kills, removes or plots them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from ..core import states
from ..core.errors import AmbiguousJobId, AmbiguousSite, InvalidSpec, NotFound, did_you_mean
from ..db.engine import directories
from ..db.query import queries
from ..db.query.filters import all_of, condition_from_text, condition_on_text
from ..db.query.queries import has_wildcard
from . import completion, output
from .common import ask_all_sites, pairs, progress_of, row_number
from .group import ConditionOption, LaterOption, Option, SeparateOption, option

if TYPE_CHECKING:
    from ..db.engine.registry import SiteEntry
    from ..sites.interface import SiteInterface

_T = TypeVar("_T")
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


def selection_options(
    *, without: Collection[str] = (), ids: type[Option] = SeparateOption, has_jobs: bool = False
) -> Callable[[_Function], _Function]:
    """Give a command the options that choose jobs; it gets what was given as its parameter `chosen`, a `Selection`.

    Args:
        without: parameters to leave out, such as "wanted" where --state means something else.
        ids: the kind of the option --id, which takes several words unless the command has arguments as well.
        has_jobs: the arguments of the command are jobs, as if each were given with --id.
    """
    ids = Option if has_jobs else ids
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
            if has_jobs:
                values["ids"] += values.pop("jobs")
            return function(*args, chosen=Selection({name: values.pop(name) for name in given}), **values)

        command: Any = gathered
        for name in reversed(given):
            command = options[name](command)
        if has_jobs:
            command = click.argument("jobs", nargs=-1, metavar="[JOB]...", shell_complete=completion.jobs)(command)
        return command

    return decorate


JOB_MODE_HELP = "serial: jobs of one rank; mpi: all by the MPI start command; mixed: jobs of several ranks by it."
PART_HELP = "Reserve this many nodes for a separate launcher; repeat until every node is covered."


def launch_filter_options(function: _Function) -> _Function:
    """Give a command the options that choose the jobs of a launcher: those that an index of the DB can claim by."""
    workflow = option(
        "--wf-filter", "--workflow", "workflow_filter", cls=ConditionOption, metavar="NAME",
        shell_complete=completion.workflows, help="Run only jobs of this workflow; * and ? (in quotes) match anything.",
    )  # fmt: skip
    tag = option(
        "-tag", "--tag", "tags", multiple=True, metavar="KEY=VALUE", shell_complete=completion.tags,
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
        """Return the options as typed, for messages."""
        words = [f"{_OPTIONS[name]} {value}" for name, values in self._given.items() for value in values]
        return " ".join(words + ["--contains"] * self._contains)

    def values(self, name: str) -> tuple[str, ...]:
        """Return what was given as one of the options, which goes by the name of its parameter."""
        return tuple(self._given.get(name, ()))

    @property
    def first(self) -> str:
        """Return the first value that was given."""
        return next(value for values in self._given.values() for value in values)

    def has_only(self, *names: str) -> bool:
        """Return whether no other parameters than these were given."""
        return set(self._given) <= set(names)

    def conditions(self, *, is_name_part: bool = False, ids: Iterable[str] | None = None) -> Where:
        """Return the conditions of `db.query`.

        Args:
            is_name_part: match --name anywhere, as `balsam ls` does.
            ids: words that take the place of those of --id.

        Raises:
            InvalidSpec: a tag has no `=`. InvalidStateError, UnknownField.
        """
        given = self._given
        if not given and not ids:
            return {}
        words = self.ids if ids is None else tuple(ids)
        terms: list[Where] = [_of_jobs(words)] if words else []
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

    def refuse_none(self, sites: Iterable[SiteInterface]) -> NotFound:
        """Return the error that no job matches, with the nearest workflow or application of a site here if one is unknown."""
        from ..sites.local import LocalSite

        meant = ""
        for site in [] if self._contains else sites:
            if not isinstance(site, LocalSite):
                continue
            with site.database.read() as cx:
                known = {"workflow": queries.workflows(cx), "app": [app["name"] for app in queries.apps(cx)]}
            for field, names in known.items():
                unknown = [word for word in self._given.get(field, ()) if word not in names and not has_wildcard(word)]
                meant += "".join(did_you_mean(word, names) for word in unknown)
        return NotFound(f"No job matches{f' {self}' * bool(self)}.{meant}", hint="`balsam ls` shows the jobs.")


def _of_jobs(words: Collection[str]) -> Where:
    """Return the condition for the jobs that these words name."""
    numbers = [number_in(word) for word in words]
    if None not in numbers:
        return {"id": numbers}
    return {"which": [word if number is None else f"#{number}" for word, number in zip(words, numbers)]}


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


def digits_are_numbers() -> bool:
    """Return whether the command takes digits as a job's number, as Balsam 0.7 did: `balsam job …`, `plot` and `report` do.

    For the others digits may also begin an id, as in Balsam 0.3; a word that fits several jobs is refused.
    """
    context = click.get_current_context(silent=True)
    name = context.info_name or "" if context is not None else ""
    return name.startswith("job ") or name in ("plot", "report")


def number_in(word: str) -> int | None:
    """Return the number of the job that a word means whatever ids and names there are; None if it is no such word."""
    is_number = word.startswith("#") or digits_are_numbers()
    return row_number(word.removeprefix("#")) if is_number else None


def job_numbers(site: SiteInterface, words: Iterable[str]) -> list[int]:
    """Return the numbers of the jobs of a site that these words name, sorted; a number need not be that of a job.

    Raises:
        UnknownJob, AmbiguousJobId: for a word that is not a number.
    """
    numbers = {word: number_in(word) for word in words}
    return sorted(
        {queries.the_one(word, _jobs_fitting(site, word)) if number is None else number for word, number in numbers.items()}
    )


def job_of_other_site(site: SiteInterface, word: str) -> tuple[SiteInterface, int] | None:
    """Return the site and the number that SITE#NUMBER names; None for a word of another form, or the name of a job here.

    Raises:
        AmbiguousJobId: it is also the name of a job here. UnknownSite; NotABalsamDB, SiteUnreachable: the site is gone.
    """
    from ..db.engine import registry
    from ..sites import fanout

    name, mark, number = word.rpartition("#")
    if not (mark and name and number.isdecimal()):
        return None
    is_name = site.count("job", {"name": word}) > 0
    if is_name and registry.matching(name) is None:
        return None
    entry = registry.named(name)
    if (entry.host, entry.path) == (site.entry.host, site.entry.path):
        return site, int(number)
    if is_name:
        raise AmbiguousJobId(
            f"{word!r} is the name of a job here, and means job {number} of the site {name}.",
            hint="Name the job here by its number or its id, and the other site by its number: `balsam site ls`.",
        )
    return fanout.open_site(entry), int(number)


def parents_of(target: SiteInterface, words: Sequence[str], dry_run: bool = False) -> dict[int, str]:
    """Return the numbers by which `parent_ids` names these jobs; with those of other sites as SITE#NUMBER, else "".

    With `dry_run` nothing is written, and numbers below 0 name no job.
    """
    there = {word: found for word in words if (found := job_of_other_site(target, word))}
    numbers = dict.fromkeys(job_numbers(target, [word for word in words if word not in there]), "")
    for site, number in there.values():
        from ..sites import remote_parents

        (own,) = remote_parents.numbers_for(target, site, [number], dry_run)
        numbers[own] = f"{site.entry.name}#{number}" if own < 0 else ""
    return numbers


def _jobs_fitting(site: SiteInterface, word: str) -> list[list[Any]]:
    """Return the jobs of a site that a word fits, as `queries.the_one` expects them."""
    rows = site.page({"which": word}, queries.CANDIDATE, size=queries.CANDIDATES)
    return [[row[name] for name in queries.CANDIDATE] for row in rows]


#: `common.ask_all_sites` or `common.ask_sites`.
Ask = Callable[[str, "Callable[[SiteInterface], Any]"], "list[tuple[SiteEntry, Any]]"]


#: Maximum number of jobs that `--dry-run` names.
MAX_EXAMPLES = 5
dry_run_option = option("--dry-run", is_flag=True, help="Only show what would be done.")


class ChosenJobs(NamedTuple):
    """The jobs that were chosen, at each of the sites that have any."""

    where: Where
    sites: list[tuple[SiteInterface, int]]  # with their numbers of jobs
    of_sites: str  # " of NAME, NAME" where it is not clear which site is meant

    @classmethod
    def find(cls, site: str, chosen: Selection, ask: Ask = ask_all_sites) -> ChosenJobs:
        """Count the chosen jobs at each of the sites that --site names.

        Without --site that is the active DB. If none is active, `balsam job …` means all sites, as in Balsam 0.7. With
        `ask=ask_sites`, for commands that change nothing, sites that do not answer are left out with a warning.

        Raises:
            UnknownJob, AmbiguousJobId: a word of --id does not name one job. AmbiguousSite: several sites have jobs of these
            numbers. NotFound: no job matches. NoDatabase. BalsamError: a site cannot be read.
        """
        if not site and not digits_are_numbers():
            directories.find(click.get_current_context().find_root().obj)
        words = [_whole_id(site, word, ask) for word in chosen.ids]
        numbers = {number: word for word in words if (number := number_in(word)) is not None}
        where = chosen.conditions(ids=words)
        asked = [answer for _, answer in ask(site, lambda one: (one, one.count("job", where)))]
        found = [(one, jobs) for one, jobs in asked if jobs]
        names = ", ".join(output.one_line(one.entry.name) for one, _ in found)
        if len(found) > 1 and numbers:
            raise AmbiguousSite(f"More than one site has jobs of these numbers: {names}", hint="Choose one with --site.")
        if not found and chosen:
            raise chosen.refuse_none([one for one, _ in asked])
        _check_numbers(site, numbers, ask)
        return cls(where, found, f" of {names}" if site or len(found) > 1 else "")

    @property
    def total(self) -> int:
        """Return the number of jobs at all sites."""
        return sum(number for _, number in self.sites)

    def say_dry_run(self, verb: str, only: Where, more: str = "") -> None:
        """Print what a command would do to the jobs, how many of them are in which state, and a few of them."""
        where = all_of(self.where, only)
        for there, _ in self.sites:
            counts = there.count_states(where)
            by_state = ", ".join(f"{counts[state]} {state}" for state in states.STATES if state in counts)
            of_site = f" of {output.one_line(there.entry.name)}" * bool(self.of_sites)
            click.echo(
                f"Would {verb} {output.plural(sum(counts.values()), 'job')}{of_site}{more}{': ' * bool(counts)}{by_state}."
            )
            rows = there.page(where, ("id", "name", "job_id"), 0, MAX_EXAMPLES)
            if rows:
                named = ", ".join(output.cute_id(row["name"], row["job_id"]) for row in rows)
                click.echo(f"For example: {named}" if sum(counts.values()) > len(rows) else f"Namely: {named}")
        click.echo("Nothing was changed.")

    def act(self, action: Callable[[SiteInterface], _T], more: int = 0) -> Iterator[tuple[SiteInterface, str, _T]]:
        """Do something with the jobs of one site after the other; yield each site, " of NAME" where needed, and the result.

        A terminal shows the progress, for `more` jobs than have been chosen.
        """
        for there, number in self.sites:
            with progress_of(number + more) as there.progress:
                done = action(there)
            yield there, f" of {output.one_line(there.entry.name)}" * bool(self.of_sites), done


def _check_numbers(site: str, words: Mapping[int, str], ask: Ask) -> None:
    """Raise UnknownJob for a number, typed as a word, that no job of these sites has."""
    if words:
        answers = ask(site, lambda one: one.page({"id": list(words)}, ("id",), size=len(words)))
        missing = words.keys() - {row["id"] for _, rows in answers for row in rows}
        if missing:
            queries.the_one(words[min(missing)], [])


def _whole_id(site: str, word: str, ask: Ask) -> str:
    """Return the UUID of the only job at these sites that a word names; a number stays as it is."""
    if number_in(word) is not None:
        return word
    rows = [row for _, fitting in ask(site, lambda one: _jobs_fitting(one, word)) for row in fitting]
    queries.the_one(word, rows)
    return str(rows[0][queries.CANDIDATE.index("job_id")])
