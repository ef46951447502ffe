"""Refuse callbacks that cannot do their work here, in one sentence that names what to use instead."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    BasePredictionWriter,
    BatchSizeFinder,
    Callback,
    Checkpoint,
    LearningRateFinder,
    LearningRateMonitor,
    ModelPruning,
    ProgressBar,
    SpikeDetection,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)

from magnet_train.errors import UserError
from magnet_train.training.module import MagnetModule
from magnet_train.training.optim import MovingAverage

# Why a callback of Lightning's cannot work here, and what can.
_INSTEAD: dict[type[Callback], str] = {
    StochasticWeightAveraging: "takes its average after the last checkpoint is written, so that no file would hold it; "
    "use magnet_train.training.optim.MovingAverage",
    LearningRateFinder: "changes an attribute `lr` of the model, and the learning rate here belongs to the optimizer; "
    "give --model.optimizer.lr, and compare short runs",
    BatchSizeFinder: "repeats the first steps with other numbers of clips, and the place in the data would be lost; "
    "give --data.batch_size, and --global_batch for the clips of a step",
    BackboneFinetuning: "wants a model with a part named `backbone`; use --tuning magnet_train.training.finetune.Freeze",
    ModelPruning: "renames the parameters that it prunes, which neither the moving average nor a resume can follow; "
    "prune an exported model with torch.nn.utils.prune",
    SpikeDetection: "cannot read its own state back from a checkpoint (a fault in Lightning), so that no resume would "
    "go; use magnet_train.training.callbacks.NonFiniteGuard with skip_above",
}
_ABSTRACT = (BaseFinetuning, BasePredictionWriter, ProgressBar)  # work only in a subclass
_AVERAGES = (MovingAverage, WeightAveraging)
_LOGGED = ("train/loss", "val/loss")  # in every run


def class_of(component: Any) -> type:
    """Return the class that a part of the configuration names; `object` where it cannot be imported."""
    module, _, name = str(getattr(component, "class_path", "")).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return object
    return found if isinstance(found, type) else object


def without_logger_or_checkpoints(trainer: Namespace) -> None:
    """Take out what cannot be where `trainer.logger` or `trainer.enable_checkpointing` is false, as base.yaml has it."""
    gone: tuple[type, ...] = ()
    if trainer.logger is False:
        gone += (LearningRateMonitor,)
    if trainer.enable_checkpointing is False:
        gone += (Checkpoint,)
    if gone and trainer.callbacks:
        trainer.callbacks = [c for c in trainer.callbacks if not issubclass(class_of(c), gone)]


def check_callbacks(callbacks: Sequence[Callback], model: pl.LightningModule) -> None:
    """Look at the callbacks of a training.

    Args:
        callbacks: All of the trainer's.
        model: What trains.

    Raises:
        UserError: One cannot work here, or two average the weights.
    """
    for callback in callbacks:
        name = type(callback).__name__
        if type(callback) in _ABSTRACT:
            raise UserError(
                f"trainer.callbacks: {name} does nothing by itself; name a class derived from it."
            )
        for kind, reason in _INSTEAD.items():
            if isinstance(callback, kind):
                raise UserError(f"trainer.callbacks: {name} {reason}.")
        _check_monitor(callback, model)
    averages = [type(callback).__name__ for callback in callbacks if isinstance(callback, _AVERAGES)]
    if len(averages) > 1:
        raise UserError(
            f"trainer.callbacks: {' and '.join(averages)} both average the weights, and only one can; list the callbacks "
            "that you want under `callbacks:`, which replaces those of base.yaml where `callbacks+:` adds to them."
        )


def _check_monitor(callback: Callback, model: pl.LightningModule) -> None:
    """Refuse at the start what would be missing at the end of the first validation."""
    monitor = getattr(callback, "monitor", None)
    if (
        not isinstance(monitor, str)
        or type(model) is not MagnetModule
        or not getattr(callback, "strict", True)
    ):
        return
    close = difflib.get_close_matches(monitor.replace("_", "/", 1), _LOGGED, n=1, cutoff=0.8)
    if close and monitor not in _LOGGED and "/" not in monitor:
        raise UserError(
            f"trainer.callbacks: {type(callback).__name__} watches {monitor}, which nothing logs; set monitor to "
            f"{close[0]}."
        )


def why_it_ended(trainer: pl.Trainer) -> str | None:
    """Say why a training ended before `max_steps`.

    Returns:
        None where it did not, or its epochs came to their end.
    """
    if not trainer.should_stop or trainer.global_step == trainer.max_steps:
        return None
    where = f"stopped after step {trainer.global_step} of {trainer.max_steps}"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        left = callback.time_remaining() if isinstance(callback, Timer) else None
        if left is not None and left <= 0:
            return f"{where}: the time of {type(callback).__name__} or trainer.max_time is over."
        reason = getattr(callback, "stopping_reason_message", None)
        if reason:
            return (
                f"{where} by {type(callback).__name__}: {reason.removesuffix(' Signaling Trainer to stop.')}"
            )
    return f"{where}: a callback or the model set trainer.should_stop."
