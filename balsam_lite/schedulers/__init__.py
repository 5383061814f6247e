"""Batch schedulers: where launchers run.

base           what a scheduler is to the rest of the program; the one way to run its commands
local          a queue on this machine: `local_queue` keeps it in files, a `shepherd` looks after each running script
environ        in which batch job does this process run, on which nodes? `hostlist` reads lists of them
remaining      how long has that batch job left?
submission     from a launch request to a submitted script, and what became of it
"""
