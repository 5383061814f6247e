"""Plots and reports: `campaign` reads the data, `charts` computes the numbers, `text`, `figures` and `svg` draw them."""
