"""A synthetic data set of captioned tones that shows offline, within minutes, that the whole chain learns.

`captions` defines clips and their sentences, `world` synthesises them, `oracle` measures them again and scores them,
`codec/` is a small EnCodec trained on them and `text/` a small T5 with their vocabulary. `run` runs the commands that
a user would type; `report` and `page` show the result, and `demonstrations` what else the model does.
"""
