"""Model files: fetched from a file provider, kept in a cache, checked on every load."""
