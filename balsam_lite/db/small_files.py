"""Files beside the database, such as the list of known sites: written whole."""

from __future__ import annotations

import json
import os


def write_json(path: str, value: object) -> None:
    """Write a file so that readers see the old or the new one, never a part."""
    import tempfile  # here, not above: importing it takes a fifth of the time of `balsam ls`

    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=os.path.basename(path))
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=4)
            file.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
