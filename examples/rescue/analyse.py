"""Print what the simulation found. Its output comes from whichever job brought it to its end."""

import glob

(path,) = glob.glob("simulation*.out")
with open(path, encoding="utf-8") as file:
    print(path, "says:", file.read().splitlines()[-1])
