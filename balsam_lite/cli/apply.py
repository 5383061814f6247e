"""`balsam apply`: add what a campaign file describes and the DB has not."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from ..core import field_specs
from ..core.errors import InvalidSpec
from . import output
from .common import open_db, progress_of, say, warn
from .group import PathCommand, option
from .selection import dry_run_option

if TYPE_CHECKING:
    from ..campaigns.apply import Applied, AppStatus, GroupStatus

_STDIN = "-"


@click.command(cls=PathCommand)
@click.argument("file", metavar="FILE|-", type=click.Path())
@dry_run_option
@option("--update-apps", is_flag=True, help="Change applications that differ from the file, also for waiting jobs.")
@option("--json", "as_json", is_flag=True, help="Print the result as a JSON object.")
def apply(*, file: str, dry_run: bool, update_apps: bool, as_json: bool) -> None:
    """Add the applications, jobs and dependencies of a campaign file (YAML) that this DB has not yet.

    Applying a file again adds only what is new in it. Nothing is removed, and jobs that exist stay as they are. All that is
    new is added at once, or nothing after an error; errors are listed with their lines. `-` reads the file from stdin.

    \b
    A campaign file:
        version: 1
        campaign: alloy
        applications:
          sim: {executable: sim.py}
        groups:
          heat:
            application: sim
            sweep: {T: "100:500:20", P: [1, 2, 5]}
            args: "--t {T} --p {P}"
          sum:
            application: sim
            args: --sum
            parents: heat
    \b
    Examples:
        balsam apply alloy.yaml --dry-run
        balsam apply alloy.yaml
        make_campaign.py | balsam apply -
    """
    from ..campaigns import apply as campaigns
    from ..campaigns import campaign_file

    content, name, directory = _content(file)
    campaign = campaign_file.read(content, name, directory)
    with progress_of(2 * sum(group.count for group in campaign.groups)) if not dry_run else nullcontext() as progress:
        done = campaigns.bring(open_db(), campaign, dry_run=dry_run, update_apps=update_apps, progress=progress)
    if as_json:
        output.write_json([_object(done)], sys.stdout)
    else:
        click.echo("\n".join(_lines(done, dry_run, update_apps)))
    for text in _warnings(done):
        warn(text)
    if dry_run:
        say("Nothing was changed.")


def _content(file: str) -> tuple[bytes, str, str]:
    """Return the bytes of the file, its name for errors, and the directory of its relative paths."""
    if file == _STDIN:
        from ..campaigns import readers

        with readers.RowReader(_STDIN) as stdin:
            return "".join(stdin.lines()).encode(), "stdin", os.getcwd()
    try:
        with open(file, "rb") as opened:
            return opened.read(), file, os.path.dirname(os.path.abspath(file))
    except OSError as exc:
        raise InvalidSpec(f"The campaign file {file} cannot be read: {exc.strerror}") from None


def _lines(done: Applied, dry_run: bool, update_apps: bool) -> Iterator[str]:
    for app in done.applications:
        yield f"application {output.one_line(app.name):20} {_app_status(app, update_apps)}".rstrip()
        for field, (before, now) in app.changes.items():
            yield f"    {field} in the DB:    {output.one_line(_shown(field, before))}"
            yield f"    {' ' * len(field)} in the file:  {output.one_line(_shown(field, now))}"
    header = ("group", "jobs", "new", "existing", "only in DB")
    rows = [(one.name, one.jobs, one.new, one.existing, one.only_in_db) for one in done.groups]
    rows += [(f"{name} (not in file)", 0, 0, 0, jobs) for name, jobs in done.gone.items()]
    if rows:
        yield from output.tabulate_module().tabulate(rows, header, tablefmt="simple").splitlines()
    new_apps = sum(app.status == "new" for app in done.applications)
    parts = [output.plural(done.new_jobs, "job"), output.plural(new_apps, "application")]
    parts += [f"{done.dependencies} {'dependency' if done.dependencies == 1 else 'dependencies'}"]
    yield f"{'Would add' if dry_run else 'Added'} {', '.join(parts)} ({done.campaign})"


def _app_status(app: AppStatus, update_apps: bool) -> str:
    if app.status != "changed":
        return app.status
    return "changed" if update_apps else "differs; --update-apps changes it"


def _shown(field: str, value: Any) -> str:
    return field_specs.masked_json(value) if field == "environ_vars" else str(value)


def _warnings(done: Applied) -> Iterator[str]:
    for group in done.groups:
        if group.differing:
            fields = ", ".join(f"{field} ({jobs})" for field, jobs in group.differing.items())
            yield f"existing jobs of {group.name} differ from the file, and stay as they are: {fields}"
        if group.late:
            yield (
                f"{output.plural(group.late, 'job')} of {group.name} started before, and will not wait for new parents;"
                " `balsam rerun` runs them again after these have finished"
            )


def _object(done: Applied) -> dict[str, Any]:
    def as_object(group: GroupStatus) -> dict[str, Any]:
        return group._asdict()

    return {
        "campaign": done.campaign,
        "applications": [{"name": app.name, "status": app.status, "changed": list(app.changes)} for app in done.applications],
        "groups": [as_object(group) for group in done.groups],
        "gone": done.gone,
        "new_jobs": done.new_jobs,
        "dependencies": done.dependencies,
    }
