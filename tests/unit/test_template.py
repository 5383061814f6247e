"""Command templates: each value is one word, whatever it holds and wherever it is; checked with real bash."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from balsam_lite.core.errors import TemplateError
from balsam_lite.launcher import template

HELLO = "echo Hello, {{ say_hello_to }}! CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES"
ARGV = "import json, sys; print(json.dumps(sys.argv[1:]))"

NASTY = [
    "", " ", "'", '"', "`id`", "$(id)", "$HOME", "${HOME}", "a b", "a\nb", "a\n", ";id", "| id", "&", "> f", "#", "*", "~",
    "\\", "\\\\", "a\\", "-n", "--", "!", "!!", "é ☃", "'\"'\"'", "\t", "\r", "A=b", "if", "1", "a,b", "1..3", "$'x'", "))",
    "}", "EOF", "%s", "x[$(id)]", "{{ a }}", "\x7f", "\x01",
]  # fmt: skip


def text_of(command):
    assert not command.argv
    return command.text


# --- what is said -----------------------------------------------------------------------------------------------------


def test_the_workshops_template_gives_the_workshops_line():
    command = template.render(HELLO, {"say_hello_to": "world 1!", "other": 1})
    assert text_of(command) == "echo Hello, 'world 1!'! CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES"
    assert template.check(HELLO) == ["say_hello_to"]


@pytest.mark.parametrize(
    ("text", "argv"),
    [
        ("  prog --name {{ a }} -n {{ n }}\n", ["prog", "--name", "x; y", "-n", "3"]),
        ("prog a{{ a }}b '{{ a }} {{ n }}' \"{{ a }}\"", ["prog", "ax; yb", "x; y 3", "x; y"]),
        ("prog '' 'a  b' \"c;d\" 5%, a@b! x=y", ["prog", "", "a  b", "c;d", "5%,", "a@b!", "x=y"]),
        ("{{ a }} '$HOME'", ["x; y", "$HOME"]),
        ("p {% for f in files %} -f {{ f }}{% endfor %}", ["p", "-f", "1 2", "-f", "3"]),
        ("p {% if n %}-v{% endif %} {{ n * 2 }} {{ a | upper }} {{ none }}", ["p", "-v", "6", "X; Y", "None"]),
        ("p {# a note #} {{ 'c d' }}", ["p", "c d"]),
    ],
)
def test_a_line_without_shell_syntax_needs_no_shell(text, argv):
    command = template.render(text, {"a": "x; y", "n": 3, "files": ["1 2", "3"], "none": None})
    assert command == template.Command(argv, "")


@pytest.mark.parametrize(
    "line",
    [
        "cd x && p", "export A=1", "A=1 p", "source f", ". f", "if x; then y; fi", "for i in 1; do p; done", "! p", "time p",
        "p $A", 'p "$A"', "p `x`", "p > f", "p | q", "p; q", "p & q", "(p)", "p *.c", "p ?", "p [a]", "p {a,b}", "p ~/x",
        "p # x", "p\nq", "p \\$x", "p 2>&1", "{{ a }}=1", "p 'it", 'p "a\\"b"', "[[ -e f ]]", "exec p", "p $'x'",
    ],
)  # fmt: skip
def test_whatever_a_shell_would_read_is_left_to_a_shell(line):
    try:
        assert text_of(template.render(line, {"a": "v"})) == line.replace("{{ a }}", "'v'")
    except TemplateError as exc:
        assert line == "p 'it" and "not closed" in str(exc)


def test_inner_line_breaks_stay_and_outer_blanks_go():
    assert text_of(template.render("\n  p \\\n  -a {{ a }}\nq\n\n", {"a": " v "})) == "p \\\n  -a ' v '\nq"
    assert template.render(" {{ a }} ", {"a": " v "}).argv == [" v "]


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("p {{ a", "(line 1)"),
        ("p\nq {{ a }", "(line 2)"),
        ("p { a }}", "lacks a brace"),
        ("p {{ a | nofilter }}", "nofilter"),
        ("p {% if a %}", "endif"),
        ("", "empty command line"),
        ("  \n", "empty command line"),
        ("p \0", "NUL"),
        ("p 'a {{ a }}", "single quote is not closed"),
        ('p "a {{ a }}', "double quote is not closed"),
        ("p $(x {{ a }}", "not closed"),
        ("p `x {{ a }}`", "write $(…)"),
        ('p "`x {{ a }}`"', "write $(…)"),
        ("p ${X:-{{ a }}}", "next to ${…}"),
        ('p "${X:-{{ a }}}"', "next to ${…}"),
        ("p $(( {{ a }} + 1 ))", "Compute in jinja, as in {{ n|int + 1 }}"),
        ("(( {{ a }} > 1 )) && p", "arithmetic"),
        ("p $[ {{ a }} ]", "arithmetic"),
        ("cat <<EOF\n{{ a }}\nEOF", "here-document"),
        ("cat <<-'EOF' | p $(q\n)\n\t{{ a }}\n\tEOF", "here-document"),
        ("cat <<{{ a }}\nx\n", "here-document"),
        ("p # {{ a }}", "comment"),
        ("p\\\n # '\nq # {{ a }}", "comment"),
        ("p \\{{ a }}", "backslash"),
        ('p "\\{{ a }}"', "backslash"),
        ("p ${{ a }}", "right after a $"),
        ('p "${{ a }}"', "right after a $"),
        ("p $'{{ a }}'", "next to $'…'"),
        ("p $(case x in x) q {{ a }};; esac)", "case"),
        ("p \"${x#'}'}\" {{ a }}", "next to ${…}"),
        ("((p) ; (q)) {{ a }}", "brackets (("),
        ("{% macro m(x) %}{{ x }}{% endmacro %}p {{ m(a) }}", "macro"),
        ("p " + "$(" * 10_000, "deeply"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused_with_the_reason_and_the_way_out(text, words):
    with pytest.raises(TemplateError) as caught:
        template.check(text)
    assert words in str(caught.value)


#: Where bash evaluates a quoted word, and with nearly all of these would run the program in one of the values of `EVIL`.
READ_TWICE = [
    "echo >&{{ a }}", "echo >& {{ a }}", "echo 2>&1{{ a }}", "echo >&2'x{{ a }}'", "echo >& \\\n \"{{ a }}\"",
    "[[ {{ a }} -gt 5 ]]", "[[ ( x == x ) && 1 -eq {{ a }} ]] && p", "[[ -v {{ a }} ]]", "[[ 1 -l\\\nt {{ a }} ]]",
    "(( {{ a }} > 1 ))", "x[{{ a }}]=3", "A=1 x[1 + {{ a }}]=3; p", "if :; then x[{{ a }}]+=3; fi", "x=([{{ a }}]=3)",
    "exec {x[{{ a }}]}>f", "test -v {{ a }}", "[ x = y -o -v {{ a }} ]", "[ ! -v {{ a }} ]", "[ {{ b }} {{ a }} ]",
    "[ ! {{ b }} {{ a }} ]", "printf -v {{ a }} x", "printf -v{{ a }} x", "printf {{ c }} x", 'printf "{{ c }}" x; p',
    "x=(1); unset {{ a }}", "unset >f {{ a }}", "unset &>f {{ a }}", "2>f \\unset {{ a }}", "un'set' {{ a }}",
    "unset in {{ a }}",
    "A=1 command -- unset {{ a }}", "time -p ! builtin unset {{ a }}", "f() { unset {{ a }}; }; f",
    "for i do unset {{ a }}; done",
    "case x in y) ;; (x) unset {{ a }};; esac", "declare {{ a }}=3", "x=(1); declare x={{ d }}", "f() { local {{ a }}=3; }; f",
    "typeset '{{ a }}=3'", "export -a x={{ d }}", "readonly -a x={{ d }}", "export {{ a }}=3", "declare -i n; n={{ a }}",
    "typeset -xn n; n={{ a }}", "read {{ a }} <<<x", "while read -r {{ a }}; do :; done <f", "let {{ a }}", "let 'n={{ a }}+1'",
    "RANDOM={{ a }} p", "export OPTIND={{ a }}", "PS4={{ a }}; set -x; p", "mapfile -C {{ a }} -c 1 x <f",
    "p & wait -n -p {{ a }}",
    "p $(x=([{{ a }}]=1))", "compgen -W {{ a }}", "${NONE}unset {{ a }}", "$'un\\x73et' {{ a }}",
    # as code of another shell, of eval or of a trap
    "bash -c {{ a }}", "bash -c 'p {{ a }}'", "cd / && sh -ec 'p {{ a }}'", "env sh -o errexit -c \"p {{ a }}\"; p",
    "bash -{{ a }} x",
    "bash {{ a }} {{ a }}", "eval {{ a }}", "eval 'p {{ a }}'", "trap {{ a }} EXIT", "alias x={{ a }}", "echo {{ a }} | sh",
    "bash <<<{{ a }}", "bash -s <{{ a }}",
    # as the name of a variable or function
    "for {{ a }} in x; do :; done", "function {{ a }} { :; }", "printf '%n' {{ a }}",
    # in an array, and after what leaves the quotes uncertain
    "x=(1 {{ a }})", "x[0]={{ a }}", "p ${x#\"'\"} {{ a }}", "p `echo \"'\"` {{ a }}", "p $[1] {{ a }}",
    "cat <<E\nx\\\nE\np {{ a }}\nE",
    # in a variable that is evaluated
    "N={{ n }}; p $((N + 1))", "export N={{ n }}; [[ $N -gt 5 ]]", "for n in {{ n }}; do p ${X:n}; done", "N={{ n }}; let x=N",
    "N={{ n }}; declare -i N", "N={{ n }}; eval \"p $N\"", "N={{ n }}; p >&$N", "(( N > 1 )); N={{ n }}",
]  # fmt: skip
EVIL = {"a": "a[$(touch evil)]", "b": "-v", "c": "-va[$(touch evil)]", "d": "($(touch evil))"}


@pytest.mark.parametrize("text", READ_TWICE)
def test_no_value_can_stand_where_bash_would_read_it_twice(text):
    with pytest.raises(TemplateError, match="A value cannot be used"):
        template.check(text)


#: Close to those, but harmless; with a program behind some of it.
READ_ONCE = [
    "[[ {{ a }} == b || -f {{ a }} || {{ a }} =~ x ]]; p -v {{ a }} -gt", "[ {{ a }} -gt 5 ]", "[ -n {{ a }} ] && p",
    "if [ {{ a }} = {{ d }} -o ! {{ a }} ]; then :; fi", "[ -f {{ a }}/{{ d }} ]", "test {{ a }}; p", "printf {{ c }}; p",
    "export A={{ a }} B=\"{{ d }}\"; p $A", "readonly x={{ d }}",
    "A={{ a }} B=x p; x={{ d }}; p $x $((B + 1)) ${B:1} {{ a }}", "bash run.sh -c {{ a }}", "bash -c 'p \"$1\"' bash {{ a }}",
    "sh -e -o nounset run.sh {{ a }}; bash -- {{ a }} {{ d }}",
    "printf '%s %d' {{ a }} {{ c }} >f", "printf -v x %s {{ a }}", "read x <{{ a }}", "IFS={{ a }} read -r x <<<{{ a }}",
    "p <{{ a }} >{{ d }} 2>&1 &>>{{ a }} 2>|{{ a }} <>{{ a }}", "p >&2 {{ a }}", "p a[{{ a }}] >f", "p --x=a[1]{{ a }} >f",
    "command -v {{ a }}", "cd {{ a }} || exec p {{ a }}", "git unset {{ a }} | cat",
    "for i in {{ b }} {{ a }}; do p \"$i\"; done",
    "p > >(cat {{ a }}) 2>&1",
    "shift {{ a }}; umask {{ a }}; ulimit {{ a }}; kill {{ a }}; hash {{ a }}; set {{ a }}; pushd {{ a }}",
    "f() { return {{ a }}; }; f", "SHLVL={{ a }} LINES={{ a }} COLUMNS={{ a }} HISTSIZE={{ a }} LINENO={{ a }}; p",
    "coproc {{ a }}", "exit {{ a }}",
]  # fmt: skip


@pytest.mark.parametrize("text", READ_ONCE)
def test_what_is_read_once_is_not_refused_and_runs_nothing(text, tmp_path):
    line = text_of(template.render(text, EVIL, for_shell=True))
    subprocess.run(
        ["bash", "-c", f"p() {{ :; }}\n{line}"], cwd=tmp_path, capture_output=True, timeout=30, stdin=subprocess.DEVNULL
    )
    assert "evil" not in os.listdir(tmp_path)


def test_a_shell_reads_a_plain_line_where_one_is_wanted():
    assert template.render("p '{{ a }}' {{ a }}", {"a": "x y"}, for_shell=True) == ([], "p 'x y' 'x y'")
    with pytest.raises(TemplateError, match="empty command line"):
        template.render("{% if a %}p{% endif %}", {"a": ""}, for_shell=True)


def test_missing_values_are_named_beside_those_that_are_there():
    with pytest.raises(TemplateError) as caught:
        template.render("p {{ b }} {{ a }} {{ c }}", {"c": 1, "z": 2})
    assert str(caught.value) == "Missing required args: {'a', 'b'} (only got: {'c', 'z'})"


@pytest.mark.parametrize(
    ("text", "values", "words"),
    [
        ("p {{ a }}", {"a": "x\0y"}, "NUL"),
        ("p {{ a.b }}", {"a": "x"}, "no attribute 'b'"),
        ("p {{ 1 / a }}", {"a": 0}, "division by zero"),
        ("{% if a %}p {% endif %}", {"a": 0}, "empty command line"),
        ("p {% if a %}`{% endif %} {{ a }}`", {"a": 1}, "backquotes"),
    ],
)
def test_values_with_which_a_template_fails_are_told(text, values, words):
    with pytest.raises(TemplateError) as caught:
        template.render(text, values)
    assert words in str(caught.value)


# --- real shells ------------------------------------------------------------------------------------------------------

#: Each way in which a value can stand in a line for a shell, with what the program gets beside it.
PLACES = [
    ("show {{ a }};", ["{}"]),
    ("show x{{ a }}y z;", ["x{}y", "z"]),
    ('show "{{ a }}" "x {{ a }}$NONE y";', ["{}", "x {} y"]),
    ('show "$ONE{{ a }}" $ONE{{ a }} "${ONE}{{ a }}" $1{{ a }}', ["1{}", "1{}", "1{}", "{}"]),
    ("show 'x {{ a }} y' '{{ a }}';", ["x {} y", "{}"]),
    ("show \"it's {{ a }}\" 'say \"{{ a }}\"';", ["it's {}", 'say "{}"']),
    ('show "$(printf %s. {{ a }})";', ["{}."]),
    ('show "$(printf %s. "{{ a }}" | cat)" {{ a }};', ["{}.", "{}"]),
    ("V={{ a }}; show \"$V\"; # don't\nV=\"{{ a }}\" eval 'show \"$V\"'", ["{}", "{}"]),
    ("for v in {{ a }} 'b c'; do show \"$v\"; done", ["{}", "b c"]),
    ("(show {{ a }}; { show \"{{ a }}\"; }) | cat; show end", ["{}", "{}", "end"]),
    ("if [ {{ a }} = {{ a }} ]; then show {{ a }} 2>/dev/null; fi", ["{}"]),
    ("case {{ a }} in 'none of the values'*) ;; *) show {{ a }};; esac", ["{}"]),
    ("show {x,{{ a }}} {{ a }}>/dev/stdout;", ["x", "{}", "{}"]),
    ("cat <<E >/dev/null; show {{ a }}\nit's\nE\nshow '{{ a }}'", ["{}", "{}"]),
    ("show $((1 + (2))) ${NONE:-x\\}} `echo b` \"${NONE:-${ONE}}\" {{ a }}", ["3", "x}", "b", "1", "{}"]),
    ("show \\\n  -a {{ a }} \\' a#b $# $'\\'' {{ a }}", ["-a", "{}", "'", "a#b", "0", "'", "{}"]),
    ("cat <<<{{ a }} >/dev/null; f() { show \"$@\"; }; f {{ a }} \"{{ a }}\"", ["{}", "{}"]),
]  # fmt: skip


def shown(lines):
    """What a program is given by each of these lines, which one bash reads; it would lose track after a wrong quote."""
    script = ["show() { printf '%s\\0' \"$@\"; }; ONE=1"]
    script += [f"printf '\\1\\1n{number}\\1\\1'\n{line}" for number, line in enumerate(lines)]
    done = subprocess.run(["bash", "-c", "\n".join(script)], capture_output=True, timeout=30)
    parts = done.stdout.decode().split("\1\1")
    return [words.split("\0")[:-1] for words in parts[2::2]], done.stderr.decode()


VALUE = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.sampled_from("'\"\\$`(){}[]<>|&;#!*?~=\n\t -ab1é☃"), max_size=8),
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\1"), max_size=6),
)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example([value for value in NASTY if "\x01" not in value])
@given(st.lists(VALUE, min_size=8, max_size=20))
def test_bash_takes_every_value_as_one_word_wherever_it_stands(values):
    cases = [(text, expected, value) for value in values for text, expected in PLACES]
    # Every other one is more than text and names, so that jinja2 itself puts the values in.
    ways = ("", "{% if a %}{% endif %}")
    lines = [
        template.render(text + ways[(at + at // len(PLACES)) % 2], {"a": value}) for at, (text, _, value) in enumerate(cases)
    ]
    said, stderr = shown([text_of(line) for line in lines])
    assert len(said) == len(cases)
    for words, (text, expected, value) in zip(said, cases):
        # A value at the end of $(…) keeps its line breaks: there is a point behind it.
        assert words == [word.replace("{}", value) for word in expected], (text, value)
    assert stderr == ""


@pytest.mark.parametrize(
    "text", ["{python} -c {{ code }} {{ a }} '{{ a }}' \"{{ a }}\"", "{python} -c {{ code }} {{ a }} '{{ a }}' \"{{ a }}\";"]
)
def test_a_program_is_given_the_same_words_with_a_shell_and_without(text):
    text = text.replace("{python}", sys.executable)
    for value in ("a 'b'\n\"c\" $(id) `id` \\; ☃ ", "-x", ""):
        command = template.render(text, {"code": ARGV, "a": value})
        assert bool(command.text) == text.endswith(";")
        done = subprocess.run(command.argv or ["bash", "-c", command.text], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == [value] * 3


# --- random templates -------------------------------------------------------------------------------------------------

#: Pieces of templates; {} is a value.
PIECES = [
    "{}", "{}", "{}", "'", "'", '"', '"', " ", " ", "\n", ";", "&&", "|", "p ", "x=", "N={}", "$N", "$((N))", "$((1))",
    "$((", "))",
    "((", "(", ")", "$(", ")", "${x}", "${x:-", "${N:1}", "}", "`", "\\", "$", "$'", "[[ ", " ]]", " -gt ", "[ ", " ]",
    "unset ",
    "printf ", "-v ", "test ", "eval ", "export ", "declare ", "-i ", "read ", "<<E", "<<'E'", "\nE\n", "<<<", ">&",
    "2>&1", ">f",
    "#", " # ", "case ", "in ", "esac", "for ", "do ", "done", "if ", "then ", "fi", "{ ", "}", "x[", "]", "=", "x=(",
    "f() ", "{x[",
    "time ", "builtin ", "coproc ", "bash -c ", "bash ", "let ", "RANDOM=", "$\"", "$[", "\\\n", "trap ", "EXIT", "<(",
    "-", "--",
]  # fmt: skip
ATTACKS = [
    "'; touch evil; '", '"; touch evil; "', "$(touch evil)", "`touch evil`", "a[$(touch evil)]", "\ntouch evil\n",
    "E\ntouch evil\n",
    ") ; touch evil ; (", "'\ntouch evil #", "-va[$(touch evil)]", "-c", "touch evil", "}; touch evil", "\\", "'", '"',
    ";", "-v",
]  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(PIECES), min_size=2, max_size=14), st.lists(st.sampled_from(ATTACKS), min_size=20, max_size=20))
def test_no_template_that_is_accepted_runs_a_value(tmp_path_factory, pieces, attacks):
    text = "".join(pieces)
    values = {f"v{number}": attack for number, attack in enumerate(attacks)}
    for number in range(text.count("{}")):
        text = text.replace("{}", f"{{{{ v{number} }}}}", 1)
    try:
        command = template.render(text, values)
    except TemplateError:
        return
    if "touch" in (command.argv or [""])[0]:
        return  # the program's own name is a value
    directory = tmp_path_factory.mktemp("fuzz")
    argv = (
        command.argv
        if os.path.basename((command.argv or [""])[0]) == "bash"
        else ["bash", "-c", f"p() {{ :; }}; {command.text}"]
    )
    subprocess.run(argv, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    assert not (directory / "evil").exists(), (text, values)
