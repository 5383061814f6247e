"""Every error that balsam_lite raises on purpose.

A message states what happened, with which values; `hint` states what to do next. Only the command line turns these into
exit codes and text (`exit_code`, `str(error)`); the library raises and never prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any


class BalsamError(Exception):
    """Something went wrong in balsam_lite."""

    exit_code = 1

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        self.message = message or (self.__doc__ or "").splitlines()[0]
        self.hint = hint
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


# --- what the user gave -----------------------------------------------------------------------------------------------


class InputError(BalsamError, ValueError):
    """The input cannot be used."""

    exit_code = 2


class InvalidSpec(InputError):
    """A job or an application has invalid values."""


class TemplateError(InvalidSpec):
    """The command template of an application cannot be rendered as a command line."""


class InvalidApplication(InvalidSpec, AttributeError):
    """The class of an application cannot be used."""


class InvalidRun(InvalidSpec, TypeError):
    """The `run` function of an application cannot be called."""


class InvalidStateError(InputError):
    """There is no such state."""


class UnknownField(InputError):
    """There is no such field."""

    @classmethod
    def named(cls, what: str, name: object, known: Iterable[str]) -> UnknownField:
        """Return the error that a `what` has no field `name`, with the nearest of the known ones."""
        fields = list(known)
        article = "An" if what[0] in "aeiou" else "A"
        meant = did_you_mean(str(name).partition("__")[0], fields)
        return cls(f"{article} {what} has no field {name!r}.{meant}", hint=f"Its fields are: {', '.join(fields)}")


class UnknownAttribute(UnknownField, AttributeError):
    """An object has no settable field with that name."""


class NotFound(BalsamError, LookupError):
    """Nothing matches."""

    exit_code = 3


class UnknownApp(NotFound):
    """No application with that name is registered in this DB."""

    @classmethod
    def named(cls, name: object, known: Iterable[str], place: str = "in this DB") -> UnknownApp:
        """Return the error about one name, with the nearest known name and the first 20 known ones."""
        first = list(islice(known, 21))
        listed = ", ".join(first[:20]) + ", …" * (len(first) > 20)
        hint = (
            f"Registered are: {listed}"
            if first
            else "None is registered yet: `balsam app --name NAME --executable …` adds one."
        )
        return cls(f"There is no application {name!r} {place}.{did_you_mean(name, first)}", hint=hint)


class UnknownJob(NotFound):
    """No job matches."""


class UnknownBatchJob(NotFound):
    """No batch job matches."""


class UnknownSite(NotFound):
    """No site matches."""


class AmbiguousSite(InputError):
    """More than one site matches."""


class DuplicateSite(InputError):
    """A site with that name exists already."""


class AmbiguousJobId(InputError):
    """More than one job matches."""


class DuplicateJobId(InputError):
    """A job with that id, or with the same first 8 characters, exists already."""


class DuplicateKey(InputError):
    """A job with that unique_key exists already."""


class DuplicateApp(InputError):
    """An application with that name exists already."""


class DuplicateDependency(InputError):
    """That dependency exists already."""


class DependencyCycle(InputError):
    """The dependency would close a cycle."""


class InvalidParentsError(InputError):
    """These jobs cannot be its parents."""


class SettingsError(InputError):
    """The settings cannot be used."""


# --- states -----------------------------------------------------------------------------------------------------------


class StateError(BalsamError):
    """The job's state does not allow this."""


class IllegalTransition(StateError):
    """The state table has no such edge for this actor."""


class LostLease(StateError):
    """The lease was revoked; its jobs now belong to another launcher."""


class ParentInUse(StateError):
    """Other jobs depend on this one."""


class NoCurrentJob(StateError, RuntimeError):
    """This process does not belong to a job."""


# --- the database -----------------------------------------------------------------------------------------------------


class DatabaseError(BalsamError):
    """The Balsam DB cannot be used."""


class NoDatabase(DatabaseError):
    """No Balsam DB is active."""


class NotABalsamDB(DatabaseError):
    """There is no Balsam DB at that path."""


class DatabaseGone(NotABalsamDB):
    """The Balsam DB that was open was removed, moved or replaced."""


class DatabaseEmptied(NotABalsamDB):
    """The file of a previously used Balsam DB is empty."""


class SchemaMismatch(DatabaseError):
    """The DB was written by another version of balsam_lite."""


