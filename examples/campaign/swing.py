"""Print the period of a pendulum of that length in m, released at that angle in degrees."""

import argparse
import math

parser = argparse.ArgumentParser()
parser.add_argument("--length", type=float, required=True)
parser.add_argument("--angle", type=float, required=True)
given = parser.parse_args()

# The arithmetic-geometric mean gives the exact period.
a, b = 1.0, math.cos(math.radians(given.angle) / 2)
for _ in range(10):
    a, b = (a + b) / 2, math.sqrt(a * b)
print(f"{2 * math.pi * math.sqrt(given.length / 9.81) / a:.6f}")
