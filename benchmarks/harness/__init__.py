"""How fast training and generation are, side by side with a naive model of the same weights."""
