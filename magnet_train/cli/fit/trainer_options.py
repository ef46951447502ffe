"""Check the options of the trainer and its callbacks, and complete them.

Lightning would reject some late, and accept others with which a run cannot work.
"""

from __future__ import annotations

import difflib
import math
import pkgutil
from collections.abc import Sequence
from enum import Enum
from numbers import Real
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace
from lightning.pytorch import callbacks as pl_callbacks
from lightning.pytorch import strategies as pl_strategies
from lightning.pytorch.callbacks import Callback

from datamodules import DataPosition
from magnet_train.cli.fit.start_summary import StartSummary
from magnet_train.errors import UserError
from magnet_train.models.precision import compute_dtype
from magnet_train.training import callbacks as ours
from magnet_train.training.module import MagnetModule
from magnet_train.training.optim import MovingAverage

_LEAST = {
    -1: ("num_sanity_val_steps",),
    0: ("min_steps", "min_epochs", "reload_dataloaders_every_n_epochs", "gradient_clip_val"),
    1: ("accumulate_grad_batches", "check_val_every_n_epoch", "log_every_n_steps"),
}
_COPYING = ("spawn", "fork", "notebook")  # in names of strategies that copy this process
_OTHER_SHARDING = ("fsdp", "deepspeed")  # likewise
_OTHER_SHARDING_CLASSES = (pl_strategies.FSDPStrategy, pl_strategies.DeepSpeedStrategy)
# Why a callback of Lightning's cannot work here, and what to use instead.
_INSTEAD = {
    "StochasticWeightAveraging": "averages after the last checkpoint is written, so no file would hold the average; "
    "use magnet_train.training.optim.MovingAverage",
    "LearningRateFinder": "changes an attribute `lr` of the model, but the learning rate belongs to the optimizer; "
    "give --model.optimizer.lr, and compare short runs",
    "BatchSizeFinder": "repeats the first steps with other batch sizes, which would lose the position in the data; "
    "give --data.batch_size, and --global_batch for the clips of a step",
    "BackboneFinetuning": "needs a model with a part named `backbone`; use --tuning "
    "magnet_train.training.finetune.Freeze",
    "ModelPruning": "renames the parameters that it prunes, so neither the moving average nor a resume would find "
    "them; prune an exported model with torch.nn.utils.prune",
    "SpikeDetection": "cannot load its own state from a checkpoint (a bug in Lightning), so no resume would work; use "
    "magnet_train.training.callbacks.NonFiniteGuard with skip_above",
}
# These work only in a subclass.
_ABSTRACT = (pl_callbacks.BaseFinetuning, pl_callbacks.BasePredictionWriter, pl_callbacks.ProgressBar)
_AVERAGES = (MovingAverage, pl_callbacks.WeightAveraging)
_LOGGED = ("train/loss", "val/loss")  # in every run


def class_of(component: Any) -> type:
    """Return the class that a part of the configuration names; `object` if it cannot be imported."""
    try:
        found = pkgutil.resolve_name(str(getattr(component, "class_path", "")))
    except (ImportError, AttributeError, ValueError):
        return object
    return found if isinstance(found, type) else object


def prepare_trainer(trainer: Namespace, command: str) -> None:
    """Complete and check the options of the trainer; raises `UserError` if one is out of range or cannot work here."""
    _complete(trainer)
    interval = trainer.val_check_interval
    if isinstance(interval, Real) and interval <= 0:
        raise UserError(
            f"trainer.val_check_interval is {interval}; give a number of batches, or turn validation off with "
            "--trainer.limit_val_batches 0."
        )
    for least, names in _LEAST.items():
        for name in names:
            value = trainer.get(name)
            if isinstance(value, int | float) and not least <= value < math.inf:
                raise UserError(f"trainer.{name} is {value}; give {least} or more.")
    _check_devices(trainer)
    if command == "fit":
        _check_training(trainer)


def _complete(trainer: Namespace) -> None:
    """Set what follows from other options, and replace default values that config.yaml cannot hold.

    Callbacks of base.yaml that cannot work where `logger` or `enable_checkpointing` is false are removed.
    """
    trainer.use_distributed_sampler = False  # the data assigns clips to ranks itself
    if isinstance(trainer.callbacks, Namespace):
        trainer.callbacks = [trainer.callbacks]
    useless: tuple[type, ...] = ()
    if trainer.logger is False:
        useless += (pl_callbacks.LearningRateMonitor,)
    if trainer.enable_checkpointing is False:
        useless += (pl_callbacks.Checkpoint,)
    if trainer.callbacks:
        trainer.callbacks = [c for c in trainer.callbacks if not issubclass(class_of(c), useless)]
    for callback in trainer.callbacks or []:
        settings: Any = callback.get("init_args") or {}
        for name, value in list(settings.items()):
            if isinstance(value, Enum):  # Timer's interval
                settings[name] = value.value
            elif isinstance(value, torch.device):  # of StochasticWeightAveraging
                settings[name] = str(value)
    if isinstance(trainer.val_check_interval, float) and trainer.check_val_every_n_epoch is None:
        trainer.check_val_every_n_epoch = 1  # a fraction is one of an epoch


def _has_gpu() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def choose_precision(trainer: Namespace, dim: int) -> None:
    """Set trainer.precision where it is left open and a CPU computes: bf16-mixed if it multiplies bfloat16 faster."""
    if trainer.precision is None and (trainer.accelerator == "cpu" or not _has_gpu()):
        faster = compute_dtype("auto", torch.device("cpu"), dim) == torch.bfloat16
        trainer.precision = "bf16-mixed" if faster else "32-true"


