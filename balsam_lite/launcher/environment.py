"""What is recorded of a launcher's environment once: versions, modules, and what differs from its submitter's."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from .. import __version__
from ..db.store.batch_jobs import kept_variables

#: Limits of the recorded difference: number of variables, and characters of a value.
_MAX_VARIABLES, _MAX_CHARACTERS = 200, 1000


def record_of(submitted: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return the record of this process as JSON: modules, versions, the hash of its environment and its difference.

    `submitted` holds the environment of the submitter (see `batch_jobs.kept_variables`) as JSON; "" or "{}": there was none, or
    it is unknown. Of a variable that differs the record has both values, null for none. Launchers of the same hash have the
    same variables; secret values are masked, and neither compared nor hashed.
    """
    here = kept_variables(environ)
    record: dict[str, Any] = {
        "modules": [name for name in environ.get("LOADEDMODULES", "").split(":") if name],
        "versions": {
            "balsam_lite": __version__,
            "Python": platform.python_version(),
            os.uname().sysname: os.uname().release,
        },
        "environment_hash": hashlib.sha256(json.dumps(here, sort_keys=True).encode()).hexdigest()[:16],
    }
    there = None
    with suppress(ValueError):
        there = json.loads(submitted)
    if there:
        names = sorted(name for name in {*here, *there} if here.get(name) != there.get(name))
        record["environment_difference"] = {
            name: [_cut(there.get(name)), _cut(here.get(name))] for name in names[:_MAX_VARIABLES]
        }
        if len(names) > _MAX_VARIABLES:
            record["further_differences"] = len(names) - _MAX_VARIABLES
    return json.dumps(record)


def _cut(value: str | None) -> str | None:
    return value if value is None or len(value) <= _MAX_CHARACTERS else f"{value[:_MAX_CHARACTERS]}…"
