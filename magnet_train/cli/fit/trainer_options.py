"""Check options of the trainer that Lightning would reject late, or accept although a run cannot work with them."""

from __future__ import annotations

import difflib
import math
from enum import Enum
from numbers import Real
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    StrategyRegistry,
)

from magnet_train.cli.fit.callback_options import class_of
from magnet_train.errors import UserError
from magnet_train.models.precision import compute_dtype

_LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": -1,
    "min_steps": 0,
    "min_epochs": 0,
    "reload_dataloaders_every_n_epochs": 0,
    "gradient_clip_val": 0,
}
_COPYING = ("spawn", "fork", "notebook")  # in names of strategies that copy this process
_OTHER_SHARDING = ("fsdp", "deepspeed")


def complete_trainer(trainer: Namespace) -> None:
    """Set what follows from other options, and replace default values that config.yaml cannot hold."""
    trainer.use_distributed_sampler = False  # the data assigns clips to ranks itself
    if isinstance(trainer.callbacks, Namespace):
        trainer.callbacks = [trainer.callbacks]
    for callback in trainer.callbacks or []:
        settings: Any = callback.get("init_args") or {}
        for name, value in list(settings.items()):
            if isinstance(value, Enum):  # Timer's interval
                settings[name] = value.value
            elif isinstance(value, torch.device):  # of StochasticWeightAveraging
                settings[name] = str(value)
    if isinstance(trainer.val_check_interval, float) and trainer.check_val_every_n_epoch is None:
        trainer.check_val_every_n_epoch = 1  # a fraction is one of an epoch


def choose_precision(trainer: Namespace, dim: int) -> None:
    """Set trainer.precision where it is left open and a CPU computes: bf16-mixed if it multiplies bfloat16 faster."""
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if trainer.precision is None and (trainer.accelerator == "cpu" or not gpu):
        faster = compute_dtype("auto", torch.device("cpu"), dim) == torch.bfloat16
        trainer.precision = "bf16-mixed" if faster else "32-true"


def check_trainer(trainer: Namespace, command: str) -> None:
    """Check the options of the trainer for `fit`, `validate`, `test` or `predict`.

    Raises:
        UserError: One of them is out of range, or cannot work here; names what to use instead.
    """
    interval = trainer.val_check_interval
    if isinstance(interval, Real) and interval <= 0:
        raise UserError(
            f"trainer.val_check_interval is {interval}; give a number of batches, or turn validation off with "
            "--trainer.limit_val_batches 0."
        )
    for name, least in _LEAST.items():
        value = trainer.get(name)
        if isinstance(value, int | float) and not least <= value < math.inf:
            raise UserError(f"trainer.{name} is {value}; give {least} or more.")
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if trainer.accelerator in ("gpu", "cuda") and not gpu:
        raise UserError(
            f"trainer.accelerator is {trainer.accelerator} and torch finds no GPU here; add "
            "-c configs/trainer/cpu.yaml or --trainer.accelerator auto, or check the driver with nvidia-smi."
        )
    _check_strategy(trainer)
    if command == "fit":
        _check_training(trainer)


def _check_strategy(trainer: Namespace) -> None:
    name = trainer.strategy if isinstance(trainer.strategy, str) else ""
    kind = class_of(trainer.strategy)
    start = trainer.strategy.get("init_args", {}).get("start_method") if kind is DDPStrategy else None
    if any(word in name for word in _COPYING) or start not in (None, "popen"):
        raise UserError(
            f"trainer.strategy {name or start} copies this process, which cannot be copied in a training; use ddp, which "
            "starts each process with the same command."
        )
    if name.startswith(_OTHER_SHARDING) or issubclass(kind, (FSDPStrategy, DeepSpeedStrategy)):
        raise UserError(
            f"trainer.strategy {name or kind.__name__} shards weights in a way that the moving average and the "
            "checkpoints do not support; use -c configs/trainer/fsdp.yaml, which shards with FSDP2."
        )
    known = ["auto", *StrategyRegistry.available_strategies()]
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
    if trainer.max_steps < 1 and not (trainer.max_steps == -1 and epochs is not None and epochs > 0):
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
    if issubclass(kind, ModelParallelStrategy) and trainer.strategy.get("init_args", {}).get(
        "save_distributed_checkpoint", True
    ):
        raise UserError(
            f"{kind.__name__} would save checkpoints in torch's sharded format, which is not supported, since reading it "
            "can run code; set save_distributed_checkpoint: false in trainer.strategy.init_args, as "
            "configs/trainer/fsdp.yaml does."
        )
