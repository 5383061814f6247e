"""`balsam export` and `balsam import`: jobs with their applications, history and files, to an archive and back."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..core import display, states
from ..core.errors import InputError
from . import output
from .common import long_site_option, one_site, pairs, progress_of, say, warn
from .group import BalsamCommand, LaterOption, option
from .selection import ChosenJobs, Selection, dry_run_option, selection_options

if TYPE_CHECKING:
    from ..db.engine.connection import Database
    from ..db.store.merge import Merged, MergeOptions
    from ..sites.interface import SiteInterface

_TABLES = {"jobs": "job", "apps": "application", "events": "event", "runs": "run", "edits": "edit", "files": "file"}


def local_database(site: SiteInterface, command: str) -> Database:
    """Return the DB of a site on this host. Raises InputError: the site is on another one."""
    from ..sites.local import LocalSite

    if not isinstance(site, LocalSite):
        name = output.one_line(site.entry.name)
        raise InputError(
            f"The site {name} is on another host, and an archive is written and read where the DB is.",
            hint=f"Run `balsam {command}` there, and copy the archive.",
        )
    return site.database


@click.command(cls=BalsamCommand)
@click.argument("file", metavar="FILE", type=click.Path())
@option(
    "--files", "patterns", multiple=True, metavar="PATTERN",
    help="Also files of the working directories whose path there matches; '*' is all of them; may be repeated.",
)  # fmt: skip
@option("--ro-crate", "is_crate", is_flag=True, help="Add metadata that make it a Workflow Run RO-Crate.")
@option("--force", cls=LaterOption, is_flag=True, help="Replace an archive of that name.")
@option("--json", "as_json", is_flag=True, help="Print what was exported as a JSON object.")
@selection_options()
@long_site_option
def export(
    file: str, patterns: Sequence[str], is_crate: bool, force: bool, as_json: bool, chosen: Selection, site: str
) -> None:  # fmt: skip
    """Write jobs with their applications, history and files to an archive, which `balsam import` reads.

    FILE ends in .tar, .tar.gz or .tar.zst; with any other name it is a directory. Without conditions it holds all jobs. It is
    written as of one moment, while launchers work, and gets its name when it is complete. Values of secret environment
    variables (of which a word is TOKEN, KEY, SECRET or PASSWORD) are left out.

    \b
    Examples:
        balsam export campaign.tar.gz
        balsam export --wf scan --state JOB_FINISHED --files '*.out' \\
            --files 'result.*' scan.tar.zst
        balsam export --tag paper=1 --files '*' --ro-crate paper/
    """
    from ..campaigns import exports

    found = ChosenJobs.find(site, chosen)
    if len(found.sites) > 1:
        raise InputError(f"Jobs{found.of_sites} match.", hint="Choose one site with --site.")
    there = found.sites[0][0] if found.sites else one_site(site)
    db = local_database(there, "export")
    with progress_of(found.total) as progress:
        done = exports.export(
            db, os.path.expanduser(file), found.where, patterns=patterns, conditions=str(chosen), force=force,
            is_crate=is_crate, progress=progress,
        )  # fmt: skip
    for pattern in done.unmatched:
        warn(f"No file matches --files {output.one_line(pattern)}.")
    if done.secrets:
        named = _counted(done.secrets)
        warn(f"Values of secret environment variables were left out: {named}. `balsam import --env VAR=VALUE` gives them.")
    if done.outside:
        warn(f"Applications name files outside of the DB, which are not in the archive: {', '.join(done.outside)}")
    if done.absent_parents:
        say(f"{output.plural(done.absent_parents, 'parent')} of these jobs did not match and did not come along.")
    if as_json:
        keys = {"path": done.path, **done.counts, "file_bytes": done.file_bytes, "states": done.states}
        more = {"secrets": done.secrets, "outside": done.outside, "absent_parents": done.absent_parents}
        output.write_json(({**keys, **more},), sys.stdout)
        return
    parts = [output.plural(number, _TABLES[name]) for name, number in done.counts.items() if number or name == "jobs"]
    size = f", {display.size(done.file_bytes)} of files" if done.counts["files"] else ""
    click.echo(f"Exported {_listed(parts)} to {output.one_line(done.path)} ({display.size(_size_of(done.path))}{size}).")


def _counted(found: Mapping[str, int]) -> str:
    return ", ".join(f"{output.one_line(name)} ({output.plural(number, 'time')})" for name, number in found.items())


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _size_of(path: str) -> int:
    if not os.path.isdir(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)


@click.command("import", cls=BalsamCommand)
@click.argument("file", metavar="FILE", type=click.Path())
@option("--into-workflow", "workflow", metavar="NAME", default="", help="Put all jobs into this workflow.")
@option("--new-ids", is_flag=True, help="Add copies with new ids, also of jobs that are here.")
@option("--runnable", is_flag=True, help="Let jobs that have not ended run here; else they arrive as USER_KILLED.")
@option("--keep-apps", is_flag=True, help="Use applications of this DB that differ from those in the archive.")
@option("--rename-apps", is_flag=True, help="Add such applications from the archive with another name.")
@option("--files-to", metavar="DIR", default="", help="Put the jobs' files below DIR, which becomes their directory.")
@option("--from", "kind", cls=LaterOption, metavar="KIND", help="What wrote the file: balsam03 or joblog. [default: export]")
@option("--directory", metavar="DIR", default="", help="With --from: directory of the old DB, or in which commands ran.")
@option("--timezone", metavar="ZONE", default="", help="With --from balsam03: zone of its times. [default: UTC]")
@option("--copy-files", is_flag=True, help="With --from balsam03: copy the jobs' directories; else they stay where they are.")
@option("--env", "environ", multiple=True, metavar="VAR=VALUE", help="Value of a variable that the export left out.")
@option("--json", "as_json", is_flag=True, help="Print what was imported as a JSON object.")
@dry_run_option
@long_site_option
def import_jobs(
    *, file: str, workflow: str, new_ids: bool, runnable: bool, keep_apps: bool, rename_apps: bool, files_to: str,
    environ: Sequence[str], as_json: bool, dry_run: bool, site: str, **of_source: Any,
) -> None:  # fmt: skip
    """Add the jobs of an archive that `balsam export` wrote, with their applications, history and files.

    With --from it adds what another program has kept of its jobs: balsam03 is a DB of Balsam 0.3 (its directory, while its
    server runs; a postgresql:// URL; an SQLite file; or the JSON of Django's dumpdata), joblog the file of GNU parallel's
    --joblog.

    All of them or none, while launchers work. Jobs that are here already, by their id, are skipped. Jobs that have not ended
    arrive as USER_KILLED, so that nothing starts by itself: `balsam rerun` lets them run. `balsam show` names where a job
    comes from.

    \b
    Examples:
        balsam import campaign.tar.gz --dry-run
        balsam import scan.tar.zst --into-workflow scan-2025
        balsam import scan.tar.zst --runnable --env HF_TOKEN="$HF_TOKEN"
        balsam import --from balsam03 ~/old-db --dry-run
        balsam import --from joblog log.tsv --into-workflow sims
    """
    from ..campaigns import imports
    from ..db.store.merge import MergeOptions

    if keep_apps and rename_apps:
        raise click.UsageError("--keep-apps and --rename-apps exclude each other.")
    db = local_database(one_site(site), "import")
    policy = "keep" if keep_apps else "rename" if rename_apps else "refuse"
    folder = os.path.abspath(os.path.expanduser(files_to)) if files_to else ""
    options = MergeOptions(new_ids, workflow, runnable, policy, folder, dry_run)
    path = os.path.expanduser(file)
    if _is_of_source(of_source, environ):
        _import_source(db, path, of_source, options, as_json)
        return
    done = imports.import_archive(db, path, options, environ=pairs(environ, "--env"), progress_of=progress_of)
    if done.missing_environ and done.merged.added.number:
        named = _counted(done.missing_environ)
        warn(f"These environment variables have no value, as the export left them out: {named}. --env VAR=VALUE gives one.")
    if as_json:
        found = {**merged_object(done.merged), "files": done.files, "missing_environ": done.missing_environ}
        output.write_json((found,), sys.stdout)
        return
    source = f"{output.one_line(file)}, written {display.moment(done.written_us)[:-4]}"
    tell_merged(done.merged, f"{source} on {output.one_line(done.manifest['host'])}", dry_run, done.files)


def _is_of_source(given: Mapping[str, Any], environ: Sequence[str]) -> bool:
    """Return whether the file is that of another program. Raises UsageError: options do not fit together."""
    named = [f"--{name.replace('_', '-')}" for name in ("directory", "timezone", "copy_files") if given[name]]
    if given["kind"] and environ:
        raise click.UsageError("--env gives values that `balsam export` left out; it does not go with --from.")
    if named and not given["kind"]:
        raise click.UsageError(f"{named[0]} goes with --from KIND.")
    return bool(given["kind"])


def _import_source(db: Database, path: str, given: Mapping[str, Any], options: MergeOptions, as_json: bool) -> None:
    from ..campaigns.importers import sources
    from ..campaigns.importers.source_content import SourceOptions, zone_of

    zone = zone_of(given["timezone"])
    source = SourceOptions(os.path.expanduser(given["directory"]), "", zone, given["copy_files"])
    merged = sources.import_source(db, given["kind"], path, source, options, progress_of)
    if as_json:
        output.write_json((merged_object(merged),), sys.stdout)
    else:
        tell_merged(merged, output.one_line(path), options.dry_run)


def merged_object(merged: Merged) -> dict[str, Any]:
    """Return what was merged as a JSON object."""
    found = merged._asdict()
    added = found.pop("added")
    return {"jobs": added.number, "first": added.first if added.number else None, **found}


def tell_merged(merged: Merged, source: str, dry_run: bool, files: int = 0) -> None:
    """Print what was merged, or would be."""
    added, would = merged.added, "Would import" if dry_run else "Imported"
    numbers = ""
    if added.number and not dry_run:
        last = added.first + added.number - 1
        numbers = f" as #{added.first}" + f" to #{last}" * (last > added.first)
    with_files = f" with {output.plural(files, 'file')}" * bool(files)
    click.echo(f"{would} {output.plural(added.number, 'job')}{with_files} from {source}{numbers}.")
    if merged.already_here:
        say(f"{output.plural(merged.already_here, 'job')} skipped: here already. --new-ids adds copies.")
    if merged.same_key:
        say(f"{output.plural(merged.same_key, 'job')} skipped: a job here has the same unique_key.")
    if merged.redrawn:
        say(f"{output.plural(merged.redrawn, 'job')} with a new id: another job here has the first 8 characters of the former.")
    if merged.moved:
        say(f"{output.plural(merged.moved, 'job')} whose user_workdir is not here: the files are below data/ now.")
    if merged.new_apps:
        say(f"{output.plural(len(merged.new_apps), 'application')} added: {_names(merged.new_apps)}")
    if merged.kept_apps:
        say(f"{output.plural(len(merged.kept_apps), 'application')} kept as here: {_names(merged.kept_apps)}")
    for name, other in merged.renamed_apps.items():
        say(f"The application {output.one_line(name)} is {output.one_line(other)} here.")
    if merged.unknown_apps:
        warn(f"No application here has these names, which jobs have: {_names(merged.unknown_apps)}. `balsam app` adds one.")
    if merged.orphaned:
        warn(f"{output.plural(merged.orphaned, 'job')} lost a parent that is neither here nor in the archive.")
    if merged.stopped:
        by_state = _by_state(merged.stopped)
        jobs = sum(merged.stopped.values())
        are = "would be" if dry_run else "are" if jobs > 1 else "is"
        number = output.plural(jobs, "job")
        say(f"{number} had not ended ({by_state}) and {are} USER_KILLED. `balsam rerun` or import --runnable lets them run.")
    if dry_run:
        click.echo("Nothing was changed.")


def _names(names: Sequence[str]) -> str:
    return output.one_line(", ".join(names[:10])) + ", …" * (len(names) > 10)


def _by_state(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[state]} {state}" for state in states.STATES if state in counts)
