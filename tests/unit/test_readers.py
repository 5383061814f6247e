"""Tables, JSON lines and lines of commands: what is read, and the line and column of what cannot be."""

from __future__ import annotations

import pytest

from balsam_lite.campaigns import readers
from balsam_lite.core.errors import InputError, InvalidSpec, NotFound


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(content, name="f.csv"):
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    return write


def table(path, form="csv"):
    with readers.CsvTable(path, form) as found:
        return found.columns, list(found)


@pytest.mark.parametrize(
    ("content", "columns", "rows"),
    [
        ("a,b\n1,2\n3,4\n", ["a", "b"], [["1", "2"], ["3", "4"]]),
        ("a,b\r\n1,2\r\n", ["a", "b"], [["1", "2"]]),
        ("\ufeffa,b\n1,2", ["a", "b"], [["1", "2"]]),
        ('a,b\n"1,5","say ""x"""\n', ["a", "b"], [["1,5", 'say "x"']]),
        ('a,b\n"two\nlines",2\n', ["a", "b"], [["two\nlines", "2"]]),
        ("\n\na, b \n\n1,\n\n", ["a", "b"], [["1", ""]]),
        ("a\n", ["a"], []),
        ("a,b\nä,漢\n", ["a", "b"], [["ä", "漢"]]),
    ],
)
def test_a_table_is_read(file, content, columns, rows):
    assert table(file(content)) == (columns, rows)


def test_tabs_separate_the_columns_of_tsv(file):
    assert table(file("a\tb\n1,5\t2\n"), "tsv") == (["a", "b"], [["1,5", "2"]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"f.csv is empty: its first line must name the columns"),
        ("\n\n", r"f.csv is empty"),
        ("a,,c\n", r"f.csv, line 1, column 2: the column has no name"),
        ("a,b,a\n", r"f.csv, line 1, column 3: there are two columns 'a'"),
        ("a,b\n1,2\n3\n", r"f.csv, line 3, column 2: there is 1 of 2 columns: b missing"),
        ("a,b\n1,2,3\n", r"f.csv, line 2, column 3: there are 3 of 2 columns"),
        ('a,b\n1,2\n"x,2\n3,4\n', r"f.csv, line 3: a double quote is not closed, in line 4"),
        ('a,b\n"x"y,2\n', r"f.csv, line 2: .*expected after"),
        ("a,b\n1,2\n3,\0\n", r"f.csv, line 3, column 3: there is a NUL byte"),
        (b"a,b\n1,2\n3,\xe4\n", r"f.csv, line 3, column 3: the byte 0xe4 is not UTF-8"),
        ("a,b\n".encode("utf-16"), r"f.csv is UTF-16, not text in UTF-8"),
        (b"PK\x03\x04", r"f.csv is a spreadsheet or archive"),
        ('a\n"' + "x" * 200_000, r"f.csv, line 2: a cell is longer than 131072 characters; is a double quote not closed\?"),
    ],
)
def test_what_is_no_table_is_refused_with_line_and_column(file, content, message):
    with pytest.raises(InvalidSpec, match=message):
        table(file(content))


def test_rows_know_their_lines(file):
    with readers.CsvTable(file('a\n1\n\n"2\n\n"\n3\n4\n\n\n5\n')) as found:
        began = [found.line for _ in found]
    assert began == [2, 4, 7, 8, 11]
    assert [found.line_of(number) for number in range(1, 6)] == began


def test_rows_of_regular_files_take_no_memory_for_their_lines(file):
    with readers.CsvTable(file("a\n" + "1\n" * 10_000)) as found:
        assert sum(1 for _ in found) == 10_000
    assert len(found._numbers) == 1
    assert found.line_of(10_000) == 10_001


def json_lines(path):
    with readers.JsonLines(path) as found:
        return list(found)


def test_json_lines_are_read(file):
    assert json_lines(file('{"a": 1}\n\n {"a": [2, "x"]}\r\n')) == [{"a": 1}, {"a": [2, "x"]}]
    assert json_lines(file("")) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n{"a": }\n', "line 2, column 7: no JSON: Expecting value"),
        ("[1]\n", r"line 1: must be a JSON object \{…\}, not \[1\]"),
        ('{"a": 1, "a": 2}\n', "line 1: 'a' is given twice"),
        ('{"a": NaN}\n', "line 1: NaN is no JSON"),
        ('{"a": ' + "[" * 100_000 + "\n", "line 1: objects are nested too deeply"),
        ('{"a": 1}\n{\n"a": 2}\n', "line 2, column .: no JSON"),
    ],
)
def test_what_is_no_json_line_is_refused(file, content, message):
    with pytest.raises(InvalidSpec, match=message):
        json_lines(file(content))


def test_commands_are_lines_without_comments(file):
    with readers.Commands(file("# all\necho 1 # one\n\n   \n  echo 2\r\n#echo 3\n")) as found:
        assert [(found.line, command) for command in found] == [(2, "echo 1 # one"), (5, "echo 2")]


def test_a_command_of_two_lines_is_refused(file):
    with readers.Commands(file("echo 1\necho \\\n 2\n")) as found, pytest.raises(InvalidSpec, match="line 2: ends with a back"):
        list(found)


def test_a_file_that_cannot_be_read(file, tmp_path):
    with pytest.raises(NotFound, match="There is no file none"):
        readers.CsvTable("none.csv")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        readers.CsvTable(str(tmp_path))


@pytest.mark.parametrize(("path", "form"), [("a.csv", "csv"), ("b.TSV", "tsv"), ("c.jsonl", "jsonl"), ("d.ndjson", "jsonl")])
def test_the_name_tells_the_format(path, form):
    assert readers.format_of(path) == form
    assert readers.format_of(path, "csv") == "csv"


def test_an_unknown_format_is_refused():
    with pytest.raises(InvalidSpec, match="The format of - is unknown"):
        readers.format_of("-")
