"""A small world of captioned tones that proves offline, in minutes, that the whole chain learns.

`captions` says what a clip is, `world` makes it sound, `oracle` reads it back, `codec/` holds a small EnCodec
trained on it and `text_encoder` writes a small T5 that knows its words. `run` drives the very commands a user
would type, `score` and `report` say whether it worked.
"""
