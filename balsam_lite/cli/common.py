"""Open the DB, query one or several sites, ask the user, and declare options: what several commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..core.errors import BalsamError, InvalidSpec
from ..db.engine import directories
from ..db.engine.connection import Database
from . import completion, output
from .group import ConditionOption, option

if TYPE_CHECKING:
    from ..db.engine.registry import SiteEntry
    from ..sites import fanout
    from ..sites.interface import SiteInterface

_T = TypeVar("_T")
_Function = TypeVar("_Function", bound=Callable[..., Any])

#: The largest count: what SQLite and JSON hold exactly.
_LARGEST = 2**53


def open_db() -> Database:
    """Open the DB that `--db` names, or else the active one, until the command ends."""
    context = click.get_current_context().find_root()
    db = directories.open_database(directories.find(context.obj))
    context.call_on_close(db.close)
    return db


@contextmanager
def progress_of(total: int) -> Iterator[Callable[[int], None] | None]:
    """Show on the terminal, on stderr, how much of `total` is done; call what this gives with each further number done.

    If `total` is 0, which means unknown, the number is shown.
    """
    if not sys.stderr.isatty():
        yield None
        return
    done = 0

    def add(number: int) -> None:
        nonlocal done
        done += number
        sys.stderr.write(f"\r{min(done * 100 // total, 100):3} %" if total else f"\r{done}")
        sys.stderr.flush()

    try:
        yield add
    finally:
        if done:
            sys.stderr.write(f"\r{' ' * max(5, len(str(done)))}\r")


# --- sites ------------------------------------------------------------------------------------------------------------

_SITE_HELP = "Which sites: a name, a number, a path or a part of one, `all`, `active`, `this`, or several with commas."


def _site(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str:
    """Check --site, as a callback. An empty text, as of an unset variable, is refused: it would mean other sites."""
    if value is not None and not value.strip():
        raise InvalidSpec("--site must not be empty; leave it out to mean the active DB, or without one all sites.")
    return value or ""


_SITE_OPTION: dict[str, Any] = {
    "cls": ConditionOption, "callback": _site, "metavar": "SITES", "help": _SITE_HELP, "shell_complete": completion.sites,
}  # fmt: skip
#: Give a command --site as its parameter `site`; "" is the active DB, or all sites if there is none.
long_site_option = option("--site", "site", **_SITE_OPTION)
#: The same with -s, where that is no other option.
site_option = option("-s", "--site", "site", **_SITE_OPTION)


def ask_sites(site: str, question: Callable[[SiteInterface], _T]) -> list[tuple[SiteEntry, _T]]:
    """Ask each of the sites that `--site` means, and warn of those that fail; return the answers.

    Raises:
        UnknownSite, AmbiguousSite, NoDatabase: nothing is meant. BalsamError: every site failed; the error of one that was
        asked alone.
    """
    from ..sites import fanout, selector

    answers = fanout.query_all(selector.choose(site, _named_db()), question)
    if len(answers.failed) == 1 and not answers.found:
        raise answers.failed[0][1]
    if answers.failed:
        _warn_once(answers)
    if not answers.found:
        raise BalsamError(f"None of the {len(answers.failed)} sites could be read.")
    return answers.found


def ask_all_sites(site: str, question: Callable[[SiteInterface], _T]) -> list[tuple[SiteEntry, _T]]:
    """Ask as `ask_sites` does before something is changed: no site may fail.

    Raises:
        UnknownSite, AmbiguousSite, NoDatabase: nothing is meant. BalsamError: a site failed; if several were asked it is named.
    """
    from ..sites import fanout, selector

    answers = fanout.query_all(selector.choose(site, _named_db()), question)
    for entry, exc in answers.failed:
        if answers.found or len(answers.failed) > 1:
            exc.message = f"Nothing was changed: {fanout.failure(entry, exc)}"
            exc.hint = f"{exc.hint}\nName the sites that answer with --site to do it there alone.".strip()
        raise exc
    return answers.found


#: Sites that a summary names, and the characters of each reason.
_MAX_NAMED_SITES, _MAX_REASON = 10, 60


def _warn_once(answers: fanout.Answers) -> None:
    """Warn of the sites that failed: of several in one line, unless --verbose is given. A command may ask them again."""
    from ..sites import fanout

    context = click.get_current_context()
    if context.meta.setdefault(f"{__name__}.failed", answers.failed) is not answers.failed:
        return
    failed = answers.failed
    if len(failed) == 1 or context.params.get("verbose"):
        warn_of_sites(failed)
        return
    named = [f"{entry.name} ({_shortened(fanout.reason(exc))})" for entry, exc in failed[:_MAX_NAMED_SITES]]
    listed = output.one_line(", ".join(named)) + ", …" * (len(failed) > _MAX_NAMED_SITES)
    warn(f"{len(failed)} of {len(failed) + len(answers.found)} sites did not answer: {listed}. See `balsam site ls -v`.")


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_REASON else f"{text[: _MAX_REASON - 1]}…"


def warn_of_sites(failed: Iterable[tuple[SiteEntry, BalsamError]]) -> None:
    """Print a line on stderr for each site that could not be read."""
    from ..sites import fanout

    for entry, exc in failed:
        warn(output.one_line(fanout.failure(entry, exc)))


def one_site(site: str) -> SiteInterface:
    """Open the only site that `--site` means; "" is the active DB.

    Raises:
        UnknownSite, AmbiguousSite, NoDatabase: it does not mean exactly one. NotABalsamDB: its directory is gone.
    """
    from ..sites import fanout, selector

    return fanout.open_site(selector.choose_one(site, _named_db()))


def _named_db() -> str | None:
    """Return the value of the option --db of `balsam` itself."""
    named: str | None = click.get_current_context().find_root().obj
    return named


# --- words ------------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Print words for the user on stderr."""
    click.echo(text, err=True)


