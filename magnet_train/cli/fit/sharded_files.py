"""Refuse the strategies' own format of checkpoints, a folder with a part of each rank."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.strategies import ModelParallelStrategy

from magnet_train.errors import UserError
from magnet_train.training.lightning_internals import saves_sharded


def refuse_sharded_files(trainer: pl.Trainer) -> None:
    """See that a run will save files that something can read: reading torch's sharded format unpickles.

    Raises:
        UserError: The strategy would save sharded; names the option.
    """
    if not saves_sharded(trainer):
        return
    strategy = trainer.strategy
    fsdp2 = isinstance(strategy, ModelParallelStrategy)
    option = "save_distributed_checkpoint: false" if fsdp2 else "state_dict_type: full"
    raise UserError(
        f"{type(strategy).__name__} would save checkpoints in torch's sharded format, which nothing here reads, since "
        f"reading it can run code; set {option} in trainer.strategy.init_args, as configs/trainer/fsdp.yaml does."
    )
