"""The problem of the DeepHyper example: its `run` function is what an evaluation calls, in a job."""


def run(point):
    """Return the objective, which DeepHyper maximises."""
    if point["x"] > 8:
        raise ValueError("no result for this point")
    return -((point["x"] - 1) ** 2) - (point["y"] + 2) ** 2
