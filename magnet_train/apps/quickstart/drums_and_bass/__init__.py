"""Synthetic drums and bass, their captions, and an oracle that hears what they play."""
