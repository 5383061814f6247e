"""A site's service in the words of the workshop: start it, stop it, what it does. Source of the words: Balsam 0.7, `site`."""

from __future__ import annotations

from ..core.errors import AnotherService
from ..core.identity import Holder
from ..core.settings import Settings
from ..service import main, policy
from .interface import Row


def start(directory: str) -> Row:
    """Start the service of that DB in the background: {"said": lines, pid, host, log}.

    Raises:
        AnotherService: where it runs already. LaunchError: it did not begin.
    """
    try:
        started = main.start(directory)
    except AnotherService as exc:
        found = main.status(directory)
        if found["state"] != "running":  # it has just come or gone
            raise
        raise AnotherService(
            f"The site is already running on {found['host']} [PID {found['pid']}].",
            hint="To restart it, first use `balsam site stop`.",
        ) from exc
    host = Holder.current().host
    return {"said": [f"Started Balsam site daemon [pid {started.pid}] on {host}"], "host": host, **started._asdict()}


def check(directory: str) -> Row:
    """Read what a service of that DB would: {"said": []}. Raises SettingsError: it could not start."""
    policy.load(directory, Settings.load(directory))
    return {"said": []}


def stop(directory: str) -> Row:
    """End the service of that DB and wait for that; {"said": lines}. None that runs is no error.

    Raises:
        LaunchError: it is still busy, or another user's.
    """
    found = main.status(directory)
    said = main.stop(directory)
    if found["state"] != "running" or found["host"] != Holder.current().host:
        return {"said": [said]}
    return {"said": [f"Sent SIGTERM to Balsam site daemon [pid {found['pid']}]", "Site daemon shutdown OK"]}


def status(directory: str) -> Row:
    """What there is to tell of it: {"said": lines} and what `service.main.status` says."""
    found = main.status(directory)
    if found["state"] == "none":
        return {"said": ["No service has run at this site."], **found}
    return {"said": [f"The service is {found['state']} (pid {found['pid']} on {found['host']})."], **found}
