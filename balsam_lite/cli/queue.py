"""`balsam queue`: the batch jobs of one or more sites, in the words of the workshop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..core import field_specs
from ..core.clock import FORMS
from ..core.errors import AmbiguousJobId, BalsamError, UnknownBatchJob
from ..db.engine import directories
from ..db.engine.registry import SiteEntry
from . import listing, output
from .common import COUNT, COUNT0, Minutes, ask_all_sites, ask_sites, long_site_option, one_site, pairs, say, warn
from .group import BalsamCommand, Choice, CommandGroup, WordsOption, option
from .selection import JOB_MODE_HELP, PART_HELP, launch_filter_options

if TYPE_CHECKING:
    from ..sites.interface import SiteInterface

_Row = dict[str, Any]

_ACTIVE = ("pending_submission", "queued", "running", "pending_deletion")
_NONE_ACTIVE = "No active batch jobs.  Use --history option to list completed batch jobs."


@click.group(cls=CommandGroup)
def queue() -> None:
    """Submit launches to the batch queue, list them, or cancel them. A launch is a batch job in which a launcher runs jobs.

    \b
    Examples:
        balsam queue submit -n 1 -t 10 -q debug -A myproject \\
            --tag workflow=hello --job-mode mpi
        balsam queue ls
        balsam queue rm qlaunch7
    """


# --- submit -----------------------------------------------------------------------------------------------------------


@click.command("submit-launch", cls=BalsamCommand, short_help="submit a launch")
@option(
    "-n", "--nodes", "--num-nodes", "num_nodes", type=COUNT, required=True, metavar="N",
    help="Number of nodes.",
)  # fmt: skip
@option(
    "-t", "--time-minutes", "--wall-time-min", "wall_time_min", type=Minutes(), required=True, metavar="TIME",
    help=f"Wall time: {FORMS}.",
)  # fmt: skip
@option("-q", "--queue", default="", metavar="NAME", help="Queue.")
@option("-A", "--project", default="", help="Project (account) to charge. [default: DEFAULT_PROJECT of the settings]")
@option("-j", "--job-mode", type=Choice(field_specs.JOB_MODES), required=True, help=JOB_MODE_HELP)
@launch_filter_options
@option("-p", "--part", "parts", multiple=True, metavar="MODE:NUM_NODES[:KEY=VALUE...]", help=PART_HELP)
@option(
    "-x", "--extra-param", "optional_params", multiple=True, metavar="KEY=VALUE",
    help="Value for the job template; may be repeated.",
)  # fmt: skip
@option("--sched-flags", cls=WordsOption, default="", metavar="FLAGS", help="Additional flags for the scheduler's command.")
@option("--dry-run", is_flag=True, help="Print the job script and submit nothing.")
@long_site_option
@click.pass_context
def submit_launch(
    ctx: click.Context, /, *, workflow_filter: str | None, tags: Sequence[str], parts: Sequence[str],
    optional_params: Sequence[str], dry_run: bool, site: str, **row: Any,
) -> None:  # fmt: skip
    """Submit a launcher to the batch queue. On a machine without one it runs in the background there.

    It runs all jobs unless --wf-filter or --tag is given. `balsam submit-launch` and `balsam queue submit` are two names of
    one command; the second one prints the batch job as YAML.

    \b
    Examples:
        balsam submit-launch -n 2 -t 5 -q debug -A myproject --job-mode=serial
        balsam submit-launch -n 1 -t 60 --job-mode=mpi --wf-filter test --dry-run
        balsam queue submit -n 1 -t 10 -q debug -A myproject \\
            --tag workflow=hello --job-mode mpi
        balsam queue submit -n 4 -t 60 -j mpi \\
            -p mpi:3:kind=large -p serial:1:kind=small
    """
    from ..schedulers.base import Partition

    row.update(
        wf_filter=workflow_filter or "",
        filter_tags=pairs(tags, "--tag"),
        partitions=[Partition.parse(part).as_fields() for part in parts],
        optional_params=pairs(optional_params, "--extra-param"),
    )
    if not site and ctx.info_name == "submit-launch":
        directories.find(ctx.find_root().obj)
    target = one_site(site)
    if dry_run:
        _print_script(target, row)
        return
    made = target.create("batch_job", [row])[0]
    warnings = made["status_info"].pop("warnings", [])
    if ctx.info_name == "submit-launch":
        _print_as_slides(made)
    else:
        click.echo("\n".join(output.yaml_lines(_shown(made, target.entry))))
    for warning in warnings:
        warn(warning)


queue.add_command(submit_launch, "submit")


def _print_script(site: SiteInterface, row: _Row) -> None:
    from ..sites import batch_jobs
    from ..sites.local import LocalSite

    if not isinstance(site, LocalSite):
        raise click.UsageError(f"--dry-run prints job scripts of sites on this host, and {site.entry.name} is on another one.")
    click.echo(batch_jobs.script(site.database, row), nl=False)


def _print_as_slides(row: _Row) -> None:
    from pprint import pformat

    from ..schedulers.submission import legacy_form

    form: Any = {**row, "scheduler_id": str(row["scheduler_id"] or ""), "state": row["scheduler_state"]}
    click.echo(f"Submit OK: Qlaunch {pformat(legacy_form(form), indent=4)}")


def _shown(row: _Row, entry: SiteEntry) -> _Row:
    """Return the fields in the order in which Balsam 0.7 printed them."""
    names = ("num_nodes", "wall_time_min", "job_mode", "optional_params", "filter_tags", "partitions", "id")
    more = ("scheduler_id", "project", "queue", "state", "status_info", "start_time", "end_time")
    return {**{name: row[name] for name in names}, "site_id": entry.number or None, **{name: row[name] for name in more}}


# --- ls ---------------------------------------------------------------------------------------------------------------


class _ListCommand(BalsamCommand):
    """`-h` is --history here, as in Balsam 0.7."""

    help_names = ("--help",)


@queue.command("ls", cls=_ListCommand, short_help="list launches with their states")
@option("-n", "--num", type=COUNT0, default=0, metavar="N", help="The last N launches, whatever their state.")
@option("-h", "--history", is_flag=True, help="The launches that have ended, too.")
@option("--all", "all_queues", is_flag=True, help="Same as --history.")
@option("--limit", type=COUNT, metavar="N", help="Show at most N, the newest ones.")
@option("--scheduler_id", "--scheduler-id", metavar="ID", help="Only the launch with this id at the scheduler.")
@option("-v", "--verbose", is_flag=True, help="Show every field, also why a launch waits or failed.")
@long_site_option
@listing.output_options
def list_(
    *, num: int, history: bool, all_queues: bool, limit: int | None, scheduler_id: str | None, verbose: bool, site: str,
    **options: Any,
) -> None:  # fmt: skip
    """List the launches of one or more sites, with their current states at the scheduler.

    States: pending_submission, queued, running, pending_deletion; and finished, submit_failed.

    \b
    Examples:
        balsam queue ls
        balsam queue ls --history --site all
        balsam queue ls --history --json
    """
    look = listing.Look.of(options, listing.BATCH_JOBS, verbose=verbose, verbose_form="yaml")
    where: _Row = {"scheduler_id": scheduler_id} if scheduler_id else {}
    if not (history or all_queues or num or scheduler_id):
        where["state"] = list(_ACTIVE)
    most = num or limit
    answers = ask_sites(site, lambda one: one.select("batch_job", where, "-id", 0, most))
    rows = [listing.batch_job_object(row, entry.name) for entry, found in answers for row in reversed(found)]
    if not rows and not look.is_whole:
        say(_NONE_ACTIVE if "state" in where else "No batch job matches.")
    with listing.paged(look):
        listing.show(look, rows)


# --- term, rm ---------------------------------------------------------------------------------------------------------


@queue.command("term", cls=BalsamCommand, short_help="cancel one launch")
@click.argument("id", metavar="ID")
@long_site_option
def term(id: str, site: str) -> None:
    """Cancel a launch that waits or runs. A launcher that runs hands its jobs back first, for the next one.

    ID is the scheduler's, or ours: 7 or qlaunch7.

    \b
    Examples:
        balsam queue term 278079
        balsam queue term qlaunch7 --site laptop
    """
    entry, row = _find(id, _everything(site))
    if row["state"] in _ACTIVE:
        _cancel(entry, row)
        click.echo("Marked BatchJob for deletion")
    else:
        say("BatchJob is not queued or running")


@queue.command("rm", cls=BalsamCommand, short_help="cancel one launch or several")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@long_site_option
def remove(ids: Sequence[str], site: str) -> int:
    """Cancel launches that wait or run. A launcher that runs hands its jobs back first, for the next one.

    ID is the scheduler's, or ours: 7 or qlaunch7. If one is unknown, none is cancelled.

    \b
    Examples:
        balsam queue rm 278079
        balsam queue rm qlaunch7 qlaunch8
    """
    answers = _everything(site)
    chosen = {(entry, row["id"]): row for entry, row in (_find(word, answers) for word in ids)}
    code = 0
    for (entry, number), row in chosen.items():
        try:
            left = _cancel(entry, row)
        except BalsamError as exc:  # the others are cancelled all the same
            say(f"Error: {exc}")
            code = exc.exit_code
            continue
        how = "is being cancelled" if left["state"] in _ACTIVE else "is cancelled"
        click.echo(f"qlaunch{number} ({row['scheduler_id']}) {how}")
    return code


_Answers = Sequence[tuple[SiteEntry, list[_Row]]]


def _everything(site: str) -> _Answers:
    """Return the launches of the sites, the newest first, to cancel some. Raises BalsamError: a site cannot be read."""
    return ask_all_sites(site, lambda one: one.select("batch_job", {}, "-id"))


def _find(word: str, answers: _Answers) -> tuple[SiteEntry, _Row]:
    """Return the launch that a user names: by our number, or by the scheduler's; of several with that id the newest.

    Raises:
        UnknownBatchJob, AmbiguousJobId.
    """
    found = []
    for entry, rows in answers:
        theirs = next((row for row in rows if str(row["scheduler_id"]) == word), None)
        ours = next((row for row in rows if word in (str(row["id"]), f"qlaunch{row['id']}")), None)
        found += [(entry, row) for row in ([ours] if ours is theirs else [theirs, ours]) if row]
    if not found:
        raise UnknownBatchJob(f"There is no batch job {word}.", hint="`balsam queue ls --history` lists them.")
    if len(found) > 1:
        listed = ", ".join(f"qlaunch{row['id']} of {entry.name}" for entry, row in found)
        raise AmbiguousJobId(f"{word} could be {listed}.", hint="Give qlaunchN, and the site with --site.")
    return found[0]


def _cancel(entry: SiteEntry, row: _Row) -> _Row:
    """Ask for the end of a launch; return it as it is then. Raises CancelFailed, PollFailed."""
    from ..sites import fanout

    target = fanout.open_site(entry)
    target.update("batch_job", [{"id": row["id"], "state": "pending_deletion"}])
    return target.select("batch_job", {"id": row["id"]})[0]