def warn(text: str) -> None:
    """Print a warning on stderr."""
    say(f"Warning: {text}")


def confirm(question: str, option: str) -> bool:
    """Ask until the answer is y or n; the end of the input counts as n.

    Raises:
        UsageError: stdin is no terminal; `option` would have answered.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError(f"This needs a confirmation, and there is no terminal to ask for it. Use {option}.")
    while True:
        click.echo(f"{question} [y/n]: ", nl=False)
        answer = sys.stdin.readline()
        if not answer:
            click.echo()
            return False
        if answer.strip().lower() in ("y", "n"):
            return answer.strip().lower() == "y"


def confirm_or_end(question: str, action: str, option: str = "--yes") -> None:
    """Ask as `confirm` does; after the answer "no" end the command with exit code 1."""
    if not confirm(question, option):
        click.echo(f"{action} aborted")
        click.get_current_context().exit(1)


# --- options ----------------------------------------------------------------------------------------------------------


def pairs(words: Iterable[str], option: str) -> dict[str, str]:
    """Return the mapping that K=V words make; the last value of a key wins.

    Raises:
        InvalidSpec: a word is no such pair.
    """
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InvalidSpec(f"{option} must look like NAME=VALUE, not {word!r}")
        found[key] = value
    return found


def row_number(word: str) -> int | None:
    """Return the number that a word is; None if it is a name."""
    return int(word) if word.isascii() and word.isdigit() and len(word) < 16 else None


class WholeNumber(click.types.IntParamType):
    """A whole number in a range, as the type of an option."""

    def __init__(self, least: int) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not self._least <= number <= _LARGEST:
            bound = f"{self._least} or more" if number < self._least else f"at most {_LARGEST}"
            self.fail(f"It must be {bound}, not {number}.", param, ctx)
        return number


COUNT, COUNT0 = WholeNumber(1), WholeNumber(0)


def number(ctx: click.Context, parameter: click.Parameter, value: float) -> float:
    """Check that a value is a finite number of 0 or more, as a callback."""
    if not 0 <= value < float("inf"):
        raise click.BadParameter(f"{value} is not a number of 0 or more.", ctx, parameter)
    return value


class Minutes(click.ParamType):  # type: ignore[type-arg]
    """Minutes, or a time such as 1h30m or 01:30:00, as the type of an option.

    `is_whole` rounds up to whole minutes, of which there must be at least one.
    """

    name = "minutes"

    def __init__(self, is_whole: bool = True) -> None:
        self._is_whole = is_whole

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        from ..core import clock

        try:
            found = clock.whole_minutes(value) if self._is_whole else clock.minutes(value)
        except ValueError as exc:
            self.fail(f"It {exc}.", param, ctx)
        return COUNT.convert(found, param, ctx) if self._is_whole else found
