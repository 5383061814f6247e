"""Shared foundations: errors, states, fields, settings, clock, processes and files. Imports no other part of the package."""
