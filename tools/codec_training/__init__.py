"""Train the quickstart's small EnCodec: where it starts, how it quantizes, what it is told to get right."""
