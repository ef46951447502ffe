"""Files: written atomically, read without trust, fetched from the hub."""
