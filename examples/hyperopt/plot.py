"""Draw the losses of a search and the best so far:  plot.py results.json search.png

Exits with 3 if there is no matplotlib.
"""

import json
import sys
from itertools import accumulate

try:
    import matplotlib
except ImportError:
    sys.stderr.write("plot.py needs matplotlib:  pip install 'balsam_lite[plot]', or just  pip install matplotlib\n")
    sys.exit(3)
matplotlib.use("agg")  # into a file; no window is needed
from matplotlib import pyplot as plt
from matplotlib import ticker

source, target = sys.argv[1:]
with open(source, encoding="utf-8") as file:
    losses = [result["loss"] for result in json.load(file)["evaluations"]]
numbers = range(1, len(losses) + 1)
best = list(accumulate(losses, min))
colours = ["tab:blue" if loss == least else "silver" for loss, least in zip(losses, best)]

figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
axes.step(numbers, best, where="post", color="tab:blue", linewidth=2, label="best so far")
axes.scatter(numbers, losses, s=24, c=colours, linewidths=0, zorder=3)
axes.scatter([], [], s=24, c="silver", linewidths=0, label="one evaluation")  # for the legend
last = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "color": "tab:blue"}
axes.annotate(f"{best[-1]:.3f}", (numbers[-1], best[-1]), **last)
axes.set_yscale("log")
axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
axes.yaxis.set_major_formatter("{x:g}")
axes.yaxis.set_minor_formatter(ticker.NullFormatter())
axes.set_xlim(0, 1.08 * len(losses))
axes.set_xlabel("evaluations that are over")
axes.set_ylabel("loss (logarithmic)")
axes.set_title("An asynchronous search")
axes.grid(which="major", color="whitesmoke")
axes.set_axisbelow(True)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="upper right")
figure.savefig(target, dpi=150)
