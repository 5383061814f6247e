"""Several DBs as one: select sites, and query and change each, on this host or through ssh."""
