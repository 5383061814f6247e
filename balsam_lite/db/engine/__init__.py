"""The SQLite file and its directory: how it is opened, locked, migrated, checked, copied and repaired."""
