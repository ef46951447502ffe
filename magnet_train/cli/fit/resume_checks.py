"""Refuse to resume another run before anything is written: loggers make files as soon as `fit` is called."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from torch import Tensor

from datamodules import DataPosition
from datamodules.sampling.position import require_same_order
from magnet_train.errors import UserError
from magnet_train.training.checkpointing import peek
from magnet_train.training.module import MagnetModule


def refuse_other_run(checkpoint: Path, model: pl.LightningModule, data: pl.LightningDataModule) -> None:
    """Compare a checkpoint with the model and the data that are to go on from it.

    Raises:
        UserError: It is of a model of other sizes or parts, another codec, another seed or other clips.
    """
    content = peek(checkpoint)
    if content is None:  # who loads all of it says what is wrong
        return
    if isinstance(model, MagnetModule):
        model.on_load_checkpoint(content)
    if model.strict_loading:
        _require_same_weights(content.get("state_dict", {}), model.state_dict())
    position = content.get("callbacks", {}).get(DataPosition.__name__)
    if position is not None and hasattr(data, "identity"):
        data.setup("fit")
        require_same_order(position, data.identity())


def _require_same_weights(then: dict[str, Tensor], now: dict[str, Tensor]) -> None:
    if not then:  # a sharded checkpoint keeps them elsewhere
        return
    for name in sorted(then.keys() | now.keys()):
        shapes = [list(weights[name].shape) if name in weights else "none" for weights in (then, now)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"the checkpoint's weights {name} have the shape {shapes[0]} and this run's {shapes[1]}; give the same "
                "config, or start a new run by --init_from."
            )
