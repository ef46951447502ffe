"""Shard format 1, described in docs/data.md.

A folder holds `shard-000000.tar`, ... with KEY.npy (tokens) and KEY.json (caption and metadata) for each clip;
`index.npy`, the place of each clip; and `manifest.json`, written last: codec, shards, sizes and hashes.
"""
