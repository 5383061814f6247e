"""Find the nearest name to a misspelt one, for every error that reports an unknown name."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(name: object, known: Iterable[str]) -> str | None:
    """Return the known name most similar to `name`, or None."""
    from difflib import get_close_matches  # only an error needs it

    return next(iter(get_close_matches(str(name), list(known), n=1, cutoff=0.5)), None)


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return " Did you mean 'NEAREST'?" to append to an error's message, or "" if no known name is near."""
    near = nearest(name, known)
    return f" Did you mean {near!r}?" if near else ""
