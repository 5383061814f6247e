"""Render command templates: jinja2 text in which each value becomes a word of the command line, or a part of one. Pure.

jinja2 puts each value between two marks that neither a value nor a template can contain. A scan of the text around the
values finds, as bash reads it, the position of each: bare, inside "…" or inside '…'. Values are always quoted, so they cannot
change how the rest is read, and one scan is enough for all jobs of an application. A position that is not one of the three is
refused with one message: in comments, here-documents, arithmetic, ${…}, backquotes and arrays; after text in which quotes
cannot be matched up with certainty; and among arguments that bash evaluates again, where `a[$(program)]` would run the program
however it is quoted. Variables are followed no further than from NAME={{ value }} to an evaluation that mentions NAME in the
same text.

Source: bash(1), "QUOTING", "EXPANSION", "ARITHMETIC EVALUATION", "REDIRECTION", "COMMENTS", "Arrays", "CONDITIONAL
EXPRESSIONS", "SHELL BUILTIN COMMANDS", and "Shell Variables" for those that are integers or are expanded; tried with bash 5.2.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from ..core.errors import TemplateError

if TYPE_CHECKING:
    import jinja2  # imported when the first template is read

#: Marks a value in a text; neither a program's words nor a shell's text can contain it.
PLACEHOLDER = "\0"

#: The quotes around a value in each position. Double quotes are closed first, so that nothing in the value has a meaning.
_BARE, _IN_DOUBLE, _IN_SINGLE = ("'", "'"), ("\"'", "'\""), ("", "")

_HINT = (
    "A value can be a word or a part of one, also inside \"…\" and '…'. Compute in jinja, as in {{ n|int + 1 }}, or put this "
    "part of the command into a script and give it the value as an argument."
)

_HALF_OPEN = re.compile(r"(?<![{$])\{\s*[A-Za-z_]\w*\s*\}\}")
_INSIDE_A_VALUE = (
    "A value holds a NUL character, or the template prints what it has captured with a macro, a call or a set block."
)


class Command(NamedTuple):
    """The command of a job: one of the two is set."""

    argv: list[str]  # of a program that needs no shell
    text: str  # for `bash -c`


class _Compiled(NamedTuple):
    template: jinja2.Template
    variables: frozenset[str]
    #: The texts between the names, if there is nothing else, and the names in order: filled without jinja2, ten times as fast.
    fixed: tuple[str, ...] | None
    names: tuple[str, ...]


def render(text: str, values: Mapping[str, Any], for_shell: bool = False) -> Command:
    """Return the command of a job with these values. Values that the template does not use are ignored.

    Values other than text are converted by `str`. Blanks and line breaks around the line are removed.

    Args:
        for_shell: always return a text for a shell, which may have functions with the names of programs.

    Raises:
        TemplateError: a value is missing or cannot be quoted in its position; the template fails for these values.
    """
    compiled = _compiled(text)
    if not compiled.variables <= values.keys():
        missing = compiled.variables - values.keys()
        raise TemplateError(f"Missing required args: {_listed(missing)} (only got: {_listed(values)})")
    if compiled.fixed is not None:
        return _command(compiled.fixed, [_text(values[name]) for name in compiled.names], for_shell)
    try:
        line = compiled.template.render(values)
    except TemplateError:
        raise
    except Exception as exc:  # the expressions of a template may raise anything
        raise _broken(text, exc) from exc
    return _command(*_taken_apart(line), for_shell)


def check(text: str) -> list[str]:
    """Return the sorted names of the values that a template needs.

    Raises:
        TemplateError: it cannot be parsed, gives no command, or has a value in a position that cannot be quoted.
    """
    compiled = _compiled(text)
    try:
        line = _environment(strict=False).from_string(text).render()
    except TemplateError:
        raise
    except Exception:  # noqa: BLE001  # the template computes with values, which are not known yet
        return sorted(compiled.variables)
    _command(*_taken_apart(line))
    return sorted(compiled.variables)


def _listed(names: Iterable[str]) -> str:
    """Format names as Python prints a set, sorted.

    >>> _listed(["b", "a"])
    "{'a', 'b'}"
    """
    return f"{{{', '.join(map(repr, sorted(names)))}}}"


# --- jinja2 -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _compiled(text: str) -> _Compiled:
    import jinja2.meta

    if PLACEHOLDER in text:
        raise TemplateError("A command template must not hold a NUL character.")
    half_open = _HALF_OPEN.search(text)
    if half_open:  # for jinja2 it is text, and the value would not be filled in
        line = text.count("\n", 0, half_open.start()) + 1
        raise TemplateError(f"The command template lacks a brace {{ (line {line}): {half_open[0]}")
    environment = _environment(strict=True)
    try:
        tree = environment.parse(text)
        variables = jinja2.meta.find_undeclared_variables(tree) - environment.globals.keys()
        fixed, names = _plain_parts(tree, variables)
        return _Compiled(environment.from_string(text), frozenset(variables), fixed, names)
    except (jinja2.TemplateError, RecursionError) as exc:
        raise _broken(text, exc) from exc


def _plain_parts(tree: jinja2.nodes.Template, variables: set[str]) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Return the texts and the names of a template that consists of nothing else, otherwise (None, ())."""
    from jinja2 import nodes

    fixed, names = [""], []
    for statement in tree.body:
        for node in statement.nodes if isinstance(statement, nodes.Output) else (statement,):
            if isinstance(node, nodes.TemplateData):
                fixed[-1] += node.data
            elif isinstance(node, nodes.Name) and node.name in variables:
                names.append(node.name)
                fixed.append("")
            else:
                return None, ()
    return _stripped(fixed), tuple(names)


