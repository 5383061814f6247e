"""Counts of jobs and attempts, for a launcher's progress line and its last line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from ..core import states


class Tally:
    """Jobs by the final state that they reached here, and the attempts that ended here, which may be many for one job."""

    def __init__(self) -> None:
        self.jobs: Counter[str] = Counter()  # by final state
        self.attempts: Counter[str] = Counter()  # by result: RUN_DONE, RUN_ERROR, RUN_TIMEOUT

    def add(self, jobs: Mapping[str, int], attempts: Mapping[str, int]) -> None:
        """Count what one transaction has recorded."""
        self.jobs.update(jobs)
        self.attempts.update(attempts)

    @property
    def is_used(self) -> bool:
        """Return whether anything was counted."""
        return any(self.jobs.values()) or any(self.attempts.values())

    def __str__(self) -> str:
        """Return the counts in words: `993 JOB_FINISHED, 7 FAILED; 1081 attempts: 993 done, 81 failed, 7 timed out`."""
        jobs = _listed((self.jobs[state], state) for state in states.END_STATES) or "no job ended"
        names = {states.RUN_DONE: "done", states.RUN_ERROR: "failed", states.RUN_TIMEOUT: "timed out"}
        results = _listed((self.attempts[result], name) for result, name in names.items())
        total = sum(self.attempts.values())
        return f"{jobs}; {total} attempt{'s' * (total != 1)}{results and f': {results}'}"


def _listed(counts: Iterable[tuple[int, str]]) -> str:
    return ", ".join(f"{number} {name}" for number, name in counts if number)
