"""The ground floor: errors, states, fields, settings, clock, processes and files. Imports nothing else of the package."""
