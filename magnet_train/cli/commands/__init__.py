"""One file for each command; torch is imported only inside `run`."""
