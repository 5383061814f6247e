"""Several DBs as one: which sites are meant, and what can be asked of each, here or through ssh."""
