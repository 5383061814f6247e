"""Print the mean of the numbers that the jobs before this one have printed."""

from pathlib import Path

periods = [float(path.read_text()) for path in Path().glob("swing-*.out")]
print(f"{len(periods)} periods, mean {sum(periods) / len(periods):.4f} s")
