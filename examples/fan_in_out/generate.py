"""Write one input file for each simulation. Like the other two programs, it knows nothing of Balsam."""

for n, name in enumerate("BCD"):
    with open(f"{name}.inp", "w", encoding="utf-8") as file:
        print(*range(10 * n + 1, 10 * n + 11), file=file)
