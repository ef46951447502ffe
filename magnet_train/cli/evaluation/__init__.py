"""`evaluate`: its clips, the computation of its measures, and its report."""
