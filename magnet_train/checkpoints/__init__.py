"""Models in files: our export, Lightning checkpoints, the reference's formats; `ModelBundle` is what each is read as."""
