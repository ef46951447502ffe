"""Readers of the layouts in which people keep audio and captions; `layouts.py` has the table of those that are lists."""
