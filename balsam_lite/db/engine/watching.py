"""Find out which holders on other hosts live, by watching their heartbeats for as long as that takes.

For commands whose effect on the DB of a living launcher could not be undone. One look cannot tell: hosts' clocks differ.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence

from ...core.clock import SystemClock
from ...core.settings import SettingsWarning
from ..store import leases
from ..store.leases import Lease, Watch
from .connection import AT_WORK, Database


def await_certainty(look: Callable[[], Sequence[Lease]], expiry_s: float) -> None:
    """Call `look` until it returns no doubtful holder any more; warn the user once of the waiting."""
    told = False
    while True:
        doubtful = look()
        if not doubtful:
            return
        if not told:
            names = ", ".join(map(str, doubtful))
            text = f"Watching for up to {expiry_s:g} s whether {names} still lives: its last sign of life is old by its clock."
            warnings.warn(text, SettingsWarning, stacklevel=3)
            told = True
        time.sleep(min(1.0, expiry_s / 4))


def watch_the_doubtful(db: Database, expiry_s: float, where: str = AT_WORK) -> Watch:
    """Wait until it is certain which holders on other hosts live, and free the jobs of the dead ones.

    Opens read transactions, and a write transaction if one is dead. Returns the watch, which then knows them.
    """
    watch = Watch()

    def look() -> list[Lease]:
        with db.session(), db.read() as cx:
            now_us, found = SystemClock.now_us(), [one for one in leases.open_leases(cx, where) if not one.holder.is_here()]
        dead = [one for one in found if leases.is_dead(one, expiry_s, watch)]
        if dead:
            with db.session(), db.write() as cx:
                for lease in leases.open_leases(cx, where):
                    if lease in dead:
                        leases.reap(cx, lease, now_us, watch=watch)
        return [one for one in found if leases.is_doubtful(one, now_us, expiry_s, watch)]

    await_certainty(look, expiry_s)
    return watch
