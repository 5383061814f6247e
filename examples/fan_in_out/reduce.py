"""Print the sum of what the simulations printed."""

import glob
import os

# What comes from a parent is a link. There is one more *.out here, and no link: E.out, into which this program prints.
paths = sorted(path for path in glob.glob("*.out") if os.path.islink(path))
total = 0
for path in paths:
    with open(path, encoding="utf-8") as file:
        total += int(file.read())
print("The sum over", *paths, "is", total)
