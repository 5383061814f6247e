"""Times of users, and the microseconds since the epoch (UTC) that a DB holds. A datetime without a time zone is UTC."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from ..core.errors import InvalidSpec

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  # this interface's naive datetimes are UTC
_FIRST, _LAST = (end - _EPOCH for end in (datetime.min, datetime.max))  # noqa: DTZ901
_MICROSECOND = timedelta(microseconds=1)


def to_us(moment: Any, what: str) -> int:
    """A datetime in microseconds since the epoch; `what` names it in errors. What UTC has no year for is the end of time.

    Raises:
        InvalidSpec: it is something else, a date or text for example, of which nobody knows the hour or the zone.
    """
    if not isinstance(moment, datetime):
        raise InvalidSpec(
            f"{what} must be a datetime.datetime, not {moment!r}",
            hint="One without a time zone is UTC, as datetime.utcnow() gives it; one with a time zone is converted.",
        )
    plain = moment.replace(tzinfo=None)
    # The difference of the two, and not `astimezone`, which fails in the first and last hours that a datetime knows.
    since_epoch = plain - _EPOCH - (moment.utcoffset() or timedelta())
    return min(max(since_epoch, _FIRST), _LAST) // _MICROSECOND


def naive(time_us: int | None) -> datetime | None:
    """That time in UTC, without a time zone; None stays None."""
    return None if time_us is None else _EPOCH + timedelta(microseconds=time_us)


def aware(time_us: int | None) -> datetime | None:
    """That time in UTC, with the time zone; None stays None."""
    return None if time_us is None else (_EPOCH + timedelta(microseconds=time_us)).replace(tzinfo=timezone.utc)