@lru_cache(maxsize=2)
def _environment(strict: bool) -> jinja2.Environment:
    import jinja2

    undefined = jinja2.StrictUndefined if strict else jinja2.ChainableUndefined
    return jinja2.Environment(
        undefined=undefined, finalize=lambda value: f"{PLACEHOLDER}{_text(value)}{PLACEHOLDER}", autoescape=False
    )


def _text(value: Any) -> str:
    text = str(value)
    if PLACEHOLDER in text:
        raise TemplateError(_INSIDE_A_VALUE)
    return text


def _taken_apart(line: str) -> tuple[tuple[str, ...], list[str]]:
    """Split a rendered line into the texts between the values, and the values."""
    parts = line.split(PLACEHOLDER)
    return _stripped(parts[::2]), parts[1::2]


def _stripped(fixed: list[str]) -> tuple[str, ...]:
    """Strip the blanks around the line, but not those of a value at either end."""
    fixed[0], fixed[-1] = fixed[0].lstrip(), fixed[-1].rstrip()
    return tuple(fixed)


def _broken(text: str, exc: Exception) -> TemplateError:
    line = getattr(exc, "lineno", None)
    where = f" (line {line})" if line else ""
    return TemplateError(f"The command template cannot be used: {exc}{where}\n    {text.strip()}")


# --- a line without shell syntax --------------------------------------------------------------------------------------

