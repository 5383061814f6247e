"""Command lines as users type them: make paths to files in the current directory absolute, and find likely mistakes.

A line is split into words by the shell's quoting rules, and run without a shell in the job's directory. So a relative path
is meaningless there, and `|`, `>`, `$HOME` or `*.dat` reach the program literally.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .field_specs import split_command

#: Interpreters whose first argument is a script, and the options after which there is code or a module instead.
_INTERPRETERS = (
    (re.compile(r"(ba|da|z|k|mk|fi|c|tc)?sh"), re.compile(r"-[A-Za-z]*c[A-Za-z]*")),
    (re.compile(r"(i?python|pypy)[\d.]*"), re.compile(r"-[A-Za-z]*[cm]")),
    (re.compile(r"perl|ruby|Rscript|julia|node|lua|octave|php|gnuplot"), re.compile(r"-[A-Za-z]*[eEr]|--eval|--print|-p")),
)
#: Options of env(1) that take the next word, and the one after which the program is unknown. Source: coreutils 9.
_ENV_OPTIONS, _ENV_SPLIT = ("-u", "--unset", "-C", "--chdir"), re.compile(r"-\w*S.*|--split-string.*")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
#: The kernel looks for `#!` in this many bytes of a file. Source: execve(2) of Linux, BINPRM_BUF_SIZE.
_HEAD_BYTES = 256


#: The fields of an application that contain a command line.
FIELDS = ("executable", "preprocess", "postprocess", "handle_error", "handle_timeout")


class CommandLineWarning(UserWarning):
    """A command line will probably not do what was intended."""


class _Token(NamedTuple):
    start: int  # in the line
    end: int
    raw: str  # as typed
    text: str  # what the program receives


def _words(line: str) -> list[_Token]:
    """Return the words of a line that can be split."""
    stream = io.StringIO(f"{line} ")
    lexer = shlex.shlex(stream, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    found: list[_Token] = []
    for _ in split_command(line):
        before = found[-1].end if found else 0
        text = lexer.get_token() or ""
        end = stream.tell() - 1  # one blank was read after the word
        start = before + len(line[before:end]) - len(line[before:end].lstrip(lexer.whitespace))
        found.append(_Token(start, end, line[start:end], os.path.expanduser(text)))
    return found


class _Parts(NamedTuple):
    """The positions of a line's program, script and code; None where it has none."""

    program: int | None
    script: int | None = None  # the script that the interpreter runs
    code: int | None = None  # text that the program executes, as after `bash -c`
    reads_code: bool = False  # the line ends where such text must follow


def _parts(words: Sequence[_Token], directory: str) -> _Parts:
    program = _program(words)
    if program is None:
        return _Parts(None)
    name = os.path.basename(words[program].text)
    for interpreter, code in _INTERPRETERS:
        if interpreter.fullmatch(name):
            return _script(words, program, code, directory)
    return _Parts(program)


def _program(words: Sequence[_Token]) -> int | None:
    """Return the position of the program: the first word, or the one that env(1) starts."""
    if not words or os.path.basename(words[0].text) != "env":
        return 0 if words else None
    place = 1
    while place < len(words) and (words[place].text.startswith("-") or "=" in words[place].text):
        if _ENV_SPLIT.fullmatch(words[place].text):
            return 0
        place += 1 + (words[place].text in _ENV_OPTIONS)
    return place if place < len(words) else 0


def _script(words: Sequence[_Token], program: int, code: re.Pattern[str], directory: str) -> _Parts:
    after_option = is_code = False
    for place in range(program + 1, len(words)):
        text = words[place].text
        if is_code and not text.startswith("-"):
            return _Parts(program, code=place)
        if len(text) > 1 and text[0] in "-+":
            is_code = is_code or bool(code.fullmatch(text))
            after_option = text != "--"
        elif after_option and not os.path.exists(os.path.join(directory, text)):
            after_option = False  # the word belongs to the option
        else:
            return _Parts(program, script=place)
    return _Parts(program, reads_code=is_code)


# --- stored form ------------------------------------------------------------------------------------------------------


