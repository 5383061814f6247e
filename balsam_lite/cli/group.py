"""The table of commands, each imported when it is called for, and the old spellings of options.

Balsam 0.3 parsed with argparse, so that its users type `--hist` for `--history` and several words behind `--args`. Those
are rewritten here into what click reads; a command only says which of its options take several words.
"""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import click


class Entry(NamedTuple):
    """Where a command lives: a module of this package and its attribute."""

    module: str
    attribute: str
    summary: str


COMMANDS = {
    "init": Entry("init", "init", "create a Balsam DB in a directory"),
    "app": Entry("apps", "app", "register a program as an application"),
    "app ls": Entry("site_apps", "ls", "list the applications of one or more sites"),
    "app rm": Entry("site_apps", "rm", "remove applications and their jobs"),
    "job": Entry("jobs", "job", "add a job to this DB: a program with its arguments"),
    "job create": Entry("job_create", "create", "add a job to any site: an application with its parameters"),
    "job ls": Entry("site_jobs", "ls", "list jobs of one or more sites"),
    "job modify": Entry("site_jobs", "modify", "put jobs of one or more sites into another state"),
    "job rm": Entry("site_jobs", "rm", "remove jobs of one or more sites"),
    "mkchild": Entry("jobs", "mkchild", "add a child to a job, from inside its program or script"),
    "dep": Entry("jobs", "dep", "let a job wait for another one; both exist"),
    "ls": Entry("ls", "ls", "list jobs, applications, workflows, or launches in the queue"),
    "modify": Entry("modify", "modify", "change a field of a job or an application"),
    "rerun": Entry("rerun", "rerun", "put jobs that have ended back, to run once more"),
    "rm": Entry("modify", "rm", "remove jobs or applications of this DB"),
    "killjob": Entry("modify", "killjob", "stop jobs for good, but do not remove them"),
    "launcher": Entry("launcher", "launcher", "run jobs here, in this terminal or batch job"),
    "submit-launch": Entry("launcher", "submit_launch", "submit a launcher to the batch queue"),
    "queue": Entry("queue", "queue", "submit launchers to the batch queue of any site, list or cancel them"),
    "service": Entry("service", "service", "submit launchers for the jobs that wait, as the queue policy allows"),
    "make_dummies": Entry("jobs", "make_dummies", "add many small jobs, to try things out"),
    "which": Entry("init", "which", "show the active DB, or find another one"),
    "db": Entry("db", "db", "check, back up, shrink, salvage or describe the database"),
    "log": Entry("logs", "log", "follow the logs of the DB"),
    "site": Entry("site", "site", "make, list and change sites: Balsam DBs with a name, here or behind ssh"),
    "plot": Entry("plot", "plot", "draw throughput, utilization, states or a timeline of jobs"),
    "answer": Entry("answer", "answer", "(answer the balsam of another host; its `--site` runs this through ssh)"),
    "login": Entry("init", "login", "(nothing to do: there is no account)"),
    "server": Entry("init", "server", "(nothing to do: there is no server)"),
}


class Option(click.Option):
    """An option whose help text is one line. click would import `inspect` to take the indentation off it."""

    def __init__(self, *names: Any, help: str | None = None, **attributes: Any) -> None:
        super().__init__(*names, **attributes)
        self.help = help


_Function = TypeVar("_Function", bound=Callable[..., Any])


def option(*names: str, **attributes: Any) -> Callable[[_Function], _Function]:
    """As `click.option`, but an `Option`."""
    attributes.setdefault("cls", Option)
    return click.option(*names, **attributes)


class _Helpful(click.Command):
    """A command with -h and --help."""

    help_names: tuple[str, ...] = ("-h", "--help")
    _own_help: Option | None = None

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        if self._own_help is None:
            self._own_help = Option(
                self.help_names, is_flag=True, is_eager=True, expose_value=False, callback=_show_help,
                help="Show this message and exit.",
            )  # fmt: skip
        return self._own_help


