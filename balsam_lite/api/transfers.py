"""Balsam 0.7's `transfers`: the slots of an application, and what a job puts into them, as stage-in and stage-out.

A slot is {"required": bool, "direction": "in" or "out", "local_path": PATH, "description": str, "recursive": bool}. A job gives
each slot a place, "ALIAS:/PATH" or {"location_alias": ALIAS, "path": PATH}. The alias `local` is the site's own host; any other
one is a host that ssh reaches, from which rsync copies.

A job copies from one place before its run, and to one directory after it, under the same names. What cannot be written so is
refused, with the reason.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from typing import Any

from ..core.errors import InvalidSpec, did_you_mean

_KEYS = {"required": bool, "direction": str, "local_path": str, "description": str, "recursive": bool}
_NEEDED = ("required", "direction", "local_path")
#: The alias of the host of the site itself.
LOCAL = "local"


def check_slots(slots: Any) -> str:
    """Return what is wrong with the `transfers` of a class, to follow its name; "" if nothing is."""
    if not isinstance(slots, Mapping) or not all(isinstance(slot, Mapping) for slot in slots.values()):
        return f"has `transfers` that are no dictionary of slots: {slots!r}"
    wrong = ((name, _fault(slot)) for name, slot in slots.items())
    return next((f"is wrong: slot {name} of `transfers` {fault}" for name, fault in wrong if fault), "")


def _fault(slot: Mapping[str, Any]) -> str:
    for key, value in slot.items():
        if key not in _KEYS:
            return f"has an unknown key {key!r}.{did_you_mean(key, _KEYS)}"
        if not isinstance(value, _KEYS[key]):
            return f"must have a {key} of type {_KEYS[key].__name__}, not {value!r}"
    missing = [key for key in _NEEDED if key not in slot]
    if missing:
        return f"has no {missing[0]!r}"
    if slot["direction"] not in ("in", "out"):
        return f"must have the direction in or out, not {slot['direction']!r}"
    path = slot["local_path"]
    is_outside = os.path.isabs(path) or ".." in path.split("/")
    return f"must have a local_path below the working directory, not {path!r}" if is_outside else ""


def as_staging(slots: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields `stage_in_url`, `stage_out_url` and `stage_out_files` for what a job puts into these slots.

    Raises:
        InvalidSpec: an unknown slot, a required one that is missing, or copies that these fields cannot express.
    """
    if not isinstance(given, Mapping):
        raise InvalidSpec(f"transfers must be a dict of slots, not {given!r}")
    for name in given:
        if name not in slots:
            raise InvalidSpec(
                f"The application has no slot {name!r} in its `transfers`.{did_you_mean(name, slots)}",
                hint=f"Its slots are: {', '.join(slots) or 'none'}",
            )
    for name, slot in slots.items():
        if slot["required"] and name not in given:
            raise InvalidSpec(f"The job gives nothing for {name!r}, a required slot of the application's `transfers`.")
    found: dict[str, str] = {}
    places = {name: _place(name, place) for name, place in given.items()}
    for name in (name for name in places if slots[name]["direction"] == "in"):
        _check_name(name, places[name], slots[name]["local_path"])
        if found.setdefault("stage_in_url", places[name]) != places[name]:
            _refuse(f"a second place to copy from: {places[name]}")
    files = []
    for name in (name for name in places if slots[name]["direction"] == "out"):
        local = slots[name]["local_path"]
        _check_name(name, places[name], os.path.basename(local))
        folder = os.path.dirname(places[name]) or places[name]
        if found.setdefault("stage_out_url", folder) != folder:
            _refuse(f"a second directory to copy to: {folder}")
        files.append(local)
    if files:
        found["stage_out_files"] = shlex.join(files)
    return found


def _place(name: str, given: Any) -> str:
    """Return a job's place for a slot as a place to stage from or to."""
    if isinstance(given, str) and ":" in given:
        alias, _, path = given.partition(":")
    elif isinstance(given, Mapping) and given.keys() == {"location_alias", "path"}:
        alias, path = str(given["location_alias"]), str(given["path"])
    else:
        raise InvalidSpec(
            f"The place for slot {name!r} must be ALIAS:/PATH, or have a location_alias and a path, not {given!r}"
        )
    if not path.startswith("/"):
        raise InvalidSpec(f"The place for slot {name!r} must have an absolute path, not {path!r}")
    return f"local:{path}" if alias == LOCAL else f"rsync:{alias}:{path}"


def _check_name(name: str, place: str, local: str) -> None:
    """Raise InvalidSpec unless the file keeps its name, directly in the working directory."""
    if local not in ("", ".", "./", os.path.basename(place)) and not place.endswith("/"):
        _refuse(f"another name: slot {name} is {local} here and {os.path.basename(place)} there")


def _refuse(reason: str) -> None:
    raise InvalidSpec(
        f"The transfers of a job need {reason}",
        hint="A job copies from one place, and to one directory, under the same names. Put the files into one directory, or "
        "copy others in the application's `preprocess` and `postprocess`.",
    )
