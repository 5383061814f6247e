"""Serial jobs over many nodes: one rank of an MPI program on each node, of which the first is the launcher.

`link` carries bytes between ranks, `post` makes conversations of them, `words` says what is said; `head` is what the launcher
talks to instead of a runner of its own host, `node` what answers on the other nodes.
"""