#: A line in which nothing but quotes has a meaning to a shell.
_PLAIN_LINE = re.compile(r"""(?:[^\s'"\\$`|&;<>()*?\[\]{}~#]|[ \t]|'[^']*'|"[^"$`\\]*")*""")
#: A command begins after these words, as at the beginning of a line. Options of `time` and `command` may precede it.
_BEFORE_COMMANDS = frozenset((
    "!", "{", "if", "then", "elif", "else", "while", "until", "do", "in", "time", "coproc", "command", "builtin",
))  # fmt: skip
#: Builtin commands whose arguments are code or names of variables, or that have options which take one.
_EVALUATING = frozenset((
    "alias", "bind", "compgen", "complete", "declare", "enable", "eval", "fc", "getopts", "let", "local", "mapfile", "read",
    "readarray", "trap", "typeset", "unset", "wait",
))  # fmt: skip
#: bash's other reserved words, and those of its builtin commands that no program does as well.
_SHELL_WORDS = _BEFORE_COMMANDS | _EVALUATING | frozenset((
    "[[", "}", "(", ")", "fi", "case", "esac", "for", "select", "done", "function", ".", ":", "bg", "break", "caller", "cd",
    "compopt", "continue", "dirs", "disown", "exec", "exit", "export", "fg", "hash", "help", "history", "jobs", "logout",
    "popd", "printf", "pushd", "readonly", "return", "set", "shift", "shopt", "source", "suspend", "test", "times", "type",
    "ulimit", "umask", "unalias",
))  # fmt: skip


def _command(fixed: tuple[str, ...], values: Sequence[str], for_shell: bool = False) -> Command:
    """Return the command with values between these texts; with `for_shell`, for a shell even if the line needs none.

    Raises:
        TemplateError: a value cannot be quoted in its position; a quote or bracket is not closed; there is no command.
    """
    words, around = _plan(fixed, for_shell)
    if words is not None:
        rest = iter(values)
        return Command([first + "".join([next(rest) + text for text in texts]) for first, *texts in words], "")
    parts = [fixed[0]]
    for (before, after), value, text in zip(around, values, fixed[1:]):
        parts += (before, value.replace("'", "'\"'\"'") if "'" in value else value, after, text)
    return Command([], "".join(parts))


@lru_cache(maxsize=512)
def _plan(fixed: tuple[str, ...], for_shell: bool) -> tuple[list[list[str]] | None, list[tuple[str, str]]]:
    """Return how to fill in values: for a program, of each word the texts around its values; else the quotes of each value."""
    text = PLACEHOLDER.join(fixed)
    if _PLAIN_LINE.fullmatch(text):
        words = shlex.split(text)
        if not words:
            raise TemplateError("The command template gives an empty command line.")
        if not for_shell and "=" not in words[0] and words[0] not in _SHELL_WORDS:
            if where := _evaluated_by_shell(words):
                _refuse(where, text, text.index(PLACEHOLDER))
            return [word.split(PLACEHOLDER) for word in words], []
    try:
        return None, _Scanner(text).scan()
    except RecursionError:
        raise TemplateError("The command line is nested too deeply.") from None


def _refuse(where: str, text: str, at: int) -> NoReturn:
    excerpt = text[max(0, at - 40) : at + 20].replace(PLACEHOLDER, "{{…}}").strip()
    raise TemplateError(f"A value cannot be used {where}: {excerpt}", hint=_HINT)


# --- a line for a shell -----------------------------------------------------------------------------------------------

_GAP = re.compile(r"(?:[ \t]|\\\n)*")
_LITERAL = re.compile(r"""[^ \t\n\0'"\\$`;&|()<>]+""")
_LITERAL_IN_DOUBLE = re.compile(r"""[^"\\$`\0]+""")
_COMMENT = re.compile(r"[^\n]*")
_REDIRECTION = re.compile(r"(?:\d+|\{\w+\})?(?:&>>?|>>|>\||[<>]&|<>|<<<|<<-?|[<>](?!\())")
#: The end mark of a here-document: quoted, or not.
_MARK = re.compile(r"""[ \t]*(?:'([^'\n\0]+)'|"([^"\n\0$`\\]+)"|([\w.+-]+))(?=[ \t\n;&|()<>]|$)""")
#: An element of an array in an assignment, or for the number of an opened file.
_ELEMENT, _OPENED = re.compile(r"[A-Za-z_]\w*\["), re.compile(r"\{[A-Za-z_]\w*\[")
#: Expansions without a value and without anything that makes their end uncertain; all others end the scan.
_ARITHMETIC = re.compile(r"""\$?\(\((?:[^()'"`\\\0]|\([^()'"`\\\0]*\))*\)\)""")
_PARAMETER = re.compile(r"""\$\{(?:[^{}('"`\\\0]|\\[^\0]|\$\{[^{}('"`\\\0]*\})*\}""")
_BACKQUOTED = re.compile(r"""`[^`'"\\\0]*`""")
_ANSI_QUOTED = re.compile(r"\$'(?:[^'\\\0]|\\[^\0])*'")
_NAME_OR_SPECIAL = re.compile(r"\$(?:[A-Za-z_]\w*|[0-9#?!@*$-])?", re.ASCII)

