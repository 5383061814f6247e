"""Places where a test kills the launcher as a power cut would. Without a test they cost one comparison."""

from __future__ import annotations

import os
import signal

VARIABLE = "BALSAM_FAILPOINT"

_armed = ""
_passes = 0


def arm(text: str) -> None:
    """Arm `NAME` or `NAME:N`: die at the first, or the Nth, time that place is reached."""
    global _armed, _passes
    _armed, _, times = text.partition(":")
    _passes = int(times or 1)


def failpoint(name: str) -> None:
    """Die here if this is the armed place."""
    global _passes
    if name == _armed:
        _passes -= 1
        if _passes == 0:
            os.kill(os.getpid(), signal.SIGKILL)
