"""Render the command templates of applications."""
