"""The command `evaluate`: reading clips, computing measures, and the report."""
