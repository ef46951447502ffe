"""The global order of clips: which clip each slot holds, computed from (seed, slot)."""
