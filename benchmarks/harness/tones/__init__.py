"""A world of tones and noise, their captions, and an oracle that hears them."""
