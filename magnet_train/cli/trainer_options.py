"""Refuse what the trainer cannot do in one sentence that names the option."""

from __future__ import annotations

import difflib
from numbers import Real

import torch
from jsonargparse import Namespace
from lightning.pytorch.strategies import StrategyRegistry

from magnet_train.errors import UserError

_GPUS = ("gpu", "cuda")
_WEIGHTS_IN_16_BITS = ("16-true", "bf16-true")


def check_trainer(trainer: Namespace, command: str) -> None:
    """Look at the options whose mistakes the trainer tells late or in words of its own.

    Args:
        trainer: The options of the trainer.
        command: `fit`, `validate`, ...

    Raises:
        UserError: One of them cannot be.
    """
    if command == "fit" and trainer.max_steps < 1:
        raise UserError(
            f"trainer.max_steps is {trainer.max_steps}: the learning rate needs to know where it ends; give the "
            "number of optimizer steps, at least 1."
        )
    interval = trainer.val_check_interval
    if isinstance(interval, Real) and interval <= 0:
        raise UserError(
            f"trainer.val_check_interval is {interval}; give a number of batches, or --trainer.limit_val_batches 0 "
            "to validate never."
        )
    if command == "fit" and str(trainer.precision) in _WEIGHTS_IN_16_BITS:
        raise UserError(
            f"trainer.precision {trainer.precision} keeps the weights themselves in 16 bits, where small updates and the "
            "moving average are lost; use bf16-mixed, or 32-true on a CPU."
        )
    if trainer.accumulate_grad_batches < 1:
        raise UserError(
            f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}; give 1 or more."
        )
    if (
        trainer.accelerator in _GPUS
        and not torch.cuda.is_available()
        and not torch.backends.mps.is_available()
    ):
        raise UserError(
            f"trainer.accelerator is {trainer.accelerator} and torch finds no GPU here; add "
            "-c configs/trainer/cpu.yaml or --trainer.accelerator auto, or check the driver with nvidia-smi."
        )
    known = ["auto", *StrategyRegistry.available_strategies()]
    if isinstance(trainer.strategy, str) and trainer.strategy not in known:
        close = difflib.get_close_matches(trainer.strategy, known, n=3) or known
        raise UserError(f"there is no trainer.strategy '{trainer.strategy}'; give {' or '.join(close)}.")


def explain(error: Exception) -> UserError:
    """Make one sentence of what Lightning says when it cannot build the trainer."""
    text = " ".join(str(error).replace("`", "").split())
    return UserError(
        f"the trainer cannot be built ({text[:300].rstrip('.!')}); change its options (trainer.*)."
    )
