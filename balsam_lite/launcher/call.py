"""Forwards for entries that DBs of the earliest versions store: `python -m balsam_lite.launcher.call`, and chunks of `map`."""

from ..pyapps.run_call import each

__all__ = ["each"]

if __name__ == "__main__":
    from .start import call

    call()