def as_program(line: str, python: str, directory: str) -> str:
    """Return the command line to store for one that was typed in `directory`.

    A Python script as the first word gets its interpreter and its absolute path. The first word, if it has a slash or is not
    on PATH, and the script after an interpreter become absolute where they are existing files. The rest stays as typed.

    Source: Balsam 0.3.8, `balsam app`: only where the first word ends in `.py`.

    >>> as_program("fit.py 'a b'", "python3", "/home/me")
    "python3 /home/me/fit.py 'a b'"
    """
    words = _words(line)
    if not words:
        return line
    first = words[0]
    if first.text.endswith(".py"):
        script = os.path.normpath(os.path.join(directory, first.text))
        return f"{line[: first.start]}{shlex.join([python, script])}{line[first.end :]}".lstrip()
    parts = _parts(words, directory)
    for place in (parts.script, parts.program):  # from the end: earlier words keep their positions
        if place is not None:
            word = words[place]
            is_found = place == parts.program and "/" not in word.text and shutil.which(word.text) is not None
            path = os.path.normpath(os.path.join(directory, word.text))
            if not is_found and not os.path.isabs(word.text) and os.path.isfile(path):
                line = f"{line[: word.start]}{shlex.quote(path)}{line[word.end :]}"
    return line


def current_directory() -> str:
    """Return the current directory, "/" if it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return "/"


def as_registered(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return an application's fields as stored, and issue a CommandLineWarning for each problem.

    Missing programs are not reported here: `dag.add_app(checkexe=True)` checks for them.
    """
    stored, directory = dict(fields), current_directory()
    for name in FIELDS:
        if isinstance(fields.get(name), str) and fields[name].strip():
            try:
                stored[name] = as_program(fields[name], sys.executable, directory)
            except ValueError:  # it cannot be split; storing it raises the error
                continue
            for text in problems(stored[name], directory, tells_missing=False):
                warnings.warn(f"{name}: {text}", CommandLineWarning, stacklevel=_level_of_user())
    first = str(fields.get("command_template") or "").split()[:1]  # the template is the user's text, and is not changed
    if first and as_program(shlex.quote(first[0]), "", directory) != shlex.quote(first[0]) and os.path.isfile(first[0]):
        text = f"command_template: {first[0]} is a file here, and jobs run in other directories; write its whole path"
        warnings.warn(text, CommandLineWarning, stacklevel=_level_of_user())
    return stored


def _level_of_user() -> int:
    """Return the `stacklevel` with which `warnings.warn`, in the calling function, names the line outside this package."""
    level, frame, package = 1, sys._getframe(1), __name__.partition(".")[0]
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(f"{package}."):
        level, frame = level + 1, frame.f_back
    return level


# --- warnings ---------------------------------------------------------------------------------------------------------


def problems(line: str, directory: str, tells_missing: bool = True) -> list[str]:
    """Return a sentence for each part of a stored command line that will probably not do what was intended.

    With `tells_missing` also report a missing program or script, which may well exist where the jobs run.
    """
    words = _words(line)
    parts = _parts(words, directory)
    found: list[str] = []
    for place, is_script in ((parts.program, False), (parts.script, True)):
        if place is not None:
            found += _of_file(words[place].text, directory, is_script, tells_missing)
    for place, word in enumerate(words):
        if place not in (parts.program, parts.script, parts.code) and word.text[:1] != "/":
            name = word.text if word.text[:1] != "-" else word.text.partition("=")[2]
            if name and os.path.isfile(os.path.join(directory, name)):
                found.append(f"{name} is a file here, and jobs run in other directories; if it is meant, write its whole path")
    odd = [word for place, word in enumerate(words) if place != parts.code and _is_for_shell(word, place)]
    if odd or _has_line_break(words, line):
        listed = " ".join(dict.fromkeys(word.raw for word in odd)) or "the line break"
        found.append(f"no shell reads this line, so {listed} has no special meaning. For a shell: bash -c {shlex.quote(line)}")
    return found


def problems_of_args(args: str, executable: str) -> list[str]:
    """Return the `problems` of the arguments of a job whose application has the command line `executable`."""
    if _parts(_words(executable), "/").reads_code:
        return []
    odd = [word.raw for word in _words(args) if _is_for_shell_in_args(word)]
    if not odd:
        return []
    listed = " ".join(dict.fromkeys(odd))
    return [f"no shell reads the arguments, so the program gets {listed} as typed. For a shell, use an application bash -c."]


def problems_of_script(path: str) -> list[str]:
    """Return the `problems` of the path of a script that a shell sources."""
    return list(_of_file(path, "/", is_script=True, tells_missing=True))


