"""The settings: which of four places wins, and what a broken file gets."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import pytest
from helpers import ROOT

from balsam_lite.core import settings
from balsam_lite.core.errors import SettingsError
from balsam_lite.core.settings import Settings, SettingsWarning, home
from balsam_lite.launcher.mpirun.flavours import FLAVOURS
from balsam_lite.schedulers import base


class Places:
    """A home and a DB, each with a settings file, and an environment."""

    def __init__(self, directory: Path) -> None:
        self.home, self.db = directory / "home" / "settings.json", directory / "db" / "settings.json"
        for file in (self.home, self.db):
            file.parent.mkdir()
        self.environ = {"BALSAM_HOME": str(self.home.parent)}

    def load(self) -> Settings:
        return Settings.load(str(self.db.parent), self.environ)

    def refuses(self, *words: str) -> None:
        """Loading raises an error with these words, and leaves the DB's file as it is."""
        before = self.db.read_bytes()
        with pytest.raises(SettingsError) as caught:
            self.load()
        assert caught.value.exit_code == 2
        for word in (*words, str(self.db)):
            assert word in str(caught.value)
        assert self.db.read_bytes() == before
        assert os.listdir(self.db.parent) == ["settings.json"]


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


# --- who wins ---------------------------------------------------------------------------------------------------------


def test_without_any_file_all_defaults_hold_and_no_file_is_made(places: Places) -> None:
    assert places.load() == Settings()
    assert not places.home.exists()
    assert not places.db.exists()


def test_home_wins_over_the_defaults_the_db_over_home_and_the_environment_over_all(places: Places) -> None:
    places.home.write_text('{"DEFAULT_PROJECT": "home", "SERVICE_PERIOD": 2, "HEARTBEAT_S": 2}')
    places.db.write_text('{"SERVICE_PERIOD": 3, "HEARTBEAT_S": 3.5}')
    places.environ["BALSAM_HEARTBEAT_S"] = "4.5"
    found = places.load()
    assert (found.DEFAULT_PROJECT, found.SERVICE_PERIOD, found.HEARTBEAT_S) == ("home", 3, 4.5)
    assert found == Settings(DEFAULT_PROJECT="home", SERVICE_PERIOD=3, HEARTBEAT_S=4.5)


def test_outside_of_a_db_home_and_environment_hold(places: Places) -> None:
    places.home.write_text('{"SERVICE_PERIOD": 2}')
    places.db.write_text('{"SERVICE_PERIOD": 3}')
    assert Settings.load(None, places.environ).SERVICE_PERIOD == 2


def test_without_the_variable_home_is_below_the_users_home() -> None:
    assert home({}) == os.path.expanduser("~/.balsam")
    assert home({"BALSAM_HOME": ""}) == os.path.expanduser("~/.balsam")


@pytest.mark.parametrize("key", Settings._fields)
def test_every_setting_is_read_from_a_file_and_from_the_environment_as_its_kind(places: Places, key: str) -> None:
    value = settings.CHOICES[key][-1] if key in settings.CHOICES else type(getattr(Settings(), key))(7)
    places.db.write_text(json.dumps({key: value}))
    assert places.load() == Settings()._replace(**{key: value})
    places.db.unlink()
    places.environ[f"BALSAM_{key}"] = str(value)
    found = getattr(places.load(), key)
    assert (type(found), found) == (type(value), value)


def test_the_values_which_mean_ask_the_machine_are_allowed(places: Places) -> None:
    places.db.write_text('{"GPUS_PER_NODE": -1, "CPUS_PER_NODE": 0, "IDLE_TTL_S": 0, "ERROR_TAIL_LINES": 0}')
    assert places.load() == Settings(IDLE_TTL_S=0.0, ERROR_TAIL_LINES=0)


# --- what is not known ------------------------------------------------------------------------------------------------


def test_an_unknown_key_warns_with_file_and_name_and_the_others_hold(places: Places) -> None:
    places.db.write_text('{"COLOUR": "red", "SERVICE_PERIOD": 3, "AGE": []}')
    with pytest.warns(SettingsWarning) as caught:
        found = places.load()
    assert found == Settings(SERVICE_PERIOD=3)
    (warning,) = caught
    assert str(places.db) in str(warning.message)
    assert "AGE, COLOUR" in str(warning.message)


def test_an_unknown_variable_of_the_environment_says_nothing(places: Places) -> None:
    places.environ["BALSAM_DB_PATH"] = places.environ["BALSAM_COLOUR"] = "x"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert places.load() == Settings()


