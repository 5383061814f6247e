"""All writes to the database.

insert     add jobs            user       what the user does to jobs: state, kill, edit, delete
claims     what launchers do   leases     who holds jobs, and what becomes of the dead
graph      dependencies        outcomes   what follows when a program ended (pure rules)
apps       applications        batch_jobs batch jobs
copies     what a copy of a DB lets go of
moves      the one way to change a state, used by all of them
"""
