"""Start, watch and end programs on one host."""
