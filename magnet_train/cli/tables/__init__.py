"""The tables of `inspect`."""