def _show_help(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(ctx.get_help())
        ctx.exit()


class LazyGroup(_Helpful, click.Group):
    """`balsam` itself: knows the names of its commands, and imports one when it is wanted.

    Some names have two words, such as `job create`, beside a command `job` of old that is not followed by a word.
    """

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = " ".join(args[:2])
        if len(args) > 1 and name in COMMANDS:
            return name, self.get_command(ctx, name), args[2:]
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        entry = COMMANDS.get(name) or COMMANDS.get(name.replace("-", "_")) or COMMANDS.get(name.replace("_", "-"))
        if entry is None:
            return None
        module = f"{__package__}.{entry.module}"
        __import__(module)
        command: click.Command = getattr(sys.modules[module], entry.attribute)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        return [found for found in super().shell_complete(ctx, incomplete) if " " not in found.value]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


def _show_version(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        from .main import print_version

        print_version()
        ctx.exit()


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@option("--db", metavar="PATH", help="The Balsam DB to use; by default that of BALSAM_DB_PATH, else the one you are in.")
@option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version.")
@click.pass_context
def balsam(ctx: click.Context, db: str | None) -> None:
    """Run very many jobs from one SQLite file, on a laptop or a supercomputer.

    \b
    A first job:
        balsam init ~/my-db
        source balsamactivate my-db
        balsam app --name say-hello --executable "echo Hello,"
        balsam job --name test1 --workflow test --application say-hello \\
            --args "world!" --yes
        balsam submit-launch -n 1 -t 5 --job-mode=serial
        balsam ls --history

    Each command explains itself: balsam COMMAND --help
    """
    ctx.obj = db


# --- options as Balsam 0.3 took them ----------------------------------------------------------------------------------

#: What several words behind one option become: the values that click gets to see.
_SEPARATE, _SENTENCE, _COMMAND_LINE = "separate", "sentence", "command line"


class WordsOption(Option):
    """An option that takes all words up to the next option. One word is kept as it was typed."""

    manner = _COMMAND_LINE

    def gathered(self, words: Sequence[str]) -> list[str]:
        """The values that click reads instead of `words`."""
        if self.manner == _SEPARATE:
            return list(words)
        if len(words) == 1:
            return [words[0]]
        return [" ".join(words if self.manner == _SENTENCE else map(_quoted, words))]


class SentenceOption(WordsOption):
    """Several words make a sentence, not a command line: no quotes are put in."""

    manner = _SENTENCE


class SeparateOption(WordsOption):
    """Several words are several values of an option with `multiple=True`."""

    manner = _SEPARATE


class FieldOption(Option):
    """The value may begin with a dash, as `-name` does, and is not an option then."""


class ConditionOption(Option):
    """A condition of one value, refused where it is repeated.

    Of other options the last one counts, as in Balsam 0.3; of a condition that would select other jobs than were named.
    """


def _quoted(word: str) -> str:
    """`word` so that splitting the line by the shell's quoting rules gives it back. Nothing else of the shell matters."""
    if word and not re.search(r"[\s'\"\\]", word):
        return word
    return "'" + word.replace("'", "'\"'\"'") + "'"


def _as_value(name: str, text: str) -> str:
    """Return how to write a text that looks like options as the value of the option `name`."""
    shown = f'"{text}"' if not re.search(r'["$`\\!]', text) else "'" + text.replace("'", "'\\''") + "'"
    return f"If it is the value of {name}, write {name}={shown}"


class BalsamCommand(_Helpful):
    """A command that understands abbreviated options, one dash before a long one, and options of several words."""

    #: Paths need not be UTF-8; everything else ends in the database.
    takes_any_bytes = False

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        beside = _beside(ctx)
        if beside:
            with formatter.section("Commands"):
                formatter.write_dl([(name, entry.summary) for name, entry in beside.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        words = [(name.split()[1], entry.summary) for name, entry in _beside(ctx).items()]
        items = [CompletionItem(word, help=summary) for word, summary in words if word.startswith(incomplete)]
        return items + super().shell_complete(ctx, incomplete)

    def invoke(self, ctx: click.Context) -> Any:
        gc.freeze()  # what was imported stays; looking through all of it would be the first thing that is done
        gc.enable()
        return super().invoke(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not self.takes_any_bytes:
            _refuse_broken_text(ctx, args)
        words = _Rewriter(ctx, self.get_params(ctx)).rewritten(args)
        _refuse_doubles(ctx, self.make_parser(ctx).parse_args(list(words))[2])
        return super().parse_args(ctx, words)


def _beside(ctx: click.Context) -> dict[str, Entry]:
    """The commands of two words of which the first is this command."""
    return {name: entry for name, entry in COMMANDS.items() if name.startswith(f"{ctx.info_name} ")}


class CommandGroup(_Helpful, click.Group):
    """A command made of commands, such as `balsam db`."""


class PathCommand(BalsamCommand):
    """A command whose arguments are paths."""

    takes_any_bytes = True


def _refuse_broken_text(ctx: click.Context, words: Sequence[str]) -> None:
    for word in words:
        if not word.isascii() and any("\udc80" <= character <= "\udcff" for character in word):
            raise click.UsageError(f"This argument is not valid UTF-8: {word!a}", ctx)


def _refuse_doubles(ctx: click.Context, given: Sequence[click.Parameter]) -> None:
    conditions = [option for option in given if isinstance(option, ConditionOption)]
    for option in conditions:
        if conditions.count(option) > 1:
            raise click.UsageError(f"Option {option.opts[-1]} is given twice, and takes one value.", ctx)


class _Rewriter:
    """Turns a command's words, as argparse took them, into those that click takes."""

    def __init__(self, ctx: click.Context, parameters: Sequence[click.Parameter]) -> None:
        self._ctx = ctx
        self._options: dict[str, click.Option] = {}
        for parameter in parameters:
            if isinstance(parameter, click.Option):
                self._options.update(dict.fromkeys((*parameter.opts, *parameter.secondary_opts), parameter))

    def rewritten(self, words: Sequence[str]) -> list[str]:
        done: list[str] = []
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if word == "--":
                return [*done, word, *rest]
            name, equals, value = word.partition("=")
            found = self._find(name)
            if found is None:
                done.append(word)
            elif equals:
                done.append(f"{found}={value}")
            else:
                done += self._with_value(found, rest)
        return done

    def _with_value(self, name: str, rest: list[str]) -> list[str]:
        """The option `name` and what belongs to it, which is taken from `rest`."""
        option = self._options[name]
        if option.is_flag or option.count:
            return [name]
        if isinstance(option, WordsOption):
            # The first word may be another program's option, such as --constraint=gpu behind --sched-flags.
            words = [rest.pop(0)] if rest and not self._find(rest[0].partition("=")[0]) and rest[0] != "--" else []
            while rest and not self._looks_like_option(rest[0]):
                words.append(rest.pop(0))
            self._refuse_loose_words(name, words, rest)
            return [f"{name}={value}" for value in option.gathered(words)]
        if not rest:
            return [name]
        if not isinstance(option, FieldOption) and self._find(rest[0].partition("=")[0]):
            said = f"Option {name!r} requires an argument, not {rest[0]!r}. {_as_value(name, rest[0])}"
            raise click.BadOptionUsage(name, said, self._ctx)
        value = rest.pop(0)
        return [f"{name}={value}"] if name.startswith("--") else [name, value]

    def _refuse_loose_words(self, name: str, words: Sequence[str], rest: Sequence[str]) -> None:
        """Raise unless what follows the option's words is an option of this command."""
        if not rest or not rest[0].startswith("-") or rest[0] == "--" or self._find(rest[0].partition("=")[0]):
            return
        own = next((place for place, word in enumerate(rest) if self._find(word.partition("=")[0])), len(rest))
        text = " ".join(map(_quoted, [*words, *rest[:own]]))
        raise click.NoSuchOption(rest[0], f"No such option {rest[0]!r}. {_as_value(name, text)}", ctx=self._ctx)

    @staticmethod
    def _looks_like_option(word: str) -> bool:
        if not word.startswith("-") or len(word) == 1 or " " in word:
            return False
        return not re.fullmatch(r"-\d+|-\d*\.\d+", word)

    def _find(self, word: str) -> str | None:
        """The whole name of the option that `word` stands for; None if it stands for none."""
        if not word.startswith("-") or len(word) < 2:
            return None
        if word in self._options:
            return word
        long = word if word.startswith("--") else f"-{word}"
        if len(long) < (3 if long is word else 5):
            return None
        names = [long] if long in self._options else [name for name in self._options if name.startswith(long)]
        if len({id(self._options[name]) for name in names}) > 1:
            if long is not word:
                return None
            listed = ", ".join(sorted(names))
            raise click.UsageError(f"Option {word} is ambiguous; it could be: {listed}", self._ctx)
        return names[0] if names else None
