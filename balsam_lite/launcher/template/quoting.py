"""How bash reads a command line that has holes in it, into which values are to go, each as one word. Pure.

`plan` walks once through the text around the holes. What fills a hole later is always quoted, so it cannot change how the
rest is read; that is why one walk is enough for all the jobs of an application.

Quotes do not help where bash reads a word a second time. No value can stand in such places, as far as they can be seen (see
`evaluation`). What `eval`, `sh -c` or a program make of their words cannot be seen, nor what becomes of a variable: after
N={{ n }} the value is safe in "$N", but not in $((N)), [[ $N -gt 5 ]] or >&$N.

Source: bash(1), "QUOTING", "EXPANSION", "REDIRECTION", "COMMENTS", "SHELL GRAMMAR"; tried with bash 5.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

from ...core.errors import TemplateError
from . import evaluation, plain

#: Stands for a value in a text; neither a program's words nor a shell's text can hold it.
HOLE = evaluation.HOLE

#: Where a hole is.
UNQUOTED, IN_DOUBLE, IN_SINGLE = "unquoted", "in double quotes", "in single quotes"
#: What stands around a value there. Double quotes are closed for it, so that nothing in it means anything.
_AROUND = {UNQUOTED: ("'", "'"), IN_DOUBLE: ("\"'", "'\""), IN_SINGLE: ("", "")}


class Plan(NamedTuple):
    """What is done with a line."""

    words: tuple[plain.Word, ...] | None  # to be started without a shell; None: it needs one
    holes: tuple[str, ...]  # for a shell: where each hole is


@lru_cache(maxsize=512)
def plan(fixed: tuple[str, ...], for_shell: bool = False) -> Plan:
    """How to fill the holes between these texts; `for_shell`: a shell shall read the line though it need not.

    Raises:
        TemplateError: no value can stand at one of them as a single word; or a quote or bracket is not closed.
    """
    text = HOLE.join(fixed)
    words = plain.words_of(text)
    if words is not None and not (for_shell and words):
        return Plan(words, ())
    try:
        return Plan(None, tuple(_Walk(text).holes()))
    except RecursionError:
        raise TemplateError("The command line is nested too deeply.") from None


def filled(fixed: Sequence[str], holes: Sequence[str], values: Sequence[str]) -> str:
    """The text for a shell."""
    parts = [fixed[0]]
    for where, value, text in zip(holes, values, fixed[1:]):
        before, behind = _AROUND[where]
        parts += (before, value.replace("'", "'\"'\"'") if "'" in value else value, behind, text)
    return "".join(parts)


def joined(words: Sequence[plain.Word], values: Sequence[str]) -> list[str]:
    """The words for a program."""
    return ["".join([piece if isinstance(piece, str) else values[piece] for piece in word]) for word in words]


_VARIABLE_FIRST = "Put it into a variable first: VALUE={{ name }}; … ${X:-$VALUE}. Compute an index or an offset in jinja."
_COMPUTED = "bash would evaluate it. Compute in jinja: {{ name|int + 1 }}"
_SEPARATORS = " \t\n;&|()<>"
#: What `$` takes as a whole with it.
_SPECIAL_PARAMETERS = "$#?!@*-0123456789"
_CASE = re.compile(r"case\s")
#: An element of an array, at the begin of an assignment or for the number of an opened file; in an array's brackets.
_ELEMENT, _OPENED, _KEY = re.compile(r"[A-Za-z_]\w*\["), re.compile(r"\{[A-Za-z_]\w*\["), re.compile(r"\[")
#: Its words are files and no arguments. `&>` and `>|` end no command.
_GAP = re.compile(r"(?:[ \t]|\\\n)*")
_REDIRECTION = re.compile(r"&>>?|>>|>\||[<>]&|<>|[<>]")


class _Walk:
    """One way through a text, as bash reads it."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._found: list[str] = []
        self._refusals: list[tuple[str, str]] = []  # why no value can stand here, and what to do about it
        self._documents: list[tuple[str, bool]] = []  # here-documents that begin in the next line: end mark, tabs dropped

    def holes(self) -> list[str]:
        """Where each hole is."""
        self._commands("")
        return self._found

    # --- reading ------------------------------------------------------------------------------------------------------

    def _peek(self, ahead: int = 0) -> str:
        return self._text[self._at + ahead : self._at + ahead + 1]

    def _open(self, length: int, what: str) -> str:
        """Step over what opens something, which must be closed later; returns what to say if it is not."""
        self._at += length
        return f"{what} is not closed: {self._excerpt()}"

    def _take(self, unclosed: str) -> str:
        """The next character."""
        char = self._peek()
        if not char:
            raise TemplateError(unclosed)
        self._at += 1
        return char

    def _excerpt(self) -> str:
        before, behind = self._text[max(0, self._at - 40) : self._at], self._text[self._at : self._at + 20]
        return f"{before}{behind}".replace(HOLE, "{{…}}").strip()

    @contextmanager
    def _refusing(self, why: str, instead: str) -> Iterator[None]:
        self._refusals.append((why, instead))
        yield
        self._refusals.pop()

    def _hole(self, where: str) -> None:
        self._at += 1
        if self._refusals:
            self._refuse(*self._refusals[-1])
        self._found.append(where)

    def _refuse(self, why: str, instead: str) -> None:
        raise TemplateError(f"A value cannot stand {why}: {self._excerpt()}", hint=instead)

    def _lose_track(self, where: str) -> None:
        """From here on nobody knows how bash reads the rest, so no value can be quoted for it."""
        self._refusals.insert(0, (f"behind {where}", "Put that part of the command into a script."))

    def _backslash(self) -> None:
        if self._peek(1) == HOLE:
            self._refuse("right behind a backslash", "Values are quoted already: take the backslash away.")
        self._at += 2

    # --- the parts of a command line ----------------------------------------------------------------------------------

    def _commands(self, closer: str, unclosed: str = "", is_array: bool = False) -> None:
        """Commands up to `closer`, which is ) or the end of the text; or the values in the brackets of an array."""
        begins_word, read = True, evaluation.Commands()
        while self._at < len(self._text):
            char, began = self._peek(), begins_word
            begins_word = char in _SEPARATORS
            if begins_word:
                self._judge(read.end_word(self._text, self._at))
            elif began and char != "#":
                read.begin_word(self._at)
            if char == "\\":
                begins_word = began and self._peek(1) == "\n"
                self._backslash()
            elif char == "#" and began:
                self._comment()
            elif char == ")":
                self._judge(read.end_command())
                self._at += 1
                if closer:
                    self._end_of_bracket(read)
                    return
            elif began and self._is_element(read.is_at_begin, is_array):
                self._element()
            else:
                if closer and began and _CASE.match(self._text, self._at):
                    self._lose_track("a case … esac in $(…) or (…)")
                self._piece(char, read)
        self._judge(read.end_word(self._text, self._at))
        self._judge(read.end_command())
        self._judge(read.end_condition(self._text))
        if closer:
            raise TemplateError(unclosed)

    def _end_of_bracket(self, read: evaluation.Commands) -> None:
        if self._documents:
            self._lose_track("a here-document in $(…)")
        self._judge(read.end_condition(self._text[: self._at]))

    def _piece(self, char: str, read: evaluation.Commands) -> None:
        if char == HOLE:
            self._hole(UNQUOTED)
        elif char in "'\"$`":
            self._quoted_or_expanded()
        elif char == "(":
            read.end_target()
            self._bracket()
        elif char not in "<>&" or not self._redirected(read):
            self._at += 1
            if char in ";&|\n":
                self._judge(read.end_command())
            if char == "\n":
                self._here_documents()

    def _judge(self, verdict: evaluation.Verdict | None) -> None:
        """Act on what `evaluation` says about what has been read."""
        if verdict is None:
            return
        if verdict.is_lasting:
            self._lose_track(verdict.where)
        else:
            self._refuse(verdict.where, verdict.instead)

    def _is_element(self, is_at_begin: bool, is_array: bool) -> bool:
        known = (_ELEMENT, is_at_begin), (_OPENED, True), (_KEY, is_array)
        return any(applies and element.match(self._text, self._at) for element, applies in known)

    def _element(self) -> None:
        """NAME[…], {NAME[…] or […]: what stands in the brackets is arithmetic."""
        self._at = self._text.index("[", self._at)
        unclosed = self._open(1, "A bracket [")
        with self._refusing("in the brackets of an array's element", _COMPUTED):
            self._to_the_bracket_of("[", "]", unclosed)

    def _to_the_bracket_of(self, opening: str, closing: str, unclosed: str) -> None:
        """Behind the bracket that closes the one just read, past all pairs in between."""
        depth = 1
        while depth:
            char = self._peek()
            if char == HOLE:
                self._hole(UNQUOTED)
            elif char == "\\":
                self._backslash()
            elif char and char in "'\"$`":
                self._quoted_or_expanded()
            else:
                depth += {opening: 1, closing: -1}.get(self._take(unclosed), 0)

    def _redirected(self, read: evaluation.Commands) -> bool:
        """Step over the sign of a redirection, if it is one."""
        if self._text.startswith("<<", self._at):
            read.begin_target()
            self._here_document_or_word(read)
            return True
        sign = _REDIRECTION.match(self._text, self._at)
        if sign is None:
            return False
        self._at = sign.end()
        read.begin_target()
        if sign[0].endswith("&"):
            with self._refusing(f"behind {sign[0]}", "bash would read it twice. Write: > {{ name }} 2>&1"):
                self._target()
            read.end_target()
        return True

    def _quoted_or_expanded(self) -> None:
        char = self._peek()
        if char == "'":
            self._single()
        elif char == '"':
            self._double()
        elif char == "$":
            self._dollar(in_double=False)
        else:
            self._backquoted()

    def _single(self) -> None:
        unclosed = self._open(1, "A single quote")
        while self._peek() != "'":
            if self._peek() == HOLE:
                self._hole(IN_SINGLE)
            else:
                self._take(unclosed)
        self._at += 1

    def _double(self) -> None:
        unclosed = self._open(1, "A double quote")
        while self._peek() != '"':
            char = self._peek()
            if char == HOLE:
                self._hole(IN_DOUBLE)
            elif char == "\\":
                self._backslash()
            elif char == "$":
                self._dollar(in_double=True)
            elif char == "`":
                self._backquoted()
            else:
                self._take(unclosed)
        self._at += 1

    def _dollar(self, in_double: bool) -> None:
        behind = self._peek(1)
        if behind == HOLE:
            self._at += 1
            self._refuse("right behind a $", "Write \\$ for a dollar sign.")
        elif behind == "(":
            self._at += 1
            self._bracket()
        elif behind == "{":
            self._parameter(in_double)
        elif behind == "[":
            self._old_arithmetic()
        elif behind == "'" and not in_double:
            self._ansi_quoted()
        else:  # $" is a double quote, and $NAME ends where the name ends
            self._at += 2 if behind and behind in _SPECIAL_PARAMETERS else 1

    def _bracket(self) -> None:
        """From the first bracket on: (…), $(…), ((…)) or $((…))."""
        if self._peek(1) == "(":
            self._arithmetic()
        else:
            is_array = self._text[self._at - 1 : self._at] == "="
            unclosed = self._open(1, "A bracket (")
            self._commands(")", unclosed, is_array)

    def _arithmetic(self) -> None:
        unclosed = self._open(2, "Arithmetic ((…))")
        with self._refusing("in arithmetic ((…))", _COMPUTED):
            self._to_the_bracket_of("(", ")", unclosed)
        if self._peek() == ")":
            self._at += 1
        else:  # it was a bracket inside of a bracket, and its inside was not read as that
            self._lose_track("two brackets (( that are no arithmetic; write ( (")
            self._commands(")", unclosed)

    def _old_arithmetic(self) -> None:
        unclosed = self._open(2, "Arithmetic $[…]")
        with self._refusing("in arithmetic $[…]", _COMPUTED):
            while self._peek() != "]":
                if self._peek() == HOLE:
                    self._hole(UNQUOTED)
                self._take(unclosed)
        self._at += 1
        self._lose_track("$[…]")

    def _parameter(self, in_double: bool) -> None:
        unclosed = self._open(2, "A ${")
        with self._refusing("in ${…}", _VARIABLE_FIRST):
            while self._peek() != "}":
                char = self._peek()
                if char == HOLE:
                    self._hole(UNQUOTED)
                elif char == "\\":
                    self._backslash()
                elif char == "'" and in_double:
                    self._lose_track('a single quote in "${…}"')  # it means one thing in ${x#'…'} and another in ${x:-'…'}
                    self._at += 1
                elif char == "$":
                    self._dollar(in_double)
                elif char and char in "'\"`":
                    self._quoted_or_expanded()
                else:
                    self._take(unclosed)
        self._at += 1

    def _ansi_quoted(self) -> None:
        unclosed = self._open(2, "A quote $'")
        with self._refusing("in $'…'", "Close the quotes before it."):
            self._up_to("'", unclosed, IN_SINGLE)

    def _backquoted(self) -> None:
        unclosed = self._open(1, "A backquote")
        with self._refusing("in backquotes", "Write $(…) instead of `…`."):
            self._up_to("`", unclosed, UNQUOTED)

    def _up_to(self, end: str, unclosed: str, place: str) -> None:
        """Behind the next `end` that no backslash stands before; holes on the way are in that place."""
        while self._peek() != end:
            if self._peek() == HOLE:
                self._hole(place)
            elif self._take(unclosed) == "\\":
                self._take(unclosed)
        self._at += 1

    def _comment(self) -> None:
        end = self._text.find("\n", self._at)
        end = len(self._text) if end < 0 else end
        if HOLE in self._text[self._at : end]:
            self._at = self._text.index(HOLE, self._at)
            self._refuse("in a comment", "A line break in it would end the comment: take it out.")
        self._at = end

    # --- here-documents -----------------------------------------------------------------------------------------------

    def _here_document_or_word(self, read: evaluation.Commands) -> None:
        """<<, <<- or <<<; for the first two, note the word that ends the document."""
        if self._peek(2) == "<":
            self._at += 3
            return
        self._at += 2
        drops_tabs = self._peek() == "-"
        self._at += drops_tabs
        with self._refusing("in the end mark of a here-document", "Choose a word for it."):
            word = self._target()
        read.end_target()
        mark = re.sub(r"\\(.)|['\"]", r"\1", word)
        self._documents.append((mark, drops_tabs))

    def _target(self) -> str:
        """The word behind a redirection's sign, which may have blanks before it."""
        gap = _GAP.match(self._text, self._at)
        self._at = gap.end() if gap else self._at
        begin = self._at
        while self._peek() and self._peek() not in _SEPARATORS:
            if self._peek() == HOLE:
                self._hole(UNQUOTED)
            elif self._peek() == "\\":
                self._backslash()
            elif self._peek() in "'\"$`":
                self._quoted_or_expanded()
            else:
                self._at += 1
        return self._text[begin : self._at]

    def _here_documents(self) -> None:
        for mark, drops_tabs in self._documents:
            while self._at < len(self._text):
                end = self._text.find("\n", self._at)
                end = len(self._text) if end < 0 else end
                line = self._text[self._at : end]
                if HOLE in line:
                    self._at = self._text.index(HOLE, self._at)
                    self._refuse("in a here-document", "Write: printf '%s\\n' {{ name }} | program")
                self._at = min(end + 1, len(self._text))
                if (line.lstrip("\t") if drops_tabs else line) == mark:
                    break
        self._documents.clear()
