"""Atomic file writes, checks of untrusted text and weights, and the model hub."""
