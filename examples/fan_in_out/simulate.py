"""Print the sum of the squares of the numbers in the one .inp file in this directory."""

import glob

(path,) = glob.glob("*.inp")
with open(path, encoding="utf-8") as file:
    print(sum(int(word) ** 2 for word in file.read().split()))
