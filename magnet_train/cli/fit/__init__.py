"""What `fit` adds to LightningCLI: run folders, resuming, and checks of options."""
