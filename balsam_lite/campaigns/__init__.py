"""Campaigns: the files, sweeps and archives from which many jobs come, and to which they go."""
