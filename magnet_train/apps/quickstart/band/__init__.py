"""A whole synthetic band: drums, a bass and keys; their captions, and an oracle that hears what they play."""
