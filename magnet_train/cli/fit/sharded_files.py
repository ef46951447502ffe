"""Refuse the strategies' own format of checkpoints, a folder with a part of each rank."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from magnet_train.errors import UserError


def refuse_sharded_files(trainer: pl.Trainer) -> None:
    """See that a run will save files that something can read: reading torch's sharded format unpickles.

    Raises:
        UserError: The strategy would save sharded; names the option.
    """
    strategy = trainer.strategy
    if isinstance(strategy, ModelParallelStrategy) and strategy._save_distributed_checkpoint:
        option = "save_distributed_checkpoint: false"
    elif isinstance(strategy, FSDPStrategy) and strategy._state_dict_type == "sharded":
        option = "state_dict_type: full"
    else:
        return
    raise UserError(
        f"{type(strategy).__name__} would save checkpoints in torch's sharded format, which nothing here reads, since "
        f"reading it can run code; set {option} in trainer.strategy.init_args, as configs/trainer/fsdp.yaml does."
    )
