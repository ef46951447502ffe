"""Epochs as passes over the training clips, where an option counts epochs.

The training loader is endless, so Lightning by itself never finishes an epoch. Where an option or a callback counts
epochs, `trainer.limit_train_batches` becomes the number of batches of a pass: Lightning's epochs end, and the clips
keep their one global order.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace

from magnet_train.cli.ranks import print_once
from magnet_train.errors import UserError
from magnet_train.training.lightning_internals import set_max_steps


def counts_epochs(trainer: Namespace) -> bool:
    """Return whether an option or callback of this configuration needs epochs that end."""
    return bool(
        trainer.max_epochs not in (None, -1)
        or trainer.min_epochs
        or trainer.min_steps  # for Lightning, of one epoch at least
        or trainer.check_val_every_n_epoch is not None
        or isinstance(trainer.limit_train_batches, float)
        or isinstance(trainer.val_check_interval, float)
        or trainer.reload_dataloaders_every_n_epochs > 0
        or any(_callback_counts(callback.get("init_args") or {}) for callback in trainer.callbacks or [])
    )


def _callback_counts(settings: Namespace | dict[str, Any]) -> bool:
    """Look for the settings of Lightning's callbacks that count epochs: `every_n_epochs: 2`, `interval: epoch`."""
    items = dict(settings.items())
    schedule = items.get("scheduling")  # of GradientAccumulationScheduler: epoch -> batches
    return (isinstance(schedule, dict) and any(int(epoch) > 0 for epoch in schedule)) or any(
        value == "epoch" or ("epoch" in name and value not in (None, False)) for name, value in items.items()
    )


def set_epochs(trainer: pl.Trainer, data: Any) -> None:
    """Make an epoch one pass over the training clips, in whole optimizer steps, and let `max_epochs` end the run.

    An integer `limit_train_batches` is the length of an epoch as in Lightning, and leaves the learning rate alone; a
    fraction takes that share of a pass. `max_epochs` lowers `max_steps`, where the learning-rate schedule ends.

    Raises:
        UserError: The data does not report its number of clips, or no validation would take place.
    """
    parts = trainer.accumulate_grad_batches
    limit = trainer.limit_train_batches
    if isinstance(limit, float):
        clips_per_step = data.batch_size * trainer.world_size * parts
        data.setup("fit")
        clips = int(getattr(data, "train_clips", 0))
        if not clips:
            raise UserError(
                f"the data {type(data).__qualname__} does not report its number of clips (train_clips); give "
                "trainer.max_steps and trainer.val_check_interval in batches instead of epochs and fractions."
            )
        steps = max(1, int(-(-clips // clips_per_step) * limit))
        trainer.limit_train_batches = steps * parts
        _end_run(trainer, steps)
        share = "one pass over" if limit == 1 else f"{limit:g} of a pass over"
        end = f"; training ends at step {trainer.max_steps:,}" if (trainer.max_epochs or 0) > 0 else ""
        print_once(
            f"an epoch is {share} {clips:,} clips: {steps:,} step{'s' * (steps != 1)} of {clips_per_step:,} clips{end}"
        )
    elif trainer.max_steps < 1:
        _end_run(trainer, -(-limit // parts))
    batches = int(trainer.limit_train_batches)
    interval = getattr(trainer, "val_check_interval", None)  # missing where it is a time
    if isinstance(interval, float):
        trainer.val_check_interval = max(1, int(batches * interval))
    elif isinstance(interval, int) and trainer.check_val_every_n_epoch is not None and interval > batches:
        raise UserError(
            f"trainer.val_check_interval is {interval} batches and an epoch has {batches}, so no validation would take "
            "place; give a fraction of an epoch (1.0), or trainer.check_val_every_n_epoch null to count across epochs."
        )


def _end_run(trainer: pl.Trainer, steps: int) -> None:
    """Lower `max_steps` to the end of the last epoch, since the learning-rate schedule ends there."""
    end = (trainer.max_epochs or 0) * steps
    if end > 0 and (trainer.max_steps < 1 or end < trainer.max_steps):
        set_max_steps(trainer, end)
