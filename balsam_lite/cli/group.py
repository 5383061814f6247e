"""The table of commands, each imported when it is called, and the options as Balsam 0.3 took them.

Balsam 0.3 parsed with argparse: its users type `--hist` for `--history` and several words after `--args`. These are rewritten
here into what click reads; the class of an option determines whether it takes several words.
"""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import click

from .. import __version__
from ..core.errors import did_you_mean
from . import completion


class Entry(NamedTuple):
    """Where a command is found: a module of this package and its attribute."""

    module: str
    attribute: str
    summary: str


#: The sections of `balsam --help`.
SECTIONS: dict[str, dict[str, Entry]] = {
    "Start here": {
        "init": Entry("init", "init", "create a Balsam DB in a directory"),
        "which": Entry("init", "which", "show the active DB, or find another one"),
        "completion": Entry("init", "completion", "print the script for completion in bash, zsh or fish"),
    },
    "Jobs": {
        "job": Entry("create", "job", "add a job: an application with its arguments or parameters"),
        "job create": Entry("create", "job", "add a job, at any site, and show it as Balsam 0.7 did"),
        "job ls": Entry("ls", "job_ls", "list jobs of one or more sites"),
        "job modify": Entry("modify", "job_modify", "change the state or a field of jobs of one or more sites"),
        "job rerun": Entry("modify", "rerun", "run jobs of one or more sites again that have ended"),
        "job kill": Entry("modify", "killjob", "stop jobs of one or more sites for good"),
        "job rm": Entry("remove", "job_rm", "remove jobs of one or more sites"),
        "mkchild": Entry("create", "mkchild", "add a child to a job, from inside its program or script"),
        "dep": Entry("modify", "dep", "let a job wait for another one; both exist"),
        "modify": Entry("modify", "modify", "change a field of jobs or of an application"),
        "rerun": Entry("modify", "rerun", "run jobs again that have ended"),
        "killjob": Entry("modify", "killjob", "stop jobs for good, without removing them"),
        "rm": Entry("remove", "rm", "remove jobs or applications of this DB"),
        "undo": Entry("undo", "undo", "take back your last rm, modify, rerun or killjob"),
        "make_dummies": Entry("apps", "make_dummies", "add many small jobs, to try things out"),
    },
    "Applications": {
        "app": Entry("apps", "app", "register a program as an application"),
        "app ls": Entry("ls", "app_ls", "list the applications of one or more sites"),
        "app rm": Entry("remove", "app_rm", "remove applications and their jobs"),
    },
    "Running": {
        "launcher": Entry("launcher", "launcher", "run jobs here, in this terminal or batch job"),
        "submit-launch": Entry("queue", "submit_launch", "submit a launcher to the batch queue"),
        "queue": Entry("queue", "queue", "submit, list or cancel batch jobs of any site"),
        "service": Entry("service", "service", "submit launchers for waiting jobs, by the queue policy"),
        "notify": Entry("notify", "notify", "try the notifications that launchers and the service send"),
    },
    "Looking": {
        "status": Entry("status", "status", "show how it goes: jobs, rate, time left, failures, launches"),
        "watch": Entry("watch", "watch", "show live how the jobs go, in the terminal"),
        "ls": Entry("ls", "ls", "list jobs, applications, workflows or batch jobs"),
        "results": Entry("results", "results", "show or write the results of jobs: parameters, data, run times, memory"),
        "sql": Entry("sql", "sql", "query jobs, runs, events and results by SQL, which only reads"),
        "show": Entry("show", "show", "show all of a job: reason, attempts, relatives, output"),
        "wait": Entry("wait", "wait", "wait until jobs have ended"),
        "explain": Entry("explain", "explain", "tell why jobs wait or failed, and what to do about it"),
        "tail": Entry("tail", "tail", "show the output of jobs, and follow it"),
        "log": Entry("logs", "log", "follow the logs of the DB"),
        "plot": Entry("plot", "plot", "draw what jobs did: throughput, states, nodes, durations, failures, …"),
        "report": Entry("report", "report", "write a report of the jobs as one HTML file"),
    },
    "Sites": {
        "site": Entry("site", "site", "create, list and change sites: named DBs, also on other hosts"),
    },
    "Campaigns": {
        "apply": Entry("apply", "apply", "add what a campaign file (YAML) has and the DB has not"),
        "export": Entry("exchange", "export", "write jobs with history and files to an archive"),
        "diff": Entry("diff", "diff", "compare two sets of jobs: parameters, states, run times, results"),
        "import": Entry("exchange", "import_jobs", "add the jobs of an archive to this DB"),
    },
    "Database": {
        "db": Entry("db", "db", "check, back up, shrink, salvage or describe the database"),
    },
}

