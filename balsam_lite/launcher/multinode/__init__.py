"""Serial jobs over many nodes: one rank of an MPI program on each node, of which the first is the launcher.

`mpi_transport` carries bytes between ranks, `messages` defines messages and batches them. `coordinator` is rank 0: the
launcher uses it instead of a local runner. `worker` serves it on each other node.
"""
