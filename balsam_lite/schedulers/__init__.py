"""Batch schedulers: where launchers run.

base           the interface of a scheduler to the rest of the program; runs its commands
local          a queue on this machine: `local_queue` keeps it in files, a `shepherd` process watches each running script
environ        the batch job in which this process runs, and its nodes; `hostlist` parses lists of nodes
remaining      how long has that batch job left?
submission     turns a launch request into a submitted script, and records what became of it
"""
