"""Shard format 1: tars of tokens, their index and manifest."""