#: Commands for programs and old scripts, which `balsam --help` does not show.
HIDDEN = {
    "serve-stdio": Entry("site", "serve_stdio", "answer the balsam of another host, whose --site runs this through ssh"),
    "answer": Entry("site", "serve_stdio", "the former name of serve-stdio"),
    "login": Entry("init", "login", "do nothing: there is no account"),
    "server": Entry("init", "server", "do nothing: there is no server"),
}

COMMANDS = {name: entry for commands in (*SECTIONS.values(), HIDDEN) for name, entry in commands.items()}


class Option(click.Option):
    """An option whose help text is one line, for which click need not import `inspect` to remove indentation."""

    def __init__(self, *names: Any, help: str | None = None, **attributes: Any) -> None:
        super().__init__(*names, **attributes)
        self.help = help


_Function = TypeVar("_Function", bound=Callable[..., Any])


def option(*names: str, **attributes: Any) -> Callable[[_Function], _Function]:
    """Declare an option, as `click.option` does, of the class `Option`."""
    attributes.setdefault("cls", Option)
    return click.option(*names, **attributes)


class Choice(click.Choice):  # type: ignore[type-arg]
    """One of several words. The error for another word names the nearest one."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        return f"{value!r} is not one of {', '.join(map(str, self.choices))}.{did_you_mean(value, map(str, self.choices))}"


class _Helpful(click.Command):
    """A command with -h and --help, whose errors about unknown options name the nearest one."""

    help_names: tuple[str, ...] = ("-h", "--help")
    _own_help: Option | None = None

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        if self._own_help is None:
            self._own_help = Option(
                self.help_names, is_flag=True, is_eager=True, expose_value=False, callback=_show_help,
                help="Show this message and exit.",
            )  # fmt: skip
        return self._own_help

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as exc:
            raise click.UsageError(no_such_option(exc.option_name, self.get_params(ctx)), exc.ctx) from None


def no_such_option(name: str, parameters: Iterable[click.Parameter]) -> str:
    """Return the error message for an unknown option, with the nearest of those that the help text shows."""
    if not name.startswith("--"):
        return f"No such option {name!r}."  # every letter resembles every other
    known = [name for one in parameters if not getattr(one, "hidden", False) for name in one.opts if name.startswith("-")]
    return f"No such option {name!r}.{did_you_mean(name, known)}"


def _show_help(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(ctx.get_help())
        ctx.exit()


class LazyGroup(_Helpful, click.Group):
    """`balsam` itself: knows the names of its commands, and imports one when it is called.

    Some names have two words, such as `job create`, besides the command `job`, which takes options only.
    """

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = " ".join(args[:2])
        if len(args) > 1 and name in COMMANDS:
            return name, self.get_command(ctx, name), args[2:]
        if not ctx.resilient_parsing and not args[0].startswith("-"):
            _refuse_unknown(ctx, args)
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in COMMANDS if name not in HIDDEN]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        entry = _entry(name)
        if entry is None:
            return None
        module = f"{__package__}.{entry.module}"
        __import__(module)
        command: click.Command = getattr(sys.modules[module], entry.attribute)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        return [found for found in super().shell_complete(ctx, incomplete) if " " not in found.value]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.list_commands(ctx)))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), entry.summary) for name, entry in commands.items()])


def _entry(name: str) -> Entry | None:
    return COMMANDS.get(name) or COMMANDS.get(name.replace("-", "_")) or COMMANDS.get(name.replace("_", "-"))


def _refuse_unknown(ctx: click.Context, args: Sequence[str]) -> None:
    """Raise UsageError for a word that is no command, or for the second one after `job` or `app`."""
    if _entry(args[0]) is None:
        _fail_unknown(ctx, args[0], (name for name in COMMANDS if name not in HIDDEN))
    below = [name for name in COMMANDS if name.startswith(f"{args[0]} ")]
    if below and len(args) > 1 and not args[1].startswith("-"):
        _fail_unknown(ctx, " ".join(args[:2]), below)


def _fail_unknown(ctx: click.Context, name: str, known: Iterable[str]) -> None:
    raise click.UsageError(f"There is no command {name!r}.{did_you_mean(name, known)}", ctx)


def _show_version(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"balsam {__version__}")
        ctx.exit()


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@option(
    "--db", metavar="PATH|NAME", shell_complete=completion.databases,
    help="Balsam DB to use: its path, or the name of a known one. [default: BALSAM_DB_PATH, else the DB you are in]",
)  # fmt: skip
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


class WordsOption(Option):
    """An option that takes all words up to the next option, as a command line. One word is kept as it was typed."""

    def gathered(self, words: Sequence[str]) -> list[str]:
        """Return the values that click reads instead of `words`."""
        return [words[0] if len(words) == 1 else " ".join(map(_quoted, words))]


class SentenceOption(WordsOption):
    """Several words make a sentence, not a command line: no quotes are put in."""

    def gathered(self, words: Sequence[str]) -> list[str]:
        return [" ".join(words)]


class SeparateOption(WordsOption):
    """Several words are several values of an option with `multiple=True`."""

    def gathered(self, words: Sequence[str]) -> list[str]:
        return list(words)


class FieldOption(Option):
    """An option whose value may begin with a dash, as `-name` does."""


class LaterOption(Option):
    """An option that Balsam 0.3 did not have, so that an abbreviation of both means an older one."""


class ConditionOption(Option):
    """A condition of one value, refused where it is repeated.

    Of other options the last one counts, as in Balsam 0.3; of a condition that would select other jobs than were named.
    """


def _quoted(word: str) -> str:
    """Return `word` so that splitting the line by the shell's quoting rules gives it back."""
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
        below = _below(ctx)
        if below:
            with formatter.section("Commands"):
                formatter.write_dl([(name, entry.summary) for name, entry in below.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        words = [(name.split()[1], entry.summary) for name, entry in _below(ctx).items()]
        items = [CompletionItem(word, help=summary) for word, summary in words if word.startswith(incomplete)]
        return items + super().shell_complete(ctx, incomplete)

    def invoke(self, ctx: click.Context) -> Any:
        if not gc.isenabled():  # `main` has begun a process for this command
            gc.freeze()  # the imported modules stay: the collector need not visit them
            gc.enable()
        from ..core import caller  # here, not above: `balsam --help` needs none

        caller.command = f"balsam {ctx.info_name}"
        return super().invoke(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:  # else a shell completes the last word
            if not self.takes_any_bytes:
                _refuse_broken_text(ctx, args)
            args = WordsRewriter(ctx, self.get_params(ctx)).rewritten(args)
        return super().parse_args(ctx, args)


def _below(ctx: click.Context) -> dict[str, Entry]:
    """Return the commands of two words of which the first is this command."""
    return {name: entry for name, entry in COMMANDS.items() if name.startswith(f"{ctx.info_name} ")}


class CommandGroup(_Helpful, click.Group):
    """A command made of commands, such as `balsam db`."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if not ctx.resilient_parsing and not args[0].startswith("-") and args[0] not in self.commands:
            known = [f"{ctx.info_name} {name}" for name, command in self.commands.items() if not command.hidden]
            _fail_unknown(ctx, f"{ctx.info_name} {args[0]}", known)
        return super().resolve_command(ctx, args)


class PathCommand(BalsamCommand):
    """A command whose arguments are paths."""

    takes_any_bytes = True


def _refuse_broken_text(ctx: click.Context, words: Sequence[str]) -> None:
    for word in words:
        if not word.isascii() and any("\udc80" <= character <= "\udcff" for character in word):
            raise click.UsageError(f"This argument is not valid UTF-8: {word!a}", ctx)


def _attached(name: str, value: str) -> list[str]:
    """Return an option with its value so that click takes a value that looks like an option, too."""
    return [f"{name}={value}"] if name.startswith("--") else [name, value]


class WordsRewriter:
    """Turn a command's words, as argparse took them, into those that click takes."""

    def __init__(self, ctx: click.Context, parameters: Sequence[click.Parameter]) -> None:
        self._ctx = ctx
        self._options: dict[str, click.Option] = {}
        self._conditions: set[click.Option] = set()  # that were given
        for parameter in parameters:
            if isinstance(parameter, click.Option):
                self._options.update(dict.fromkeys((*parameter.opts, *parameter.secondary_opts), parameter))

    def rewritten(self, words: Sequence[str]) -> list[str]:
        """Return the words as click reads them."""
        done: list[str] = []
        rest = list(words)
        while rest:
            if rest[0] == "--":
                return [*done, *rest]
            done += self.take(rest)
        return done

    def take(self, rest: list[str]) -> list[str]:
        """Remove the first word from `rest`, with its value if it is an option, and return them as click reads them."""
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        found = self._find(name)
        self._refuse_double(found or word[:2])
        if found is None:
            return [word]
        return [f"{found}={value}"] if equals else self._with_value(found, rest)

    def _refuse_double(self, name: str) -> None:
        option = self._options.get(name)
        if isinstance(option, ConditionOption):
            if option in self._conditions:
                raise click.UsageError(f"Option {option.opts[-1]} is given twice, and takes one value.", self._ctx)
            self._conditions.add(option)

    def _with_value(self, name: str, rest: list[str]) -> list[str]:
        """Return the option `name` with its value, which is removed from `rest`."""
        option = self._options[name]
        if option.is_flag or option.count:
            return [name]
        if isinstance(option, WordsOption):
            # The first word may be another program's option, such as --constraint=gpu after --sched-flags.
            words = [rest.pop(0)] if rest and not self._find(rest[0].partition("=")[0]) and rest[0] != "--" else []
            while rest and not self._looks_like_option(rest[0]):
                words.append(rest.pop(0))
            self._refuse_loose_words(name, words, rest)
            return [word for value in option.gathered(words) for word in _attached(name, value)]
        if not rest:
            return [name]
        if not isinstance(option, FieldOption) and self._find(rest[0].partition("=")[0]):
            said = f"Option {name!r} requires an argument, not {rest[0]!r}. {_as_value(name, rest[0])}"
            raise click.BadOptionUsage(name, said, self._ctx)
        return _attached(name, rest.pop(0))

    def _refuse_loose_words(self, name: str, words: Sequence[str], rest: Sequence[str]) -> None:
        """Raise unless what follows the option's words is an option of this command."""
        if not rest or not rest[0].startswith("-") or rest[0] == "--" or self._find(rest[0].partition("=")[0]):
            return
        own = next((place for place, word in enumerate(rest) if self._find(word.partition("=")[0])), len(rest))
        text = " ".join(map(_quoted, [*words, *rest[:own]]))
        said = f"{no_such_option(rest[0], self._options.values())} {_as_value(name, text)}"
        raise click.UsageError(said, self._ctx)

    @staticmethod
    def _looks_like_option(word: str) -> bool:
        if not word.startswith("-") or len(word) == 1 or " " in word:
            return False
        return not re.fullmatch(r"-\d+|-\d*\.\d+", word)

    def _find(self, word: str) -> str | None:
        """Return the whole name of the option that `word` abbreviates; None if there is none."""
        if not word.startswith("-") or len(word) < 2:
            return None
        if word in self._options:
            return word
        long = word if word.startswith("--") else f"-{word}"
        if len(long) < (3 if long is word else 5):
            return None
        names = [long] if long in self._options else [name for name in self._options if name.startswith(long)]
        names = [name for name in names if not isinstance(self._options[name], LaterOption)] or names
        if len({id(self._options[name]) for name in names}) > 1:
            if long is not word:
                return None
            listed = ", ".join(sorted(names))
            raise click.UsageError(f"Option {word} is ambiguous; it could be: {listed}", self._ctx)
        return names[0] if names else None
