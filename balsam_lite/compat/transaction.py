"""`django.db.transaction`: `atomic`, as a context manager and as a decorator.

A block reads what it has written, as Django's does. Each statement in it is a short transaction, so that launchers and other
users never wait for the block; if an exception leaves the block, its writes are taken back (`db.store.compensation`). Jobs that
it adds cannot start before it ends, or 60 s after they were added. Changes that other jobs have acted on stay, with a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ContextDecorator
from typing import Any

from ..db.manager import active
from ..db.store import journal

__all__ = ["atomic", "on_commit"]


class Incomplete(RuntimeWarning):
    """Some writes of a failed block could not be taken back."""


class _Atomic(ContextDecorator):
    def __init__(self) -> None:
        self._marks: list[tuple[int, int] | None] = []  # what the journal held when the block began; None: it is the outermost

    def _recreate_cm(self) -> _Atomic:
        return _Atomic()

    def __enter__(self) -> None:
        open_one = journal.current()
        self._marks.append(None if open_one is None else (len(open_one.entries), len(open_one.callbacks)))
        if open_one is None:
            journal.set_current(journal.Journal(active()))

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        from ..db.store import compensation

        mark, block = self._marks.pop(), journal.current()
        if block is None:
            return  # a forked child: the block belongs to its parent
        if kind is not None:
            journal.set_current(None)  # what is written now is no part of the block
            entries, callbacks = mark or (0, 0)
            left = compensation.take_back(block.db, block.entries[entries:])
            del block.entries[entries:], block.callbacks[callbacks:]
            if mark is not None:
                journal.set_current(block)
            if left:
                text = f"The block failed; it could not be taken back whole: {'; '.join(left)}"
                warnings.warn(text, Incomplete, stacklevel=2)
        elif mark is None:
            journal.set_current(None)
            compensation.keep(block)
            for call in block.callbacks:
                call()


def atomic(using: Any = None, savepoint: bool = True, durable: bool = False) -> Any:
    """Take back all writes of the block, or of the decorated function, if an exception leaves it.

    A block inside another one takes back its own writes only. The arguments have no effect; `@atomic` needs no parentheses.

    Raises:
        NoDatabase: no DB is active.
    """
    return _Atomic()(using) if callable(using) else _Atomic()


def on_commit(function: Callable[[], object], using: Any = None, robust: bool = False) -> None:
    """Call `function` when the outermost open block has ended without an exception; at once outside of any."""
    open_one = journal.current()
    if open_one is None:
        function()
    else:
        open_one.callbacks.append(function)
