"""Plots of what jobs did: `timeline` collects the data, `figures` draws it with matplotlib, `text` draws it in a terminal."""
