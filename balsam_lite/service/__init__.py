"""The service: watches one DB and submits launchers for its jobs, within the user's queue policy.

`policy` reads the INI file, `packer` chooses launches (both pure), `loop` takes turns, `main` connects them. It runs no job.
"""
