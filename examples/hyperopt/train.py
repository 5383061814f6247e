"""Stand-in for the training of a network: prints the loss for a learning rate and a number of units, after 0.1 s or so."""

import argparse
import math
import random
import time

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--rate", type=float, required=True)
parser.add_argument("--units", type=int, required=True)
point = parser.parse_args()

time.sleep(random.uniform(0.05, 0.15))  # no two trainings take the same time: that is why the search is asynchronous
rate, units = math.log10(point.rate), math.log2(point.units)
# The best loss is 0.1, at a rate of 0.003 (10 ** -2.5) and 64 units; beside that valley there are shallower ones.
print(0.1 + (rate + 2.5) ** 2 + 0.2 * (units - 6) ** 2 + 0.3 * math.sin(2 * math.pi * (rate + 2.5)) ** 2)
