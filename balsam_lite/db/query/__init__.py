"""Every read of the DB."""