# --- broken files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("line 1", "Expecting value")),
        ("{", ("line 1",)),
        ('{\n"SERVICE_PERIOD": 3,\n}', ("line", "Fix the file")),
        ('{\n\n"SERVICE_PERIOD": three}', ("line 3", "Expecting value")),
        ("{'SERVICE_PERIOD': 3}", ("line 1", "double quotes")),
        ('{"SERVICE_PERIOD": 3} x', ("line 1", "Extra data")),
        ("\ufeff{}", ("line 1", "BOM")),
        ("[]", ("line 1", "expected an object", "list")),
        ('"text"', ("line 1", "expected an object", "str")),
        ("null", ("line 1", "expected an object", "NoneType")),
        ("[" * 200_000, ("cannot be read",)),
        (f'{{"KILL_GRACE_S": {"9" * 5000}}}', ("settings.json",)),
    ],
)
def test_a_broken_file_is_an_error_with_file_line_and_reason_and_stays_as_it_is(
    places: Places, text: str, words: tuple[str, ...]
) -> None:
    places.db.write_text(text, encoding="utf-8")
    places.refuses(*words)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("SERVICE_PERIOD", '"3"', ("a whole number", "'3'")),
        ("SERVICE_PERIOD", "3.0", ("a whole number", "3.0")),
        ("SERVICE_PERIOD", "true", ("a whole number", "True")),
        ("SERVICE_PERIOD", "null", ("a whole number", "None")),
        ("KILL_GRACE_S", '"1"', ("a number", "'1'")),
        ("KILL_GRACE_S", "false", ("a number", "False")),
        ("KILL_GRACE_S", "[1]", ("a number", "[1]")),
        ("DEFAULT_PROJECT", "3", ("text", "3")),
        ("DEFAULT_PROJECT", '{"a": 1}', ("text",)),
        ("DEFAULT_PROJECT", r'"a\u0000b"', ("NUL",)),
        ("DEFAULT_PROJECT", r'"\ud800"', ("valid text",)),
        ("SERVICE_PERIOD", "0", ("greater than 0",)),
        ("MAX_CONCURRENT_MPIRUNS", "-1", ("greater than 0", "-1")),
        ("HEARTBEAT_S", "NaN", ("greater than 0", "nan")),
        ("HEARTBEAT_S", "Infinity", ("greater than 0", "inf")),
        ("KILL_GRACE_S", "NaN", ("nan",)),
        ("KILL_GRACE_S", "-0.5", ("from 0", "-0.5")),
        ("IDLE_TTL_S", "1e400", ("inf",)),
        ("IDLE_TTL_S", "1" + "0" * 400, ("inf",)),
        ("LEASE_EXPIRY_S", "1e300", ("at most",)),
        ("CPUS_PER_NODE", "-1", ("from 0", "-1")),
        ("GPUS_PER_NODE", "-2", ("from -1", "-2")),
        ("ERROR_TAIL_LINES", "-3", ("from 0", "-3")),
        ("LOG_HANDLER_LEVEL", '"LOUD"', ("one of DEBUG INFO", "'LOUD'")),
        ("LOG_HANDLER_LEVEL", '""', ("one of DEBUG INFO", "''")),
        ("MPI_FLAVOUR", '"lam"', ("one of aprun intel", "'lam'")),
        ("SCHEDULER_CLASS", '"Slurm"', ("one of CobaltScheduler LocalScheduler", "'Slurm'")),
    ],
)
def test_a_value_that_makes_no_sense_is_named_with_its_line(
    places: Places, key: str, value: str, words: tuple[str, ...]
) -> None:
    places.db.write_text(f'{{\n  "JOB_TEMPLATE": "x",\n  "{key}": {value}\n}}')
    places.refuses(f"line 3: {key}", *words)


def test_a_file_that_is_not_utf8_is_an_error(places: Places) -> None:
    places.db.write_bytes(b'{"DEFAULT_PROJECT": "\xff"}')
    places.refuses("cannot be read", "utf-8")


def test_a_broken_file_at_home_is_an_error_inside_a_db_too(places: Places) -> None:
    places.home.write_text("{")
    with pytest.raises(SettingsError, match=f"{places.home}, line 1"):
        places.load()


def test_a_directory_in_the_files_place_is_an_error(places: Places) -> None:
    places.db.mkdir()
    with pytest.raises(SettingsError, match=r"settings\.json cannot be read"):
        places.load()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_an_error(places: Places) -> None:
    places.db.write_text("{}")
    places.db.chmod(0)
    with pytest.raises(SettingsError, match=r"cannot be read.*Permission denied"):
        places.load()


def test_exactly_the_words_are_allowed_that_something_is_made_of(places: Places) -> None:
    readers = {"MPI_FLAVOUR": ("", *FLAVOURS), "SCHEDULER_CLASS": ("", *base._SCHEDULERS)}
    for key, words in readers.items():
        assert set(settings.CHOICES[key]) == set(words)
    readers["LOG_HANDLER_LEVEL"] = ("DEBUG", "info", "Warning", "ERROR")
    for key, words in readers.items():
        for word in words:
            places.environ[f"BALSAM_{key}"] = word
            assert getattr(places.load(), key) == word


def test_holders_say_that_they_live_more_often_than_others_give_them_up() -> None:
    assert Settings().beat_s == Settings().HEARTBEAT_S
    assert Settings(LEASE_EXPIRY_S=4).beat_s == 1
    for reader in ("launcher/loop.py", "service/loop.py"):
        assert "HEARTBEAT_S" not in (ROOT / "balsam_lite" / reader).read_text()


# --- the environment --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("SERVICE_PERIOD", "x", "a whole number, not 'x'"),
        ("SERVICE_PERIOD", "", "a whole number, not ''"),
        ("SERVICE_PERIOD", "1.5", "a whole number"),
        ("SERVICE_PERIOD", "0", "greater than 0"),
        ("KILL_GRACE_S", "nan", "nan"),
        ("KILL_GRACE_S", "inf", "inf"),
        ("KILL_GRACE_S", "-1", "from 0"),
        ("GPUS_PER_NODE", "9" * 5000, "a whole number"),
        ("DEFAULT_PROJECT", os.fsdecode(b"\xff"), "valid text"),
    ],
)
def test_a_variable_that_makes_no_sense_is_named(places: Places, key: str, text: str, words: str) -> None:
    places.environ[f"BALSAM_{key}"] = text
    with pytest.raises(SettingsError) as caught:
        places.load()
    assert f"the environment variable BALSAM_{key}" in str(caught.value)
    assert words in str(caught.value)


def test_a_sound_variable_does_not_hide_a_broken_file(places: Places) -> None:
    places.db.write_text('{"SERVICE_PERIOD": 0}')
    places.environ["BALSAM_SERVICE_PERIOD"] = "3"
    places.refuses("greater than 0")
