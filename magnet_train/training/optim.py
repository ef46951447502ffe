"""Learning-rate schedules and weight EMA."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from magnet_train.checkpoints.bundle import AVERAGING_STATE, RAW_WEIGHTS
from magnet_train.errors import UserError
from magnet_train.training.parallel import is_sharded, local_part, reshard


class WarmupCosine(LambdaLR):
    """Linear warm-up, then half a cosine down to 0.

    Args:
        optimizer: Optimizer whose learning rates are scheduled.
        warmup_steps: Optimizer steps of the warm-up.
        max_steps: Optimizer step at which the learning rate is 0.

    Source: arXiv 2401.04577, section 4.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int, max_steps: int) -> None:
        def factor(step: int) -> float:
            if step < warmup_steps:
                return step / warmup_steps
            done = (step - warmup_steps) / max(1, max_steps - warmup_steps)
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))

        super().__init__(optimizer, factor)


class WarmupInverseSquareRoot(LambdaLR):
    """Linear warm-up, then the inverse square root of the step, which never reaches 0.

    Args:
        optimizer: Optimizer whose learning rates are scheduled.
        warmup_steps: Optimizer steps of the warm-up.
        max_steps: Unused, so a run can be extended without changing its earlier steps.

    Source: the released audio-magnet configuration.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int, max_steps: int) -> None:
        def factor(step: int) -> float:
            if step < warmup_steps:
                return step / warmup_steps
            return math.sqrt(max(1, warmup_steps) / max(1, step))

        super().__init__(optimizer, factor)


class MovingAverage(Callback):
    """Exponential moving average of the trained weights: validated and saved in place of the raw weights.

    Each rank averages its own part, so sharded models work too (Lightning's EMAWeightAveraging copies the whole
    module). After n updates the average is a weighted mean of these n values, without the untrained weights, as in the
    released models. Checkpoints have the keys of EMAWeightAveraging.

    Every hook of a validation, test or prediction sees the average, in the module and in all other callbacks. Lightning
    calls a module's hooks after those of the callbacks, so the raw weights return only when training continues or ends,
    and this callback moves to the front of the trainer's list.

    Args:
        decay: Share of the average that stays at an update, 0 <= decay < 1.
        every_n_steps: Optimizer steps between two updates, at least 1.

    Raises:
        UserError: One of them is out of range.

    Source: the released configurations (0.99 every 10 steps).
    """

    def __init__(self, decay: float = 0.99, every_n_steps: int = 10) -> None:
        if not 0 <= decay < 1 or every_n_steps < 1:
            raise UserError(
                f"MovingAverage has decay {decay} and every_n_steps {every_n_steps}; give 0 <= decay < 1 and "
                "every_n_steps >= 1."
            )
        self.decay = decay
        self.every_n_steps = every_n_steps
        self.updates = 0
        self._last_step = 0
        self._average: dict[str, Tensor] = {}  # this rank's part of each trained parameter, by name
        self._swapped = False  # the module holds the average, and `_average` the raw weights

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Move to the front of the callbacks."""
        others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        trainer.callbacks = [self, *others]  # type: ignore[attr-defined]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start from the weights, or from the average that was loaded."""
        self._use_raw(trainer, pl_module)
        self._last_step = trainer.global_step
        own = _trained(pl_module)
        if self._average.keys() == own.keys():
            self._average = {name: self._average[name].to(own[name].device) for name in own}
        else:
            self._average = {name: tensor.clone() for name, tensor in own.items()}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Update the average every `every_n_steps` optimizer steps."""
        step = trainer.global_step
        if step == self._last_step or step % self.every_n_steps:
            return
        self._last_step = step
        self.updates += 1
        weight = (1 - self.decay) / (1 - self.decay**self.updates)  # 1 at first
        own = _trained(pl_module)
        average = [self._average[name] for name in own]
        torch._foreach_lerp_(average, list(own.values()), weight)

    def _use_average(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._swapped:
            self._swap_values(pl_module)
            self._swapped = True

    def _use_raw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any) -> None:
        if self._swapped:
            self._swap_values(pl_module)
            self._swapped = False

    on_validation_start = on_test_start = on_predict_start = _use_average
    # When training goes on after a validation, at its end, at an error, and after `validate`, `test` or `predict`.
    on_sanity_check_end = on_train_batch_start = on_train_epoch_end = on_exception = teardown = _use_raw

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average as `state_dict`, and the raw weights beside it."""
        if not self._average:
            return
        held, other = ("state_dict", RAW_WEIGHTS) if self._swapped else (RAW_WEIGHTS, "state_dict")
        checkpoint[held] = checkpoint["state_dict"]
        self._swap_values(pl_module)
        try:
            weights = trainer.strategy.lightning_module_state_dict()
            # Copies, since the tensors change back; on the CPU, where a checkpoint goes anyway.
            checkpoint[other] = {name: tensor.to("cpu", copy=True) for name, tensor in weights.items()}
        finally:
            self._swap_values(pl_module)
        checkpoint[AVERAGING_STATE] = {"n_averaged": torch.tensor(self.updates)}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Copy the average, which Lightning has loaded as the weights, and load the raw weights."""
        self._swapped = False
        if trainer.state.fn != "fit":  # measure the loaded weights, not this trainer's average
            self.updates, self._average = 0, {}
            return
        if RAW_WEIGHTS not in checkpoint:
            return
        self.updates = int(checkpoint[AVERAGING_STATE]["n_averaged"])
        self._average = {name: tensor.clone() for name, tensor in _trained(pl_module).items()}
        if any(is_sharded(module) for module in pl_module.modules()):
            options = StateDictOptions(full_state_dict=True)
            set_model_state_dict(pl_module, checkpoint[RAW_WEIGHTS], options=options)
        else:
            pl_module.load_state_dict(checkpoint[RAW_WEIGHTS])

    def _swap_values(self, pl_module: pl.LightningModule) -> None:
        """Swap values in place, so that shards and compiled graphs keep referring to the weights."""
        if not self.updates:
            return
        for name, tensor in _trained(pl_module).items():
            kept = tensor.clone()
            tensor.copy_(self._average[name])
            self._average[name].copy_(kept)


def _trained(module: nn.Module) -> dict[str, Tensor]:
    """Return this rank's part of each trained parameter, sharing its memory."""
    reshard(module)  # validation leaves layers gathered, whose copies would go stale
    return {
        name: local_part(parameter.detach())
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
