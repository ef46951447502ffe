"""Training: the objective, the LightningModule, metrics, optimizers, callbacks and checkpoints."""
