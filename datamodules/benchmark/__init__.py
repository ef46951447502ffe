"""How fast the loader is, beside webdataset reading the same shards; `magnet-train benchmark loader` prints it."""
