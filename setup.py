"""The two shell scripts are sourced, not run, so they are installed as they are; all else is in setup.cfg."""

from setuptools import setup

setup(scripts=["balsam_lite/templates/balsamactivate", "balsam_lite/templates/balsamdeactivate"])
