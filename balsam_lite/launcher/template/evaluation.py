"""Where bash reads a quoted word a second time: as arithmetic, as the name of a variable, or as a list of values. Pure.

There `a[$(program)]` runs the program, however it was quoted. `shell` hands over the words of commands as it comes to them.

Source: bash(1), "ARITHMETIC EVALUATION", "Arrays", "CONDITIONAL EXPRESSIONS", "SHELL BUILTIN COMMANDS", and "Shell Variables"
for those that are integers or are expanded; each was tried with bash 5.2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

#: Stands for a value in a text; neither a program's words nor a shell's text can hold it.
HOLE = "\0"


class Verdict(NamedTuple):
    """Why no value can stand in what was read, or, if `is_lasting`, behind it."""

    where: str
    instead: str = ""
    is_lasting: bool = False


#: Behind these words a command begins, as it does at the begin of a line. Options of `time` and `command` may come before it.
_BEFORE_COMMANDS = frozenset((
    "!", "{", "if", "then", "elif", "else", "while", "until", "do", "in", "time", "coproc", "command", "builtin",
))  # fmt: skip
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\[.*\])?\+?=", re.DOTALL)
_NUMBER_OF_FILE = re.compile(r"\d+|\{.*\}", re.DOTALL)
_EVALUATING_OPTION = re.compile(r"[-+]\w*[in]")
_QUOTES = re.compile(r"\\\n|\\(.)|['\"]", re.DOTALL)

#: Builtin commands whose arguments are names, or options that take one.
_TAKE_NAMES = frozenset((
    "compgen", "declare", "getopts", "let", "local", "mapfile", "read", "readarray", "typeset", "unset", "wait",
))  # fmt: skip
_EXPORTS = frozenset(("export", "readonly"))
_DECLARES = frozenset(("declare", "local", "typeset"))
#: Variables whose value bash computes or expands.
_EVALUATED = frozenset(("BASH_ENV", "ENV", "HISTCMD", "OPTIND", "PS4", "RANDOM", "SECONDS", "SRANDOM"))

_COMPARES = re.compile(r"(?:^|(?<=[\s()&|!<>]))-(?:eq|ne|lt|le|gt|ge|v|R)(?=[\s()&|<>]|$)")


class Commands:
    """The words of one command after the other."""

    def __init__(self) -> None:
        self._words: list[str] = []
        self._begin = -1  # of the current word, in the text
        self._is_target = False  # the next word is a redirection's file
        self._condition = -1  # where [[ stands

    @property
    def is_at_begin(self) -> bool:
        """Whether the current word may be an assignment, or the command's name."""
        return not self._is_target and not _commands_of(self._words)[-1]

    def begin_word(self, at: int) -> None:
        """A word begins there, unless it has begun behind a line break that does not count."""
        if self._begin < 0:
            self._begin = at

    def begin_target(self) -> None:
        """The sign of a redirection was read."""
        self._is_target = True

    def end_target(self) -> None:
        """The word behind it was read."""
        self._is_target = False

    def end_word(self, text: str, end: int) -> Verdict | None:
        """The current word ends there, if there is one."""
        begin, self._begin = self._begin, -1
        raw = text[begin:end].replace("\\\n", "") if begin >= 0 else ""
        if not raw or (text[end : end + 1] in ("<", ">") and _NUMBER_OF_FILE.fullmatch(raw)):
            return None
        if raw == "[[" and self._condition < 0:
            self._condition = begin
        if self._is_target:
            self._is_target = False
            return None
        if raw == "]]":
            return self.end_condition(text[:end])
        word = _QUOTES.sub(r"\1", raw)
        self._words.append(word)
        assigned = _ASSIGNMENT.match(word)
        if assigned and HOLE in word and assigned[1] in _EVALUATED:
            return Verdict(f"in {assigned[1]}, which bash evaluates", "Set it in environment_variables, or in a script.")
        return None

    def end_command(self) -> Verdict | None:
        """The current command is over."""
        words, self._words, self._is_target = self._words, [], False
        for name, *arguments in filter(None, _commands_of(words)):
            verdict = _verdict(name, arguments)
            if verdict:
                return verdict
        return None

    def end_condition(self, text: str) -> Verdict | None:
        """[[ … ]] is over, or the text is: no value may stand in it beside what compares numbers."""
        condition = text[self._condition :].replace("\\\n", "") if self._condition >= 0 else ""
        self._condition = -1
        if HOLE in condition and _COMPARES.search(condition):
            return Verdict("in [[ … ]] beside -gt and its like, or -v", "bash would evaluate it. Write: [ {{ name }} -gt 5 ]")
        return None


def _commands_of(words: Sequence[str]) -> list[Sequence[str]]:
    """The command from its name on, and those that may begin behind one of its words; nothing for one without a name yet."""
    begins = [0, *(at + 1 for at, word in enumerate(words) if word in _BEFORE_COMMANDS)]
    return [_from_name(words[begin:]) for begin in begins]


def _from_name(words: Sequence[str]) -> Sequence[str]:
    at = 0
    while at < len(words) and (words[at].startswith("-") or _ASSIGNMENT.match(words[at])):
        at += 1
    return words[at:]


def _verdict(name: str, arguments: Sequence[str]) -> Verdict | None:
    """What to say about a command."""
    is_judged = any(HOLE in word for word in arguments)
    if is_judged and name in _TAKE_NAMES:
        return Verdict(
            f"among the arguments of {name}, which evaluates them", "Write NAME={{ name }} or export NAME={{ name }}."
        )
    if is_judged and name in _EXPORTS and not all(_is_plain_export(word) for word in arguments):
        return Verdict(f"there among the arguments of {name}", f"Write, without options: {name} NAME={{{{ name }}}}")
    if is_judged and name in ("test", "[") and _tests_variable(arguments):
        return Verdict(f"where {name} may look for a variable of that name", "Write the test's operator before it; not -v.")
    if is_judged and name == "printf" and _prints_into_variable(arguments):
        return Verdict("where printf takes an option", "Write: printf %s {{ name }}")
    if name in _DECLARES and any(_EVALUATING_OPTION.match(word) for word in arguments):
        return Verdict(f"{name} with -i or -n", is_lasting=True)
    return None


def _is_plain_export(word: str) -> bool:
    assigned = _ASSIGNMENT.match(word)
    if assigned:
        return not assigned[2]
    return HOLE not in word and not word.startswith("-")


def _tests_variable(arguments: Sequence[str]) -> bool:
    """Its operator is -v, or may be the value before a value."""
    pairs = zip(arguments, arguments[1:])
    return "-v" in arguments or "-R" in arguments or any(HOLE in first and HOLE in second for first, second in pairs)


def _prints_into_variable(arguments: Sequence[str]) -> bool:
    """printf -v NAME: the name is a value, or the first argument may become that option."""
    first, *rest = arguments
    if first == "-v":
        return any(HOLE in word for word in rest[:1])
    return HOLE in first and first[0] in ("-", HOLE) and bool(rest)
