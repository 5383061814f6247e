"""`python -m balsam_lite.cli`: the command, where it is not on PATH."""

import sys

from .main import main

if __name__ == "__main__":
    sys.exit(main())
