"""Which clip a slot of the run holds: arithmetic on (seed, slot)."""