class CopiedDatabase(DatabaseError):
    """The DB is a copy that `balsam init` has not made a separate DB yet."""


class UnsafeFilesystem(DatabaseError):
    """The DB is on a file system for which it was not set up."""


class DatabaseBusy(DatabaseError):
    """Another process kept the DB busy for too long."""

    exit_code = 75  # EX_TEMPFAIL: the same command may succeed a minute later


class LostSession(DatabaseBusy):
    """Others took this process for dead during its exclusive session; nothing was written."""


class DatabaseFull(DatabaseError):
    """The disk is full; nothing was written."""


class DatabaseReadOnly(DatabaseError):
    """The DB cannot be written."""


# --- the batch scheduler ----------------------------------------------------------------------------------------------


class SchedulerError(BalsamError):
    """The batch scheduler's command failed."""

    def __init__(
        self,
        message: str = "",
        *,
        argv: Sequence[str] = (),
        returncode: int | None = None,
        stdout: str = "",
        stderr: str = "",
        hint: str = "",
    ) -> None:
        self.argv, self.returncode, self.stdout, self.stderr = list(argv), returncode, stdout, stderr
        blocks = [message or (self.__doc__ or "")]
        if argv:
            blocks.append(f"command: {' '.join(argv)}")
            blocks.append(f"exit code: {'<none>' if returncode is None else returncode}")
            blocks += [f"{name}: {_shortened(text) or '<empty>'}" for name, text in (("stdout", stdout), ("stderr", stderr))]
        super().__init__("\n".join(blocks), hint=hint)


def _shortened(text: str, limit: int = 4000) -> str:
    """Shorten a text, such as megabytes of output, to its first and last parts."""
    text = text.strip()
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}\n… ({len(text) - limit} characters left out) …\n{text[-limit // 2 :]}"


class SubmitFailed(SchedulerError):
    """The batch job was not accepted."""


class SubmitUncertain(SubmitFailed):
    """It is unknown whether the batch job was accepted: the scheduler's command was killed, or gave no answer."""


class PollFailed(SchedulerError):
    """The scheduler did not answer; nothing is known about its jobs."""


class CancelFailed(SchedulerError):
    """The batch job was not cancelled."""


# --- running ----------------------------------------------------------------------------------------------------------


class LaunchError(BalsamError):
    """The launcher cannot do this."""


class NoNodes(LaunchError):
    """The launcher has no node to run on."""


class SpawnFailed(LaunchError):
    """A program could not be started."""


class MachineTrouble(LaunchError):
    """The machine, not the job, prevents a program from starting: too few processes, a full disk, a missing mount.

    The job is put back without using a restart. `scope` names what is affected if other programs can start (a program, a
    directory, a file system); it is HOST if none can start on this host, and empty if none can start anywhere.
    """

    HOST = "this host"

    def __init__(self, message: str = "", scope: str = "", *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.scope = scope


class AnotherService(LaunchError):
    """Another service is currently running on this Balsam DB"""


class ApplicationLost(LaunchError):
    """The Python class of an application cannot be found where it was defined."""


class StagingFailed(LaunchError):
    """Files could not be linked or copied for a job."""


# --- sites on other hosts ---------------------------------------------------------------------------------------------


class SiteUnreachable(BalsamError):
    """A site on another host, or the file system of a site on this host, did not answer."""


# --- waiting for jobs -------------------------------------------------------------------------------------------------


class TaskFailed(BalsamError):
    """A job that was waited for did not finish: it FAILED, or it was deleted."""


class RemoteError(BalsamError):
    """An error where a job ran cannot be raised as the original exception; the message contains it as text."""


class WaitTimeout(BalsamError, TimeoutError):
    """The wait timed out. It is also Python's own TimeoutError; `partial` contains what was known until then."""

    partial: Any = None


# --- unknown names ----------------------------------------------------------------------------------------------------


def nearest(name: object, known: Iterable[str]) -> str | None:
    """Return the known name most similar to `name`, or None."""
    from difflib import get_close_matches  # only an error needs it

    return next(iter(get_close_matches(str(name), list(known), n=1, cutoff=0.5)), None)


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return " Did you mean 'NEAREST'?" to append to an error's message, or "" if no known name is near."""
    near = nearest(name, known)
    return f" Did you mean {near!r}?" if near else ""