_NAME = re.compile(r"[A-Za-z_]\w*")
#: An expansion as `_expanded` writes it into words.
_EXPANSION = re.compile(r"\$\{(.*?)\}")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\[.*\])?\+?=", re.DOTALL)


class _Scanner:
    """One pass through a text, as bash reads it."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._quotes: list[tuple[str, str]] = []
        self._depth = self._judged = 0  # of brackets; values in commands that have been judged
        self._condition: list[str] | None = None  # the words of [[ … ]] up to here
        self._documents: list[tuple[str, bool]] = []  # here-documents that begin in the next line: end mark, tabs dropped
        self._assigned: set[str] = set()  # variables that hold a value
        self._evaluated: list[str] = []  # what bash evaluates

    def scan(self) -> list[tuple[str, str]]:
        """Return the quotes of each value."""
        with suppress(_EndOfCertainty):
            self._commands()
        self._end_condition()
        for name in self._assigned.intersection(_NAME.findall(" ".join(self._evaluated))):
            self._refuse(f"in the variable {name}, which bash evaluates elsewhere")
        return self._quotes

    def _peek(self, ahead: int = 0) -> str:
        return self._text[self._at + ahead : self._at + ahead + 1]

    def _skip(self, pattern: re.Pattern[str]) -> str:
        """Skip and return the text that matches here; "" if none does."""
        found = pattern.match(self._text, self._at)
        if found is None:
            return ""
        self._at = found.end()
        return found[0]

    def _place(self, quotes: tuple[str, str]) -> str:
        self._quotes.append(quotes)
        self._at += 1
        return PLACEHOLDER

    def _refuse(self, where: str) -> NoReturn:
        _refuse(where, self._text, self._at)

    def _give_up(self, construct: str) -> NoReturn:
        """End the scan at a construct; refuse all values in it, after it, and in the commands around it."""
        values = len(self._quotes) - self._judged + self._text.count(PLACEHOLDER, self._at)
        if values or any(PLACEHOLDER in word for word in self._condition or ()):
            self._refuse(f"in, after or next to {construct}")
        raise _EndOfCertainty

    def _unclosed(self, what: str) -> NoReturn:
        excerpt = self._text[-60:].replace(PLACEHOLDER, "{{…}}").strip()
        raise TemplateError(f"A {what} is not closed: {excerpt}")

    # --- commands -----------------------------------------------------------------------------------------------------

    def _commands(self, is_nested: bool = False) -> None:
        """Read commands up to the end of the text or, if nested, up to the bracket ) that closes them."""
        words: list[str] = []  # of the current command, without quotes
        self._depth += 1
        while self._skip(_GAP) or self._peek():
            char = self._peek()
            if (sign := self._skip(_REDIRECTION)) or char == "#":
                self._redirection(sign) if sign else self._comment()
            elif char == "(":
                self._bracket()
            elif char and char in ";&|\n)":
                self._end_command(words)
                self._at += 1
                if char == ")" and is_nested:
                    self._depth -= 1
                    return
                if char == "\n":
                    self._here_documents()
            elif char:
                self._command_word(words, is_nested)
        if is_nested:
            self._unclosed("bracket (")
        self._end_command(words)

    def _command_word(self, words: list[str], is_nested: bool) -> None:
        is_first = not _commands_of(words)[-1]
        if _OPENED.match(self._text, self._at) or (is_first and _ELEMENT.match(self._text, self._at)):
            self._give_up("an array")
        word = self._word()
        if word == "case" and is_nested:
            self._give_up("a case … esac in brackets")  # its patterns close more brackets than they open
        words.append(word)
        if self._condition is not None:
            self._condition.append(word)
            if word == "]]":
                self._end_condition()
        elif word == "[[":
            self._condition = []

    def _end_command(self, words: list[str]) -> None:
        for assigned in filter(None, map(_ASSIGNMENT.match, words)):
            if PLACEHOLDER in assigned.string:
                self._assigned.add(assigned[1])
                if assigned[1] in _EVALUATED_VARIABLES:
                    self._refuse(f"in {assigned[1]}, which bash evaluates")
        for name, *arguments in filter(None, _commands_of(words)):
            self._judge(_EXPANSION.sub("", name), arguments)
        if where := _evaluated_by_shell(words):
            self._refuse(where)
        words.clear()
        if self._depth == 1:
            self._judged = len(self._quotes)

    def _judge(self, name: str, arguments: Sequence[str]) -> None:
        """Refuse values that a command evaluates, and record the variables that it would evaluate."""
        if name in ("for", "select") and any(PLACEHOLDER in word for word in arguments):
            self._assigned.update(arguments[:1])
        if name in _RUNNING:
            self._evaluated += [names for word in arguments for names in _EXPANSION.findall(word)]
        elif name in _EVALUATING:
            self._evaluated += arguments
        if name in _DECLARING and any(_EVALUATING_OPTION.match(word) for word in arguments):
            self._give_up(f"{name} with -i or -n")
        if _reads_commands(name, arguments) and PLACEHOLDER in self._text:
            self._refuse(f"next to {name} without a script, which runs what it reads")
        if where := _evaluated_by(name, arguments):
            self._refuse(where)

    def _end_condition(self) -> None:
        """End [[ … ]], or the text: refuse values in it if it contains a comparison of numbers."""
        condition, self._condition = self._condition or [], None
        if not _COMPARES.isdisjoint(condition):
            self._evaluated += condition
            if any(PLACEHOLDER in word for word in condition):
                self._refuse("in [[ … ]] next to -gt and its like, or -v; write [ {{ n }} -gt 5 ]")

    def _bracket(self) -> None:
        """Read (…), the brackets of a function or a pattern, or ((…))."""
        if self._peek(1) == "(":
            self._evaluated.append(self._skip(_ARITHMETIC) or self._give_up("arithmetic ((…)) or brackets (("))
        else:
            self._at += 1
            self._commands(is_nested=True)

    def _comment(self) -> None:
        if PLACEHOLDER in self._skip(_COMMENT):
            self._refuse("in a comment")

    def _redirection(self, sign: str) -> None:
        if "<<" in sign and "<<<" not in sign:
            mark = _MARK.match(self._text, self._at) or self._give_up("a here-document")
            self._at = mark.end()
            self._documents.append((mark[1] or mark[2] or mark[3], sign.endswith("-")))
            return
        self._skip(_GAP)
        target = self._word()
        if sign.endswith("&"):
            self._evaluated.append(target)
            if PLACEHOLDER in target:
                self._refuse(f"after {sign}, where bash would evaluate it")

    def _here_documents(self) -> None:
        for mark, drops_tabs in self._documents:
            line = ""
            while self._at < len(self._text) and (line.lstrip("\t") if drops_tabs else line) != mark:
                line = self._skip(_COMMENT)
                if PLACEHOLDER in line:
                    self._refuse("in a here-document")
                if line.endswith("\\"):  # which may join it to the next one
                    self._give_up("a here-document")
                self._at += 1
        self._documents.clear()

    # --- words --------------------------------------------------------------------------------------------------------

    def _word(self) -> str:
        """Read a word, which may be empty; return it without its quotes."""
        word = ""
        while True:
            word += self._skip(_LITERAL)
            char = self._peek()
            if char == PLACEHOLDER:
                word += self._place(_BARE)
            elif char == "\\":
                word += self._escaped().replace("\n", "")
            elif char == "'":
                word += self._single()
            elif char == '"':
                word += self._double()
            elif char and char in "$`":
                word += self._expansion(in_double=False)
            elif char and char in "<>" and self._peek(1) == "(":
                word += self._substitution()
            elif char == "(" and word.endswith("="):
                self._give_up("an array")
            else:
                return word

    def _escaped(self) -> str:
        char = self._peek(1)
        if char == PLACEHOLDER:
            self._refuse("right after a backslash")
        self._at += 2
        return char

    def _single(self) -> str:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            self._unclosed("single quote")
        inner, self._at = self._text[self._at + 1 : end], end + 1
        self._quotes += [_IN_SINGLE] * inner.count(PLACEHOLDER)
        return inner.replace("$", "")  # it is no expansion

    def _double(self) -> str:
        self._at += 1
        inner = ""
        while True:
            inner += self._skip(_LITERAL_IN_DOUBLE)
            char = self._peek()
            if char == '"':
                self._at += 1
                return inner
            if not char:
                self._unclosed("double quote")
            elif char == PLACEHOLDER:
                inner += self._place(_IN_DOUBLE)
            elif char == "\\":
                inner += self._escaped()
            else:
                inner += self._expansion(in_double=True)

    def _expansion(self, in_double: bool) -> str:
        """Read an expansion that begins with $ or a backquote; return it in the form of `_expanded`."""
        following = self._peek(1)
        if self._peek() == "`":
            return _expanded(self._skip(_BACKQUOTED) or self._give_up("backquotes; write $(…)"))
        if following == PLACEHOLDER:
            self._refuse("right after a $")
        if self._text.startswith("$((", self._at):
            self._evaluated.append(self._skip(_ARITHMETIC) or self._give_up("arithmetic $((…))"))
        elif following == "(":
            return self._substitution()
        elif following == "{":
            parameter = self._skip(_PARAMETER) or self._give_up("${…}")
            if "[" in parameter or ":" in parameter:
                self._evaluated.append(parameter)
            return _expanded(parameter)
        elif following == "[":
            self._give_up("arithmetic $[…]")
        elif following == "'" and not in_double:
            return self._skip(_ANSI_QUOTED)[1:] or self._give_up("$'…'")
        else:
            name = self._skip(_NAME_OR_SPECIAL)
            return _expanded(name) if len(name) > 1 else name  # $" is a double quote
        return _expanded("")

    def _substitution(self) -> str:
        """Read $(…), <(…) or >(…)."""
        self._at += 2
        before = len(self._documents)
        self._commands(is_nested=True)
        if len(self._documents) > before:
            self._give_up("a here-document in $(…)")
        return _expanded("")


def _expanded(text: str) -> str:
    """Return the placeholder of an expansion in a word: the names in it.

    >>> _expanded("${X:-$Y}")
    '${X Y}'
    """
    return f"${{{' '.join(_NAME.findall(text))}}}"


class _EndOfCertainty(Exception):
    """The rest of the text cannot be parsed with certainty, and contains no values."""


# --- what bash evaluates ----------------------------------------------------------------------------------------------

_RUNNING = frozenset(("alias", "eval", "trap"))
_DECLARING = frozenset(("declare", "local", "typeset"))
_EVALUATING_OPTION = re.compile(r"[-+]\w*[in]")
#: Variables whose value bash computes or expands.
_EVALUATED_VARIABLES = frozenset(("BASH_ENV", "ENV", "HISTCMD", "OPTIND", "PS4", "RANDOM", "SECONDS", "SRANDOM"))
_COMPARES = frozenset(("-eq", "-ne", "-lt", "-le", "-gt", "-ge", "-v", "-R"))
_SHELLS = frozenset(("sh", "bash", "dash", "ash", "ksh", "mksh", "zsh", "fish", "csh", "tcsh"))
_TAKES_WORD = re.compile(r"[-+][A-Za-z]*[oO]|--(?:rcfile|init-file)")
_PRINTS_INTO_NAME = re.compile(r"%[^A-Za-z%]*n")


def _commands_of(words: Sequence[str]) -> list[Sequence[str]]:
    """Return the command from its name on, and commands that may begin after one of its words; [] if it has no name yet."""
    begins = [0, *(at + 1 for at, word in enumerate(words) if word in _BEFORE_COMMANDS)]
    return [words[_name_at(words, begin) :] for begin in begins]


def _name_at(words: Sequence[str], at: int) -> int:
    while at < len(words) and (words[at].startswith("-") or _ASSIGNMENT.match(words[at])):
        at += 1
    return at


def _evaluated_by(name: str, arguments: Sequence[str]) -> str:
    """Return where a value among the arguments of a command is evaluated; "" if nowhere."""
    if not any(PLACEHOLDER in word for word in arguments):
        return ""
    is_evaluated = (
        name in _EVALUATING
        or "'" in name  # of $'…', which is not decoded here
        or (name in ("for", "select", "function") and PLACEHOLDER in arguments[0])
        or (name in ("export", "readonly") and not all(map(_is_plain_export, arguments)))
        or (name in ("test", "[") and _tests_variable(arguments))
        or (name == "printf" and _prints_into_variable(arguments))
    )
    return f"among these arguments of {name}, which evaluates them" if is_evaluated else ""


def _is_plain_export(word: str) -> bool:
    assigned = _ASSIGNMENT.match(word)
    if assigned:
        return not assigned[2]
    return PLACEHOLDER not in word and not word.startswith("-")


def _tests_variable(arguments: Sequence[str]) -> bool:
    """Return whether the operator is -v, or a value before another one that may be -v."""
    pairs = zip(arguments, arguments[1:])
    return (
        "-v" in arguments or "-R" in arguments or any(PLACEHOLDER in one and {"$", PLACEHOLDER} & {*two} for one, two in pairs)
    )


def _prints_into_variable(arguments: Sequence[str]) -> bool:
    """Return whether a value names a variable (printf -v NAME, or %n), or may be the option -v."""
    first, *rest = arguments
    if first == "-v":
        return any(PLACEHOLDER in word for word in rest[:1])
    return bool(rest) and (bool(_PRINTS_INTO_NAME.search(first)) or (PLACEHOLDER in first and first[0] in ("-", PLACEHOLDER)))


def _reads_commands(name: str, arguments: Sequence[str]) -> bool:
    """Return whether this is a shell that takes its commands from its input."""
    is_script = all(word[:1] in ("-", "+") for word in arguments) or not {"-s", "/dev/stdin"}.isdisjoint(arguments)
    return os.path.basename(name) in _SHELLS and is_script


def _evaluated_by_shell(words: Sequence[str]) -> str:
    """Return where a shell would run a value, as in bash -c '… {{ name }}'; "" if nowhere."""
    for at, word in enumerate(words):
        if os.path.basename(word) in _SHELLS and any(PLACEHOLDER in later for later in words[at + 1 :]):
            takes_code, rest = False, iter(words[at + 1 :])
            for option in rest:
                is_option = option[:1] in ("-", "+") and option != "--"
                if PLACEHOLDER in option and (is_option or takes_code):
                    return f"in what {word} -c runs; write {word} -c '… \"$1\"' {word} {{{{ name }}}}"
                if option[:1] == PLACEHOLDER and any(PLACEHOLDER in later for later in rest):
                    return f"where {word} may take it for the option -c; write {word} -- {{{{ name }}}}"
                if not is_option:
                    break
                takes_code |= "c" in option and not option.startswith("--")
                if _TAKES_WORD.fullmatch(option):
                    next(rest, None)
    return ""
