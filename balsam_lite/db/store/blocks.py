"""Keep rows aside in an unnamed temporary file, block by block, so that memory stays constant."""

from __future__ import annotations

import marshal
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from ...core.errors import DatabaseError
from ..engine.filesystem import failure

#: Bytes of the number that gives the length of a block.
_LENGTH = 8


class Blocks:
    """Blocks of values that `marshal` can write, in the order in which they were put. Use as a context manager."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Blocks:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._file:
            self._file.close()

    def put(self, block: Any) -> None:
        """Append a block. Raises DatabaseError: the temporary file cannot be written."""
        try:
            self._file = self._file or tempfile.TemporaryFile(prefix="balsam-")
            # As one block with its length before it: `marshal.load` would read the file value by value, ten times slower.
            data = marshal.dumps(block)
            self._file.write(len(data).to_bytes(_LENGTH, "big") + data)
        except OSError as exc:
            folder = tempfile.gettempdir()
            raise DatabaseError(f"The jobs cannot be put aside in {folder}: {failure(exc, folder)}") from exc

    def __iter__(self) -> Iterator[Any]:
        """Yield all blocks; only one such loop may run at a time."""
        if self._file:
            self._file.seek(0)
            while length := self._file.read(_LENGTH):
                yield marshal.loads(self._file.read(int.from_bytes(length, "big")))
