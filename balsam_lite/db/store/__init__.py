"""All writes to the database.

insert        add jobs                             user_actions  user commands: set the state, kill, edit, rerun, delete
claims        take jobs, record how runs end       job_changes   the same for given jobs in one transaction
steps         work before and after a run          large_writes  lists of jobs still to change, hidden ranges of an insert
exit_rules    the states after a run (pure)        pieces        carry out large writes in short transactions
leases        launchers, services and waits;       held_back     delay new jobs until their dependencies are added
              reaping dead ones, freeing a copy    suspects      jobs that may have killed their launchers
graph         dependencies                         tags          the table of tags; startable jobs with a rare tag
apps          applications                         transitions   change states; used by all the others
batch_jobs    batch jobs, reservations
"""