def _of_file(name: str, directory: str, is_script: bool, tells_missing: bool) -> Iterator[str]:
    """Yield the problems of the file of a program, or of an interpreter's script, with that name."""
    if "/" not in name and not is_script:
        path = shutil.which(name) or ""
        if not path and tells_missing:
            yield f"{name} is not found on PATH"
    elif not os.path.isabs(name):
        path = ""
        if os.path.isdir(os.path.join(directory, name)):
            yield f"{name} is a directory"
        elif tells_missing:
            yield f"{name} is looked up in each job's working directory, not here; an absolute path is safer"
    else:
        path = name
    if not path:
        return
    if os.path.isdir(path):
        yield f"{path} is a directory"
    elif not os.path.exists(path):
        if tells_missing:
            yield f"{path} does not exist"
    elif not os.access(path, os.R_OK if is_script else os.X_OK):
        way_out = "" if is_script else f": chmod +x {shlex.quote(path)}, or write its interpreter before it"
        yield f"{path} is not {'readable' if is_script else 'executable'}{way_out}"
    elif "/" in name:
        yield from _of_first_line(path, is_script)


def _of_first_line(path: str, is_script: bool) -> Iterator[str]:
    """Yield the problems of the file's first line."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            head = file.read(_HEAD_BYTES)
    except OSError:  # it may be executable but not readable
        return
    line = head.partition(b"\n")[0]
    if line.endswith(b"\r") and b"\0" not in head:
        yield f"{path} has Windows line ends, with which its interpreter is not found: sed -i 's/\\r$//' {shlex.quote(path)}"
    elif line.startswith(b"#!") and not is_script:
        words = os.fsdecode(line[2:]).split()
        name = words[0] if words else ""
        if os.path.basename(name) == "env" and len(words) > 1 and words[1][0] != "-" and shutil.which(words[1]) is None:
            yield f"the #! line of {path} names {words[1]}, which is not found on PATH"
        elif not os.path.isfile(name):
            yield f"the #! line of {path} names {name or 'nothing'}, which does not exist"
    elif not is_script and head and not line.startswith(b"#!") and head.isascii() and b"\0" not in head:
        yield f"{path} is a text file without a #! line, so it cannot be run; write its interpreter before it"


def _live(raw: str) -> tuple[str, str]:
    """Return what a shell would interpret in a word: (outside all quotes, outside single quotes and escapes)."""
    bare, expanded, quote, is_escaped = "", "", "", False
    for character in raw:
        shown = "\0"
        if is_escaped:
            is_escaped = False
        elif character == "\\" and quote != "'":
            is_escaped = True
        elif character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote = character
        elif quote != "'":
            shown = character
        bare += "\0" if quote else shown
        expanded += shown
    return bare, expanded


_EXPANSION = re.compile(r"\$[A-Za-z_{(]|`")
_OPERATOR = re.compile(r"[|<>;]|&&|&\Z")
_OPERATOR_ALONE = re.compile(r"\|\|?|&&?|;|\d*(>>?|<)\S*|&>>?\S*")
_HOME = re.compile(r"~\w*(/|\Z)")
_GLOB = re.compile(r"[*?]|\[.+\]")


def _is_for_shell(word: _Token, place: int) -> bool:
    bare, expanded = _live(word.raw)
    if _EXPANSION.search(expanded) or _OPERATOR.search(bare) or (place == 0 and _ASSIGNMENT.match(bare)):
        return True
    if _HOME.match(bare):
        return place > 0  # a program is stored with its whole path, or reported as missing
    return "://" not in bare and bare[:1] != "-" and bool(_GLOB.search(bare))


def _is_for_shell_in_args(word: _Token) -> bool:
    """Distinguish shell syntax from brackets, question marks and a `|` inside a word, which are mostly for the program."""
    bare, expanded = _live(word.raw)
    if _EXPANSION.search(expanded) or _OPERATOR_ALONE.fullmatch(bare) or _HOME.match(bare):
        return True
    return "*" in bare and "://" not in bare and bare[:1] != "-"


def _has_line_break(words: Sequence[_Token], line: str) -> bool:
    gaps = [line[one.end : other.start] for one, other in zip(words, words[1:])]
    return any("\n" in gap for gap in gaps)
