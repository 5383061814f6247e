"""A Database that is dropped without being closed. Here, to be run on each Python: from 3.13 on sqlite3 warns of it."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path

from balsam_lite.db.engine import directories


def test_a_database_that_is_dropped_closes_its_connection_and_warns_of_nothing(tmp_path: Path) -> None:
    database = directories.create(str(tmp_path / "db"))
    with database.read() as cx:
        assert cx.execute("SELECT count(*) FROM job").fetchone() == (0,)
    del cx
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        del database
        gc.collect()
    assert not said
    assert not (tmp_path / "db" / "balsam.sqlite3-wal").exists()
