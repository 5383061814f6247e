"""The launcher, which runs jobs inside a batch job or on a laptop, and `dag`, the Python interface that users import.

Importing this package does nothing.
"""
