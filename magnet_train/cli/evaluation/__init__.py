"""What `evaluate` reads, measures and prints."""
