"""Check callbacks: refuse those that cannot work here, and add those that every run needs."""

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
    WeightAveraging,
)

from datamodules import DataPosition
from magnet_train.cli.fit.start_summary import StartSummary
from magnet_train.errors import UserError
from magnet_train.training.callbacks import (
    DeterministicResume,
    LastRow,
    NonFiniteGuard,
    SaveOnStop,
    StepProgressBar,
    ThroughputMonitor,
    WritePredictions,
)
from magnet_train.training.module import MagnetModule
from magnet_train.training.optim import MovingAverage

# Why a callback of Lightning's cannot work here, and what to use instead.
_INSTEAD: dict[type[Callback], str] = {
    StochasticWeightAveraging: "averages after the last checkpoint is written, so no file would hold the average; use "
    "magnet_train.training.optim.MovingAverage",
    LearningRateFinder: "changes an attribute `lr` of the model, but the learning rate belongs to the optimizer; give "
    "--model.optimizer.lr, and compare short runs",
    BatchSizeFinder: "repeats the first steps with other batch sizes, which would lose the position in the data; give "
    "--data.batch_size, and --global_batch for the clips of a step",
    BackboneFinetuning: "needs a model with a part named `backbone`; use --tuning magnet_train.training.finetune.Freeze",
    ModelPruning: "renames the parameters that it prunes, so neither the moving average nor a resume would find them; "
    "prune an exported model with torch.nn.utils.prune",
    SpikeDetection: "cannot load its own state from a checkpoint (a bug in Lightning), so no resume would work; use "
    "magnet_train.training.callbacks.NonFiniteGuard with skip_above",
}
_ABSTRACT = (BaseFinetuning, BasePredictionWriter, ProgressBar)  # work only in a subclass
_AVERAGES = (MovingAverage, WeightAveraging)
_LOGGED = ("train/loss", "val/loss")  # in every run


def class_of(component: Any) -> type:
    """Return the class that a part of the configuration names; `object` if it cannot be imported."""
    module, _, name = str(getattr(component, "class_path", "")).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return object
    return found if isinstance(found, type) else object


def remove_useless_callbacks(trainer: Namespace) -> None:
    """Remove callbacks of base.yaml that cannot work where `trainer.logger` or `enable_checkpointing` is false."""
    useless: tuple[type, ...] = ()
    if trainer.logger is False:
        useless += (LearningRateMonitor,)
    if trainer.enable_checkpointing is False:
        useless += (Checkpoint,)
    if useless and trainer.callbacks:
        trainer.callbacks = [c for c in trainer.callbacks if not issubclass(class_of(c), useless)]


def needed_callbacks(trainer: Namespace, command: str) -> list[Callback]:
    """Build what every run needs, except the classes that the configuration names with settings of its own."""
    needed: list[type[Callback]] = [DataPosition]
    if command == "fit":
        needed += [DeterministicResume, NonFiniteGuard, LastRow, ThroughputMonitor, StartSummary]
        if trainer.enable_checkpointing is not False:
            needed.append(SaveOnStop)
    if command == "predict":
        needed.append(WritePredictions)
    named = [class_of(callback) for callback in trainer.callbacks or []]
    if trainer.enable_progress_bar is not False and not any(issubclass(c, ProgressBar) for c in named):
        needed.append(StepProgressBar)
    return [kind() for kind in needed if not any(issubclass(c, kind) for c in named)]


def check_callbacks(callbacks: Sequence[Callback], model: pl.LightningModule) -> None:
    """Check the callbacks of a trainer that is to train `model`.

    Raises:
        UserError: One cannot work here, or two average the weights.
    """
    for callback in callbacks:
        name = type(callback).__name__
        if type(callback) in _ABSTRACT:
            raise UserError(f"trainer.callbacks: {name} does nothing by itself; name a subclass of it.")
        for kind, reason in _INSTEAD.items():
            if isinstance(callback, kind):
                raise UserError(f"trainer.callbacks: {name} {reason}.")
        if type(model) is MagnetModule and getattr(callback, "strict", True):
            _check_monitor(name, getattr(callback, "monitor", None))
    averages = [type(callback).__name__ for callback in callbacks if isinstance(callback, _AVERAGES)]
    if len(averages) > 1:
        raise UserError(
            f"trainer.callbacks: {' and '.join(averages)} both average the weights, and only one can; list the callbacks "
            "that you want under `callbacks:`, which replaces those of base.yaml where `callbacks+:` adds to them."
        )


def _check_monitor(name: str, monitor: Any) -> None:
    """Refuse a misspelt metric, which Lightning would miss only after the first validation."""
    if not isinstance(monitor, str) or "/" in monitor:
        return
    close = difflib.get_close_matches(monitor.replace("_", "/", 1), _LOGGED, n=1, cutoff=0.8)
    if close:
        raise UserError(
            f"trainer.callbacks: {name} monitors {monitor}, which is not logged; set monitor to {close[0]}."
        )
