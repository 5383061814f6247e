"""Batch schedulers: where launchers run.

base           launches as users request them; the interface of a scheduler, and how its commands run
local          a queue on this machine, kept in files; a `shepherd` process watches each running script
environ        the batch job in which this process runs, and its nodes; `hostlist` parses lists of nodes
submission     turns a launch request into a submitted script, and records what became of it
"""
