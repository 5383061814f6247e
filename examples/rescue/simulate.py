"""A simulation of many short steps that keeps a checkpoint, and goes on from one: adds up the squares from 1 to STEPS."""

import json
import os
import sys
import time

steps = int(sys.argv[1])
CHECKPOINT = "checkpoint.json"


def save(step: int, total: int) -> None:
    """Replace the checkpoint by a complete one; if it is a link to that of an earlier job, that one stays as it is."""
    with open("checkpoint.part", "w", encoding="utf-8") as file:
        json.dump({"step": step, "total": total}, file)
    os.replace("checkpoint.part", CHECKPOINT)


step = total = 0
if os.path.exists(CHECKPOINT):
    with open(CHECKPOINT, encoding="utf-8") as file:
        step, total = json.load(file).values()
print(f"Starting at step {step} of {steps}", flush=True)
while step < steps:
    step += 1
    time.sleep(0.1)
    total += step**2
    save(step, total)
print("Total:", total)
