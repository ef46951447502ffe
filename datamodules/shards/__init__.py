"""Shard format 1, see docs/data.md: a folder of token tars with their index and manifest.

*.tar          KEY.npy (tokens) and KEY.json (caption, metadata) of each clip
index.npy      tar and byte offsets of each clip
manifest.json  codec, and size and hash of each tar; written last
"""
