"""Training of the quickstart's small EnCodec: initialization and losses."""
