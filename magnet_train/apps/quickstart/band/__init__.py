"""A synthetic band: drums and a bass, their captions, and an oracle that hears what they play."""
