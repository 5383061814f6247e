"""balsam_lite: run very many jobs from one SQLite file, on a laptop or a supercomputer.

Importing this package does nothing: no file is opened, no program is run, no logging is set up.
"""

__version__ = "0.1.0"
