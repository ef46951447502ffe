"""Synthetic sound with captions that shows offline, within minutes, that the whole chain learns.

A world (`band/`, `whole_band/` or `tones/`) has `captions`, synthesises them (`world`) and hears them again (`oracle`).
Each has a small EnCodec trained on it, `band/codec/`, `whole_band/codec/` and `codec/`; `text/` is a small T5 with the
words of the tones. `presets` lists what can be learned, `run` runs the commands that a user would type; `report` and
`page` show the result, and `demonstrations` what else the model does.
"""
