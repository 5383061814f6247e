"""Lines in which nothing but quotes means anything to a shell: they become words, and no shell starts. Pure."""

from __future__ import annotations

import re
from typing import Union

from .evaluation import HOLE

#: Pieces of text, and numbers of holes.
Word = tuple[Union[str, int], ...]

#: bash's reserved words, and those of its builtin commands that no program does as well or that read a word twice.
_SHELL_WORDS = frozenset((
    "!", "[[", "{", "}", "(", ")", "if", "then", "elif", "else", "fi", "case", "esac", "for", "select", "while", "until",
    "do", "done", "in", "function", "time", "coproc", ".", ":", "alias", "bg", "bind", "break", "builtin", "caller",
    "cd", "command", "compgen", "complete", "compopt", "continue", "declare", "dirs", "disown", "enable", "eval", "exec",
    "exit", "export", "fc", "fg", "getopts", "hash", "help", "history", "jobs", "let", "local", "logout", "mapfile",
    "popd", "printf", "pushd", "read", "readarray", "readonly", "return", "set", "shift", "shopt", "source", "suspend", "test",
    "times", "trap", "type", "typeset", "ulimit", "umask", "unalias", "unset", "wait",
))  # fmt: skip
_PLAIN = re.compile(r"[^\s\0'\"\\$`|&;<>()*?\[\]{}~#]+")
_BLANKS = " \t"


def words_of(text: str) -> tuple[Word, ...] | None:
    """The words of a line in which nothing but quotes means anything to a shell; None if there is more."""
    words: list[Word] = []
    word: list[str | int] | None = None
    at, hole = 0, 0
    while at < len(text):
        char = text[at]
        if char in _BLANKS:
            if word is not None:
                words.append(tuple(word))
            word, at = None, at + 1
            continue
        word = [] if word is None else word
        plain = _PLAIN.match(text, at)
        if plain:
            word.append(plain[0])
            at = plain.end()
        elif char == HOLE:
            word.append(hole)
            hole, at = hole + 1, at + 1
        elif char in "'\"":
            end = _end_of_plain_quote(text, at)
            if end is None:
                return None
            pieces = re.split(HOLE, text[at + 1 : end - 1])
            word.append(pieces[0])
            for piece in pieces[1:]:
                word += [hole, piece]
                hole += 1
            at = end
        else:
            return None
    if word is not None:
        words.append(tuple(word))
    return tuple(words) if not words or _is_program(words[0]) else None


def _end_of_plain_quote(text: str, at: int) -> int | None:
    """Where the quotes are over that open there; None if they hold something that is more than text."""
    end = text.find(text[at], at + 1)
    inner = text[at + 1 : end]
    return None if end < 0 or (text[at] == '"' and set(inner) & set("$`\\")) else end + 1


def _is_program(word: Word) -> bool:
    literal = "".join([piece for piece in word if isinstance(piece, str)])
    has_hole = any(isinstance(piece, int) for piece in word)
    return "=" not in literal and (has_hole or literal not in _SHELL_WORDS)
