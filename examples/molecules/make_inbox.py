"""Make an inbox as a collaborator would send it: a folder for each conformer, in it distorted structures as .xyz files."""

import argparse
import os
import random

#: Methane, in Å.
METHANE = [
    ("C", 0.0, 0.0, 0.0),
    ("H", 0.629, 0.629, 0.629),
    ("H", -0.629, -0.629, 0.629),
    ("H", -0.629, 0.629, -0.629),
    ("H", 0.629, -0.629, -0.629),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inbox")
    parser.add_argument("--conformers", type=int, default=3)
    parser.add_argument("--distortions", type=int, default=4)
    options = parser.parse_args()
    random.seed(2018)
    for conformer in range(1, options.conformers + 1):
        workflow = f"gdb7-m4101-i1-c{conformer}"
        folder = os.path.join(options.inbox, workflow)
        os.makedirs(folder, exist_ok=True)
        for distortion in range(options.distortions):
            # d0 is as it should be; the others are further and further from it.
            write_xyz(os.path.join(folder, f"{workflow}-d{distortion}.xyz"), 0.05 * conformer * distortion)


def write_xyz(path: str, spread: float) -> None:
    """Write methane with each coordinate moved by up to `spread`."""
    atoms = [(element, *(x + random.uniform(-spread, spread) for x in place)) for element, *place in METHANE]
    with open(path, "w", encoding="utf-8") as file:
        print(len(atoms), f"methane, distorted by up to {spread:.2f} Å", sep="\n", file=file)
        for element, x, y, z in atoms:
            print(f"{element} {x:10.6f} {y:10.6f} {z:10.6f}", file=file)


if __name__ == "__main__":
    main()
