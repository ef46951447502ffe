"""Refuse what the trainer cannot do in one sentence that names the option."""

from __future__ import annotations

import difflib
import math
from enum import Enum
from numbers import Real
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, StrategyRegistry

from magnet_train.cli.fit.callback_options import class_of
from magnet_train.errors import UserError

_GPUS = ("gpu", "cuda")
_WEIGHTS_IN_16_BITS = ("16-true", "bf16-true")
_LEAST = {  # the smallest value of each that means something
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": -1,
    "min_steps": 0,
    "min_epochs": 0,
    "reload_dataloaders_every_n_epochs": 0,
    "gradient_clip_val": 0,
}
_COPYING = ("spawn", "fork", "notebook")  # how the names of strategies say that they copy this process
_OTHER_SHARDING = ("fsdp", "deepspeed")


def complete_trainer(trainer: Namespace) -> None:
    """Fill in what follows from other options."""
    trainer.use_distributed_sampler = False  # the data deals its clips out among the ranks itself
    if isinstance(trainer.callbacks, Namespace):
        trainer.callbacks = [trainer.callbacks]
    for callback in trainer.callbacks or []:
        _write_plainly(callback.get("init_args") or {})
    if isinstance(trainer.val_check_interval, float) and trainer.check_val_every_n_epoch is None:
        trainer.check_val_every_n_epoch = 1  # a fraction is one of an epoch


def _write_plainly(settings: Namespace | dict[str, Any]) -> None:
    """Put words in place of the defaults of Lightning's callbacks that config.yaml could not hold."""
    for name, value in list(settings.items()):
        if isinstance(value, Enum):  # Timer's interval
            settings[name] = value.value
        elif isinstance(value, torch.device):  # of StochasticWeightAveraging
            settings[name] = str(value)


def check_trainer(trainer: Namespace, command: str) -> None:
    """Look at the options whose mistakes the trainer tells late or in words of its own.

    Args:
        trainer: The options of the trainer.
        command: `fit`, `validate`, ...

    Raises:
        UserError: One of them cannot be.
    """
    if command == "fit":
        _check_length(trainer)
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
    for name, least in _LEAST.items():
        value = trainer.get(name)
        if isinstance(value, int | float) and not least <= value < math.inf:
            raise UserError(f"trainer.{name} is {value}; give {least} or more.")
    if (
        trainer.accelerator in _GPUS
        and not torch.cuda.is_available()
        and not torch.backends.mps.is_available()
    ):
        raise UserError(
            f"trainer.accelerator is {trainer.accelerator} and torch finds no GPU here; add "
            "-c configs/trainer/cpu.yaml or --trainer.accelerator auto, or check the driver with nvidia-smi."
        )
    _check_strategy(trainer)


def _check_length(trainer: Namespace) -> None:
    """See that training has an end and something to train on."""
    epochs = trainer.max_epochs
    if epochs == 0:
        raise UserError(
            "trainer.max_epochs is 0; give 1 or more, or -1 to let trainer.max_steps end the run."
        )
    if trainer.max_steps < 1 and not (trainer.max_steps == -1 and epochs is not None and epochs > 0):
        raise UserError(
            f"trainer.max_steps is {trainer.max_steps}: the learning rate needs to know where it ends; give the "
            "number of optimizer steps, at least 1."
        )
    if trainer.limit_train_batches == 0:
        raise UserError(
            f"trainer.limit_train_batches is {trainer.limit_train_batches}, which leaves nothing to train on; give 1 "
            "or more, or use `magnet-train validate`."
        )
    if trainer.overfit_batches:
        raise UserError(
            "trainer.overfit_batches would replace the order of the clips, in which a resume finds its place; to see a "
            "model learn a few clips by heart, tokenize these alone and give their folder as --data.shards."
        )


def _check_strategy(trainer: Namespace) -> None:
    """Refuse strategies that do not exist, and those that cannot carry what a run needs."""
    name = trainer.strategy if isinstance(trainer.strategy, str) else ""
    kind = class_of(trainer.strategy)
    start = trainer.strategy.get("init_args", {}).get("start_method") if kind is DDPStrategy else None
    if any(word in name for word in _COPYING) or start not in (None, "popen"):
        raise UserError(
            f"trainer.strategy {name or start} starts its processes as copies of this one, which a training here cannot be "
            "copied into; use ddp, which starts them by the same command."
        )
    if name.startswith(_OTHER_SHARDING) or issubclass(kind, (FSDPStrategy, DeepSpeedStrategy)):
        raise UserError(
            f"trainer.strategy {name or kind.__name__} shards weights in a way that the moving average and the "
            "checkpoints do not follow; use -c configs/trainer/fsdp.yaml, which shards with FSDP2."
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
