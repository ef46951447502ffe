"""One file for each command; heavy imports only inside `run`."""
