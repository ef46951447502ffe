"""A whole model for use in Python: text in, audio out."""
