"""The SQLite file and its directory: open, lock, migrate, check, copy and repair them."""
