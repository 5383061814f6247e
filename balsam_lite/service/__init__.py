"""The service: watches one DB and submits launchers for its jobs, within the user's queue policy.

`policy` reads the INI file, `packer` decides (both pure), `loop` takes turns, `main` is the wiring. It runs no job.
"""
