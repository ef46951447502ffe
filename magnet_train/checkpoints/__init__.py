"""Models in files: our export, Lightning checkpoints, the reference's formats; each is read as a `ModelBundle`."""
