"""`fit` around LightningCLI: options and their checks, the run's folder and its lock, resuming, failures."""
