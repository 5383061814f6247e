"""The reasons why jobs wait or failed, as one table: no other place has words for them. `reasons` evaluates them."""

from __future__ import annotations

from typing import NamedTuple

from .takers import Obstacle


class ReasonKind(NamedTuple):
    """A kind of reason: its sentence, which completes "the job waits because: …", and what to do about it."""

    sentence: str
    remedy: str


#: Every reason, in the order in which they have to be dealt with. The documentation prints this table.
CATALOGUE: dict[str, ReasonKind] = {
    # --- the DB and its disk
    "db-read-only": ReasonKind(
        "the DB cannot be written from here: {why}",
        "Run launchers as a user and on a host that can write it: `balsam db check`.",
    ),
    "disk-full": ReasonKind("{why}, so that nothing can start", "Make room there. Launchers go on by themselves."),
    # --- the job itself
    "parent-failed": ReasonKind(
        "its parent {parent} is {state}, and it needs that one", "Run the parent again: `balsam rerun --id {parent_id}`."
    ),
    "waits-for-parents": ReasonKind("waits for {what}", "`balsam explain {parent_id}` tells more."),
    "site-parent-failed": ReasonKind(
        "its parent {parent} at another site is {state}, and it needs that one",
        "Run the parent again: `balsam rerun --site {site} --id {number}`.",
    ),
    "files-not-copied": ReasonKind(
        "the files of its parent {parent} could not be copied: {why}",
        "Correct that, or `balsam modify {job} input_files ''`. The copy is tried again, and goes on where it was.",
    ),
    "site-unreachable": ReasonKind(
        "waits for {parent}, and the site {site} cannot be reached: {why}; {heard}",
        "Correct that: `balsam site ls` shows the sites. It is tried again at least every ten minutes.",
    ),
    "site-unasked": ReasonKind(
        "waits for {parent}, and nothing runs here that asks the site {site}; {heard}",
        "Start a service, here or there: `balsam service start`. A launcher asks, too.",
    ),
    "site-reports": ReasonKind(
        "waits for {parent}: the site {site} cannot be reached from here and reports it itself; {heard}",
        "If no service runs there, start one at the site {site}: `balsam service start`.",
    ),
    "waits-for-site": ReasonKind(
        "waits for {parent} at another site, {state} as of {age}", "`balsam explain --site {site} --id {number}` tells more."
    ),
    "large-write": ReasonKind(
        "waits for the end of a change of very many jobs",
        "Nothing: the command that changes them, a launcher or the service completes it.",
    ),
    "held-back": ReasonKind("is held back {until}{why}", "Nothing: it is released by itself."),
    "held-by-trouble": ReasonKind("is held back {until}: {why}", "Correct what it names, or wait for the next try."),
    "runs-apart": ReasonKind(
        "{deaths}; it will be run apart from other jobs",
        "`balsam rerun --id {job}` clears the count, once the cause of the deaths is known.",
    ),
    "no-application": ReasonKind(
        "its application {application!r} is not registered, so that it would fail",
        "`balsam app --name {application} --executable PROGRAM`, or `balsam modify {job} application NAME`.",
    ),
    "no-program": ReasonKind(
        "the program of its application {application!r} is not on this host: {path}",
        "Put it there, or register the application again: `balsam app --name {application} --executable PROGRAM`.",
    ),
    "no-stage-in": ReasonKind(
        "there is nothing to stage in: {why}", "Make the files, or `balsam modify {job} stage_in_url URL`."
    ),
    # --- its holder
    "holder-silent": ReasonKind(
        "{holder} holds it: {sign}",
        "The next launcher or the service watches it for {expiry}, and takes the job if it is dead.",
    ),
    "clock-ahead": ReasonKind(
        "{holder} holds it, and {sign}",
        "Correct the clocks (`balsam db check` compares them); the holder is watched meanwhile.",
    ),
    "holder-dead": ReasonKind("{holder}, which held it, is dead", "{reaper} frees it."),
    "no-holder": ReasonKind(
        "is RUNNING, and no launcher holds it", "`balsam killjob --id {job}`, then `balsam rerun --id {job}`."
    ),
    # --- live launchers
    "launcher-starting": ReasonKind("the launcher is getting ready", "Nothing: it takes jobs in a moment."),
    "other-workflow": ReasonKind(
        "it takes only jobs of workflow {filter}, and this is one of {workflow}",
        "Start a launcher with `--wf-filter '{workflow}'` or without a filter.",
    ),
    "other-tags": ReasonKind("it takes only jobs with {tags}", "Start a launcher without `--tag`, or give the job the tag."),
    "planned-only": ReasonKind(
        "it takes only jobs that are planned for qlaunch{launch}",
        "Start another launcher; the service plans jobs for launches.",
    ),
    "job-mode": ReasonKind("{no_mpi}", "`balsam launcher --job-mode mpi`, or mixed; `balsam submit-launch --job-mode mpi`."),
    "too-many-nodes": ReasonKind(
        "needs {nodes} nodes, {taker} has {total}", "Submit a larger launch, or `balsam modify {job} num_nodes {total}`."
    ),
    "too-many-gpus": ReasonKind(
        "needs {wanted} GPUs per node, the nodes of {taker} have {most}{few}",
        "Run it on nodes with more GPUs, or reduce gpus_per_rank; GPUS_PER_NODE corrects what was found.",
    ),
    "too-many-ranks": ReasonKind(
        "needs {wanted} ranks per node, the nodes of {taker} have {most} CPUs{few}",
        "Use more nodes with fewer ranks on each: `balsam modify {job} ranks_per_node {most}`.",
    ),
    "time-is-up": ReasonKind("the launcher's time is up", "Start another launcher."),
    "time-left": ReasonKind(
        "wall_time_minutes is {minutes}{more}, {left} minutes are left",
        "Start a launcher with more time, or correct the estimate: `balsam modify {job} wall_time_minutes MINUTES`.",
    ),
    "in-trouble": ReasonKind("{trouble}", "Correct it on that host. The launcher tries again by itself."),
    "apart": ReasonKind("waits until jobs have ended that run apart from others", "Nothing: it lasts until these have ended."),
    "nested": ReasonKind(
        "every job that runs ({running}) waits for other jobs itself, and no place is free for those",
        "Give them more places: another launcher, more --nodes, a larger node_packing_count of the jobs, or "
        "BalsamExecutor(launcher=…) with a larger number.",
    ),
    "no-place": ReasonKind("waits for a free place{running}", "Wait, or start another launcher."),
    "no-step": ReasonKind(
        "waits to be prepared, as {steps} other job(s) are in their steps",
        "Wait, or start a launcher with more threads: `balsam launcher --num-transition-threads NUMBER`.",
    ),
    "priority": ReasonKind("{number} other job(s) come first", "`balsam modify {job} priority NUMBER`; larger is earlier."),
    # --- launches
    "launch-queued": ReasonKind(
        "no launcher runs yet, {launch} is {state} in the batch queue{why}", "Wait. `balsam queue ls` shows the queue."
    ),
    "launch-starting": ReasonKind(
        "no launcher runs yet, {launch} is {state}, but its launcher has not begun", "Wait. Its output is in {log}."
    ),
    "launch-submitting": ReasonKind("no launcher runs yet, {launch} is {state}", "Wait until the scheduler has answered."),
    # --- the service and its policy
    "policy-broken": ReasonKind("the queue policy cannot be used: {why}", "Correct the file; the service reads it again."),
    "policy-off": ReasonKind(
        "no queue of the policy is switched on", "`submit-jobs = on` in the policy, or `balsam submit-launch`."
    ),
    "policy-nodes": ReasonKind(
        "needs {nodes} nodes; the policy allows {most} at most",
        "Allow more in the policy, or `balsam submit-launch -n {nodes}`.",
    ),
    "policy-time": ReasonKind(
        "wall_time_minutes is above {most}: the policy allows {longest} minutes at most for {nodes} node(s), and {margin} are "
        "for the launch itself",
        "Allow more in the policy, or `balsam submit-launch -n {nodes} -t MINUTES`.",
    ),
    "max-queued": ReasonKind("{queue}: {why}", "Wait, or raise max-queued in the policy."),
    "queue-paused": ReasonKind("{queue}: {why}", "Correct what it names; the service tries again at {time}."),
    "service-waits": ReasonKind(
        "no launcher runs; the service submits one when its policy allows", "Wait. `balsam service status` tells more."
    ),
    "service-silent": ReasonKind("{service} submits launchers: {sign}", "If it is dead: `balsam service start`."),
    "launcher-silent": ReasonKind(
        "no launcher is certainly alive; {holder}: {sign}. It is dead, or the clocks differ",
        "Start a launcher: it watches the other one, and takes its jobs if that is dead.",
    ),
    "no-launcher": ReasonKind(
        "no launcher is alive for this DB",
        "Start one: `balsam launcher --consume-all --job-mode serial`, or submit one: `balsam submit-launch`.",
    ),
    "unsettled": ReasonKind("has run, and waits for its postprocess script or stage-out", "Start a launcher, which does that."),
    # --- ended jobs
    "failed-with-parent": ReasonKind("{why}", "Correct that one, then `balsam rerun --id {job}`: its children follow."),
    "failed-with-site-parent": ReasonKind(
        "its parent {parent} at another site is {state}",
        "Correct that one, then `balsam rerun --site {site} --id {number}`: its children follow.",
    ),
    "failed-exit": ReasonKind("its program failed, {why}", "Correct the cause, then `balsam rerun --id {job}`."),
    "failed-signal": ReasonKind("its program was ended by {why}", "Correct the cause, then `balsam rerun --id {job}`."),
    "failed-memory": ReasonKind(
        "its program ran out of memory, {why}",
        "Give it more: fewer jobs per node (node_packing_count), more nodes. Then `balsam rerun --id {job}`.",
    ),
    "failed-start": ReasonKind(
        "its program {why}",
        "Correct the application's command line or the files that it needs, then `balsam rerun --id {job}`.",
    ),
    "failed-result": ReasonKind(
        "its program left no result, {why}", "It ended before it could store one. Then `balsam rerun --id {job}`."
    ),
    "failed-hook": ReasonKind("its script failed, {why}", "Correct the script, then `balsam rerun --id {job}`."),
    "failed-stage": ReasonKind("its files could not be copied, {why}", "Correct that, then `balsam rerun --id {job}`."),
    "failed-stopped": ReasonKind(
        "it was {why} at the end of a launcher and is not started again",
        "`balsam modify {job} auto_timeout_retry True`, or a launcher with more time, then `balsam rerun --id {job}`.",
    ),
    "failed-restarts": ReasonKind(
        "it reached its {why}", "`balsam rerun --id {job}` begins anew; restart_limit sets how many restarts it has."
    ),
    "failed-killer": ReasonKind(
        "it kills its launchers: {why}", "Reduce what it takes of the node, such as memory. Then `balsam rerun --id {job}`."
    ),
    "failed-by-user": ReasonKind("it is FAILED, {why}", "`balsam rerun --id {job}` runs it again."),
    "failed": ReasonKind("it failed, cause {why}", "Correct the cause, then `balsam rerun --id {job}`."),
    "edited": ReasonKind(
        "{fields} changed since attempt {attempt}, and the next one has the new values",
        "`balsam rerun --id {job}` runs it again; `balsam ls --history --id {job}` shows the changes.",
    ),
    "failed-alike": ReasonKind("{number} other(s) failed alike{where}", "`balsam explain --state FAILED` groups them."),
    "killed": ReasonKind("was killed{why}", "`balsam rerun --id {job}` runs it again."),
    "stale": ReasonKind(
        "its result is older than that of its parent {parent}, which ran again later",
        "`balsam rerun --id {job}` runs it again.",
    ),
    "unexamined": ReasonKind("not examined in the given time", "`balsam explain` takes the time that it needs."),
}
#: Reasons that do not keep a job from running.
NOTES = frozenset(("stale", "edited", "failed-alike"))


class Reason(NamedTuple):
    """Why a job waits or failed."""

    code: str  # of the catalogue
    text: str  # completes "the job waits because: …"
    remedy: str
    who: str = ""  # the launchers or launches of which it is true; "": it is true of the job whatever runs it

    def __str__(self) -> str:
        """Return the sentence with those of whom it is true, which come before the lines of an output."""
        first, newline, rest = self.text.partition("\n")
        return f"{first} ({self.who}){newline}{rest}" if self.who else self.text


class Group(NamedTuple):
    """Jobs that wait or failed for the same reason."""

    reason: Reason
    jobs: int
    example: int | None  # the number of one of them


def make(code: str, who: str = "", /, **values: object) -> Reason:
    """Return a reason of the catalogue with these values in its sentence and its remedy."""
    entry = CATALOGUE[code]
    known: dict[str, object] = {"more": "", "job": "JOB", "taker": "this launcher", **values}
    return Reason(code, entry.sentence.format_map(known), entry.remedy.format_map(known), who)


def text_of(obstacle: Obstacle, taker: str = "this launcher") -> str:
    """Return the sentence of an obstacle, as the launcher or the launch itself tells it."""
    return make(obstacle.code, **{"taker": taker, **obstacle.values}).text
