"""Synthetic sound with captions that shows offline, within minutes, that the whole chain learns.

A world (`drums_and_bass/` or `band/`) has `captions`, synthesises them (`world`) and hears them again
(`oracle`); `codec/` in each is a small EnCodec trained on it. `presets` lists what can be learned, `run` runs the commands
that a user would type; `report` and `page` show the result, and `demonstrations` what else the model does. `codec/` and
`text/` are a smaller EnCodec and T5, for trying things out; they were made for the tones of `benchmarks/harness/tones`.
"""
