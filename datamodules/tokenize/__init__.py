"""From audio files to shards."""
