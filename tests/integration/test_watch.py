"""`balsam watch`: its screens by textual's pilot on 80 x 24, and in a real terminal."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_until
from launching import Bench

from balsam_lite.cli.main import main
from balsam_lite.db.engine import connection
from balsam_lite.db.engine.registry import SiteEntry
from balsam_lite.sites.local import LocalSite

pytest.importorskip("textual", reason="the package textual is missing")

from balsam_lite.cli.watch_screens import WatchApp, curve


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.app("long", "sh -c 'echo one; sleep 600'")
    made.app("bad", "sh -c 'echo no luck; exit 3'")
    yield made
    made.close()


def site_of(bench: Bench) -> LocalSite:
    return LocalSite(SiteEntry(0, "here", bench.directory))


def text_of(app: Any) -> str:
    """Return the characters on the screen."""
    return "\n".join("".join(part.text for part in line) for line in app.screen._compositor.render_strips())


def watched(bench: Bench, use: Callable[[Any, Callable[[str], Awaitable[None]]], Awaitable[None]]) -> None:
    """Run `use(pilot, until)` on a running application; `until` waits for words on the screen."""

    async def run() -> None:
        app = WatchApp(site_of(bench), {}, 0.2)
        async with app.run_test(size=(80, 24)) as pilot:

            async def until(words: str) -> None:
                for _ in range(600):
                    if words in text_of(app):
                        return
                    await pilot.pause(0.05)
                raise AssertionError(f"{words!r} is not on the screen:\n{text_of(app)}")

            await use(pilot, until)

    asyncio.run(run())


def ends(bench: Bench) -> None:
    assert bench.run(BALSAM_IDLE_TTL_S="0.1") == 0


def test_it_shows_states_launches_running_jobs_with_nodes_and_failures_by_cause(bench: Bench):
    bench.add([{"name": f"b{n}", "workflow": "w1", "application": "bad"} for n in range(3)])
    ends(bench)
    (job,) = bench.add([{"name": "runs", "workflow": "w2", "application": "long"}])
    bench.launch("--nodes", "2")
    bench.wait_for(job, "RUNNING")

    async def use(pilot: Any, until: Any) -> None:
        await until("1 RUNNING  3 FAILED")
        await until("3 of 4 ended (75 %)")
        await until("1 of 2 nodes in use")
        await until(f"{os.uname().nodename}/1")
        assert len(text_of(pilot.app).splitlines()) == 24
        await pilot.press("2")
        await until("exit code 3")
        await pilot.press("3")
        await until("1/2")
        await pilot.press("4")
        await until("100 %")

    watched(bench, use)


def test_a_cause_leads_to_its_jobs_and_a_job_to_its_fields_its_reason_and_its_output(bench: Bench):
    bench.add([{"name": "b1", "workflow": "w1", "application": "bad"}, {"name": "w1", "application": "long", "num_nodes": 99}])
    ends(bench)

    async def use(pilot: Any, until: Any) -> None:
        await pilot.press("2")
        await until("exit code 3")
        await pilot.press("enter")
        await until("[failure__exact=exit code 3]")
        await until("b1")
        await pilot.press("enter")
        await until("[b1 | ")
        await until("Attempts")
        assert pilot.app.focused.id == "show-text"
        await pilot.press("2")
        await until("] is FAILED:")
        await pilot.press("3")
        await until("no luck")
        await pilot.press("escape")
        await until("1 of 1 ended")
        await pilot.press("escape")
        await until("1 of 2 ended")

    watched(bench, use)


def test_a_filter_takes_conditions_and_parts_of_names_and_refuses_others(bench: Bench):
    bench.add([{"name": f"{name}{n}", "workflow": "w", "application": "bad"} for name in ("ant", "bee") for n in range(4)])

    async def use(pilot: Any, until: Any) -> None:
        await until("0 of 8 ended")
        await pilot.press("slash", *"ant", "enter")
        await until("0 of 4 ended")
        await pilot.press("slash", *"nam=x", "enter")
        await until("nam")
        await until("0 of 4 ended")
        await pilot.press("slash", *"name=bee1 num_nodes=1", "enter")
        await until("0 of 1 ended")
        await pilot.press("escape")
        await until("0 of 8 ended")

    watched(bench, use)


def test_keys_kill_a_job_and_run_it_again_after_a_question_and_nothing_else_writes(bench: Bench):
    (job,) = bench.add([{"name": "one", "workflow": "w", "application": "bad"}])

    def written() -> int:
        with bench.db.read() as cx:
            return int(cx.execute("SELECT count(*) FROM event").fetchone()[0])

    async def use(pilot: Any, until: Any) -> None:
        await pilot.press("5")
        await until("one")
        await pilot.press("k")
        await until("Kill [one | ")
        await pilot.press("n")
        await until("1 CREATED")
        assert written() == 0
        await pilot.press("k")
        await until("Kill [one | ")
        await pilot.press("y")
        await until("1 USER_KILLED")
        assert bench.job(job)["state"] == "USER_KILLED"
        await pilot.press("r")
        await until("Run again [one | ")
        await pilot.press("y")
        await until("0 of 1 ended")
        assert bench.job(job)["state"] == "CREATED"

    watched(bench, use)


def test_names_from_users_are_shown_as_they_are_and_steer_nothing(bench: Bench):
    bench.add([{"name": "[red]a[/b] ü", "workflow": "[bold]", "application": "bad"}])
    ends(bench)

    async def use(pilot: Any, until: Any) -> None:
        await pilot.press("5")
        await until("[red]a[/b] ü")
        await pilot.press("enter")
        await until("[[red]a[/b]")

    watched(bench, use)


def test_a_job_that_was_removed_and_a_db_that_is_gone_are_told(bench: Bench):
    (job,) = bench.add([{"name": "one", "workflow": "w", "application": "bad"}])

    async def use(pilot: Any, until: Any) -> None:
        await pilot.press("5")
        await until("one")
        await pilot.press("enter")
        await until("[one | ")
        site_of(bench).delete("job", {"id": job}, force=True)
        await until("It is not there any more.")
        await pilot.press("escape")
        Path(bench.directory, connection.FILE_NAME).unlink()
        await until("balsam watch")

    watched(bench, use)


def test_a_curve_is_scaled_to_its_top():
    assert curve([0, 1, 2], 4) == "  ▄█"
    assert curve([0.5] * 9, 3, 1.0) == "▄▄▄"
    assert curve([], 2) == "  "


def test_without_a_terminal_or_textual_it_says_what_to_do(bench: Bench, monkeypatch, capfd):
    monkeypatch.setenv("BALSAM_DB_PATH", bench.directory)
    assert main(["watch"]) == 1
    assert "needs a terminal" in capfd.readouterr().err
    monkeypatch.setitem(sys.modules, "textual", None)
    for name in [name for name in sys.modules if name.startswith("textual.") or name.endswith("watch_screens")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["watch"]) == 1
    err = capfd.readouterr().err
    assert "pip install 'balsam_lite[ui]'" in err
    assert "balsam status --watch 2" in err


# --- in a real terminal -----------------------------------------------------------------------------------------------


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Callable[..., str]]:
    if shutil.which("tmux") is None:
        if os.environ.get("BALSAM_CI"):
            pytest.fail("tmux is missing")
        pytest.skip("tmux is missing")
    socket = str(tmp_path / "tmux")

    def run(*words: str) -> str:
        done = subprocess.run(["tmux", "-S", socket, *words], capture_output=True, text=True, timeout=30, check=False)
        return done.stdout

    yield run
    run("kill-server")


def test_in_a_terminal_of_80_by_24_keys_work_and_the_end_leaves_it_as_it_was(bench: Bench, tmux: Callable[..., str]):
    bench.add([{"name": f"b{n}", "workflow": "w1", "application": "bad"} for n in range(3)])
    ends(bench)
    tmux("-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", "sh")
    tmux("send-keys", f"{sys.executable} -m balsam_lite.cli --db {bench.directory} watch; echo code $?", "Enter")
    wait_until(lambda: "3 of 3 ended (100 %)" in tmux("capture-pane", "-p"))
    tmux("send-keys", "2")
    wait_until(lambda: "exit code 3" in tmux("capture-pane", "-p"))
    shown = tmux("capture-pane", "-p").splitlines()
    assert "Filter" in shown[23]
    assert max(map(len, shown)) <= 80
    tmux("send-keys", "q")
    wait_until(lambda: "code 0" in tmux("capture-pane", "-p"))
    assert "3 of 3 ended" not in tmux("capture-pane", "-p")


@pytest.mark.parametrize("size", [(20, 8), (40, 12), (200, 60)])
def test_terminals_of_other_sizes_are_no_trouble(bench: Bench, size: tuple[int, int]):
    bench.add([{"name": "a name that is longer than that", "workflow": "w", "application": "bad"}])

    async def run() -> None:
        app = WatchApp(site_of(bench), {}, 0.2)
        async with app.run_test(size=size) as pilot:
            for key in ("2", "3", "4", "5"):
                await pilot.press(key)
                await pilot.pause(0.3)
            for _ in range(200):
                if app.screen.selected() is not None:
                    break
                await pilot.pause(0.05)
            await pilot.press("enter")
            await pilot.pause(0.5)
            await pilot.press("2", "3", "k", "n", "escape", "question_mark")
            await pilot.pause(0.3)
            await pilot.press("x", "q")
        assert app.return_code == 0

    asyncio.run(run())
