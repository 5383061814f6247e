"""Times as users write them, and that every place that takes minutes takes them."""

from __future__ import annotations

import pytest

from balsam_lite.core import clock


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90), (" 90 ", 90), ("0", 0), ("1.5", 1.5), (str(1 / 60), 1 / 60),
        ("1e-05", 1e-05), ("90m", 90), ("1h", 60), ("1H30M", 90), ("1h 30m", 90),
        ("1.5h", 90), ("2d", 2880), ("1 day 2 hours", 1560), ("2d12h", 3600), ("30s", 0.5), ("1h1s", 60 + 1 / 60),
        ("01:00:00", 60), ("1:30:30", 90.5), ("100:00:00", 6000), ("1-00:00:00", 1440), ("1-12", 2160), ("1-12:30", 2190),
        ("2:00:00:00", 2880), ("0-0:30:00", 30),
    ],
)  # fmt: skip
def test_a_time_means_what_schedulers_and_people_mean_by_it(text: str, minutes: float) -> None:
    assert clock.minutes(text) == pytest.approx(minutes)


@pytest.mark.parametrize(("text", "minutes"), [("61s", 2), ("1s", 1), ("60s", 1), ("1:00:01", 61), ("0.1h", 6), ("1.1h", 66)])
def test_seconds_are_rounded_up_to_whole_minutes(text: str, minutes: int) -> None:
    assert clock.whole_minutes(text) == minutes


@pytest.mark.parametrize("text", ["1:30", "01:30", "00:05", "90:00"])
def test_two_parts_are_refused_with_both_readings(text: str) -> None:
    hours, minutes = map(int, text.split(":"))
    with pytest.raises(ValueError, match=f"{hours} h {minutes} min .* {hours} min {minutes} s .*{hours}h{minutes}m"):
        clock.minutes(text)


@pytest.mark.parametrize(
    "text",
    ["", " ", "-5", "-1:00:00", "nan", "inf", "1e3", "h", "1x", "1h2", "1m1h", "1h1h", "1:2:3:4:5", "1::2", "1-",
     "\u0661h", "\u00b2", "1:75:00", "1:00:60", "9" * 400, "9" * 15 + "d", "1,5", "-1h", "1h\n2", "01:00:00.5"],
)  # fmt: skip
def test_what_is_no_time_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(must|is out of range)") as caught:
        clock.whole_minutes(text)
    assert len(str(caught.value)) < 200


def test_half_a_minute_without_a_unit_is_refused_where_minutes_are_whole() -> None:
    with pytest.raises(ValueError, match="whole number of minutes"):
        clock.whole_minutes("2.5")


# --- every place ------------------------------------------------------------------------------------------------------


@pytest.fixture
def db(tmp_path, monkeypatch):
    from balsam_lite.db.engine import directories
    from balsam_lite.db.store import apps

    database = directories.create(str(tmp_path / "db"))
    monkeypatch.setenv("BALSAM_DB_PATH", database.directory)
    with database.write() as cx:
        apps.add_app(cx, {"name": "a", "executable": "true"})
    yield database
    database.close()


def minutes_of_jobs(db):
    with db.read() as cx:
        return [row[0] for row in cx.execute("SELECT wall_time_minutes FROM job ORDER BY id")]


@pytest.fixture
def run(capsys):
    from balsam_lite.cli.main import main

    def call(*words: str) -> tuple[int, str]:
        code = main(list(words))
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


JOB = ("job", "--name", "j", "--workflow", "w", "--app", "a", "--yes", "--wall-time-minutes")


def test_jobs_take_times_on_the_command_line_and_in_python(db, run) -> None:
    from balsam_lite.launcher.dag import BalsamJob

    assert run(*JOB, "1h30m")[0] == 0
    assert run("job", "create", "-w", "x", "-a", "a", "-t", "01:00:00", "--yes")[0] == 0
    BalsamJob(name="b", application="a", wall_time_minutes="2d").save()
    BalsamJob.objects.bulk_create([{"application": "a", "wall_time_minutes": "61s"}])
    assert minutes_of_jobs(db) == [90, 60, 2880, 2]
    job = BalsamJob.objects.get(name="b")
    assert run("modify", str(job.pk), "wall_time_minutes", "0:10:00")[0] == 0
    assert minutes_of_jobs(db) == [90, 60, 10, 2]
    assert BalsamJob.objects.filter(wall_time_minutes__gte="1h").count() == 2


def test_the_workshops_jobs_and_batch_jobs_take_times(db) -> None:
    from balsam_lite.api import BatchJob, Job

    Job(app_id="a", workdir="x", wall_time_min="90m").save()
    assert Job(app_id="a", workdir="y", wall_time_min=0).wall_time_min == 0
    assert minutes_of_jobs(db) == [90]
    launch = BatchJob(num_nodes=1, wall_time_min="1-00:00:00", job_mode="serial", queue="q", project="p")
    assert launch.wall_time_min == 1440


@pytest.mark.parametrize(
    "words", [("submit-launch", "-n", "1", "--job-mode=serial"), ("queue", "submit", "-n", "1", "-j", "serial")]
)
def test_launches_take_times_and_refuse_two_parts(db, run, words, monkeypatch) -> None:
    submitted = []
    monkeypatch.setattr(
        "balsam_lite.schedulers.local.LocalScheduler.submit", lambda self, what: submitted.append(what.minutes) or "1"
    )
    for text in ("90", "1h", "01:30:00", "2-00:00:00", "30s"):
        code, said = run(*words, "-t", text)
        assert code == 0, said
    assert submitted == [90, 60, 90, 2880, 1]
    for text, why in (("1:30", "1 h 30 min"), ("0", "1 or more"), ("-5", "must be"), ("nan", "must be"), ("", "must be")):
        code, said = run(*words, "-t", text)
        assert (code, why in said) == (2, True), said
    assert len(submitted) == 5


def test_a_launch_in_python_takes_times() -> None:
    from balsam_lite.core.errors import InvalidSpec
    from balsam_lite.core.settings import Settings
    from balsam_lite.schedulers.base import LaunchRequest, validated

    assert validated(LaunchRequest(1, "1h"), Settings()).wall_minutes == 60
    with pytest.raises(InvalidSpec, match="wall_minutes must not be 1:30"):
        validated(LaunchRequest(1, "1:30"), Settings())


def test_a_launcher_takes_times_for_its_limit(db, run, monkeypatch) -> None:
    given = []
    monkeypatch.setattr(
        "balsam_lite.launcher.main.run_launcher", lambda directory, options: given.append(options.time_limit_minutes) or 0
    )
    for text in ("90s", "0.5", "01:00:00", "0"):
        assert run("launcher", "--consume-all", "--job-mode=serial", "--time-limit-minutes", text)[0] == 0
    assert given == [1.5, 0.5, 60, 0]


def test_a_policy_takes_times_beside_hours(tmp_path) -> None:
    from balsam_lite.core.errors import SettingsError
    from balsam_lite.service.policy import parse

    text = (
        '[q]\nsubmit-jobs = on\nmax-queued = 1\npolicy = [{{"min-nodes": 1, "max-nodes": 2, "min-time": 0, "max-time": {}}}]\n'
    )
    assert parse(text.format('"90m"'), "x")[0].ranges[0].max_minutes == 90
    assert parse(text.format("1.5"), "x")[0].ranges[0].max_minutes == 90
    for value in ('"2"', '"1:30"', '"soon"'):
        with pytest.raises(SettingsError, match="max-time must"):
            parse(text.format(value), "x")
