"""Refuse to resume another run before anything is written: loggers make files as soon as `fit` is called."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl

from datamodules import DataPosition
from datamodules.position import require_same_order
from magnet_train.module import MagnetModule
from magnet_train.survival import peek


def refuse_other_run(checkpoint: Path, model: pl.LightningModule, data: pl.LightningDataModule) -> None:
    """Compare a checkpoint with the model and the data that are to go on from it.

    Raises:
        UserError: It is of a model of other sizes, another codec, another seed or other clips.
    """
    content = peek(checkpoint)
    if content is None:  # who loads all of it says what is wrong
        return
    if isinstance(model, MagnetModule):
        model.on_load_checkpoint(content)
    position = content.get("callbacks", {}).get(DataPosition.__name__)
    if position is not None and hasattr(data, "identity"):
        data.setup("fit")
        require_same_order(position, data.identity())
