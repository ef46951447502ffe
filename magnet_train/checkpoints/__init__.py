"""Reading and writing models: our export, Lightning checkpoints, the reference's format."""