def _check_devices(trainer: Namespace) -> None:
    if trainer.accelerator in ("gpu", "cuda") and not _has_gpu():
        raise UserError(
            f"trainer.accelerator is {trainer.accelerator} and torch finds no GPU here; add "
            "-c configs/trainer/cpu.yaml or --trainer.accelerator auto, or check the driver with nvidia-smi."
        )
    name = trainer.strategy if isinstance(trainer.strategy, str) else ""
    kind = class_of(trainer.strategy)
    start = getattr(trainer.strategy, "init_args", {}).get("start_method", "popen")
    if any(word in name for word in _COPYING) or start != "popen":
        raise UserError(
            f"trainer.strategy {name or start} copies this process for each rank, which is not supported; use ddp, "
            "which starts each rank with the same command."
        )
    if name.startswith(_OTHER_SHARDING) or issubclass(kind, _OTHER_SHARDING_CLASSES):
        raise UserError(
            f"trainer.strategy {name or kind.__name__} shards weights in a way that the moving average and the "
            "checkpoints do not support; use -c configs/trainer/fsdp.yaml, which shards with FSDP2."
        )
    known = ["auto", *pl_strategies.StrategyRegistry.available_strategies()]
    if name and name not in known:
        close = difflib.get_close_matches(name, known, n=3) or known
        raise UserError(f"there is no trainer.strategy '{name}'; give {' or '.join(close)}.")


def _check_training(trainer: Namespace) -> None:
    """Check what only `fit` needs: an end, something to train on, precise weights and readable checkpoints."""
    epochs = trainer.max_epochs
    if epochs == 0:
        raise UserError(
            "trainer.max_epochs is 0; give 1 or more, or -1 to let trainer.max_steps end the run."
        )
    if trainer.max_steps < 1 and not (trainer.max_steps == -1 and (epochs or 0) > 0):
        raise UserError(
            f"trainer.max_steps is {trainer.max_steps}, and the learning-rate schedule needs its last step; give the "
            "number of optimizer steps, at least 1."
        )
    if trainer.limit_train_batches == 0:
        raise UserError(
            "trainer.limit_train_batches is 0, which leaves nothing to train on; give 1 or more, or use "
            "`magnet-train validate`."
        )
    if trainer.overfit_batches:
        raise UserError(
            "trainer.overfit_batches would replace the order of the clips, in which a resume finds its place; to overfit "
            "a few clips, tokenize these alone and give their folder as --data.shards."
        )
    if str(trainer.precision) in ("16-true", "bf16-true"):
        raise UserError(
            f"trainer.precision {trainer.precision} keeps the weights themselves in 16 bits, where small updates and the "
            "moving average are lost; use bf16-mixed, or 32-true on a CPU."
        )
    kind = class_of(trainer.strategy)
    distributed = getattr(trainer.strategy, "init_args", {}).get("save_distributed_checkpoint", True)
    if issubclass(kind, pl_strategies.ModelParallelStrategy) and distributed:
        raise UserError(
            f"{kind.__name__} would save checkpoints in torch's sharded format, which is not supported, since reading it "
            "can run code; set save_distributed_checkpoint: false in trainer.strategy.init_args, as "
            "configs/trainer/fsdp.yaml does."
        )


def needed_callbacks(trainer: Namespace, command: str) -> list[Callback]:
    """Build what every run needs, except the classes that the configuration names with settings of its own."""
    needed: list[type[Callback]] = [DataPosition]
    if command == "fit":
        needed += [
            ours.DeterministicResume,
            ours.NonFiniteGuard,
            ours.LastRow,
            ours.ThroughputMonitor,
            StartSummary,
        ]
        if trainer.enable_checkpointing is not False:
            needed.append(ours.SaveOnStop)
    if command == "predict":
        needed.append(ours.WritePredictions)
    named = [class_of(callback) for callback in trainer.callbacks or []]
    has_bar = any(issubclass(c, pl_callbacks.ProgressBar) for c in named)
    if trainer.enable_progress_bar is not False and not has_bar:
        needed.append(ours.StepProgressBar)
    return [kind() for kind in needed if not any(issubclass(c, kind) for c in named)]


def check_callbacks(callbacks: Sequence[Callback], model: pl.LightningModule) -> None:
    """Raise `UserError` if a callback cannot work in a training of `model`, or two average the weights."""
    for callback in callbacks:
        name = type(callback).__name__
        if type(callback) in _ABSTRACT:
            raise UserError(f"trainer.callbacks: {name} does nothing by itself; name a subclass of it.")
        for kind, reason in _INSTEAD.items():
            if isinstance(callback, getattr(pl_callbacks, kind)):
                raise UserError(f"trainer.callbacks: {name} {reason}.")
        if type(model) is MagnetModule and getattr(callback, "strict", True):
            # A misspelt metric, which Lightning would miss only after the first validation.
            monitor = str(getattr(callback, "monitor", None))
            near = difflib.get_close_matches(monitor.replace("_", "/", 1), _LOGGED, n=1, cutoff=0.8)
            if near and "/" not in monitor:
                raise UserError(
                    f"trainer.callbacks: {name} monitors {monitor}, which is not logged; set monitor to {near[0]}."
                )
    averages = [type(callback).__name__ for callback in callbacks if isinstance(callback, _AVERAGES)]
    if len(averages) > 1:
        raise UserError(
            f"trainer.callbacks: {' and '.join(averages)} both average the weights, and only one can; list the "
            "callbacks that you want under `callbacks:`, which replaces those of base.yaml; `callbacks+:` adds to them."
        )
