"""A moving average of the weights, whole or sharded: the model that is validated and exported."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from magnet_train.errors import UserError
from magnet_train.training.parallel import is_sharded, local_part, reshard

RAW = "current_model_state"  # key of the raw weights in a checkpoint, the one that Lightning's callback uses
STATE = "averaging_state"


class MovingAverage(Callback):
    """Average the trained weights exponentially; validate and save the average, train the raw ones.

    Lightning's EMAWeightAveraging copies the whole module, which a sharded one does not allow, and keeps the
    share of the first weights for long. This one keeps each rank's own part, and begins like the released
    models: an average of n updates is a true weighted mean of those n. Checkpoints have the same keys.

    Every hook of a validation, a test or a prediction sees the average: those of the module and of all other
    callbacks, from `on_validation_start` to `on_validation_end`. Lightning calls the module's hooks after the
    callbacks', so the weights go back only when training goes on, or ends. For that this callback moves to the
    front of the trainer's.

    Args:
        decay: Share of the average that stays at an update, 0..1.
        every_n_steps: Optimizer steps between two updates.

    Raises:
        UserError: One of them is out of range.

    Source: the released configurations (0.99 every 10 steps).
    """

    def __init__(self, decay: float = 0.99, every_n_steps: int = 10) -> None:
        if not 0 <= decay < 1 or every_n_steps < 1:
            raise UserError(
                f"MovingAverage has decay {decay} and every_n_steps {every_n_steps}; give a decay from 0 to below 1, and "
                "at least 1 step."
            )
        self.decay = decay
        self.every_n_steps = every_n_steps
        self.updates = 0
        self._last_step = 0
        self._average: dict[str, Tensor] = {}  # this rank's part of each trained parameter, by name
        self._in_use = False  # the module holds the average, and `_average` the weights that train

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Be the first to be called, so that no other callback sees the wrong weights."""
        others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        trainer.callbacks = [self, *others]  # type: ignore[attr-defined]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with the weights, or go on with the average that was loaded."""
        self._use_raw(pl_module)
        self._last_step = trainer.global_step
        own = _trained(pl_module)
        if self._average.keys() == own.keys():
            self._average = {name: self._average[name].to(own[name].device) for name in own}
        else:
            self._average = {name: tensor.clone() for name, tensor in own.items()}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the new weights in, every `every_n_steps` optimizer steps."""
        step = trainer.global_step
        if step == self._last_step or step % self.every_n_steps:
            return
        self._last_step = step
        self.updates += 1
        weight = (1 - self.decay) / (1 - self.decay**self.updates)  # 1 at first: the untrained weights go
        own = _trained(pl_module)
        average = [self._average[name] for name in own]
        torch._foreach_lerp_(average, list(own.values()), weight)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate the average."""
        self._use_average(pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Test the average."""
        self._use_average(pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Predict with the average."""
        self._use_average(pl_module)

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go back to the weights that train."""
        self._use_raw(pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Go back to the weights that train, after a validation."""
        self._use_raw(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go back, after a validation with which training ends."""
        self._use_raw(pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the weights that train behind, wherever the run was stopped."""
        self._use_raw(pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Go back, after `validate`, `test` and `predict` of a trainer that has trained."""
        self._use_raw(pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the average where readers look for weights, and the raw weights beside it."""
        if not self._average:
            return
        here, there = ("state_dict", RAW) if self._in_use else (RAW, "state_dict")
        checkpoint[here] = checkpoint["state_dict"]
        self._exchange(pl_module)
        try:
            others = trainer.strategy.lightning_module_state_dict()
            # Copies, since the tensors change back; on the host, where a checkpoint goes anyway.
            checkpoint[there] = {name: t.to("cpu", copy=True) for name, t in others.items()}
        finally:
            self._exchange(pl_module)
        checkpoint[STATE] = {"n_averaged": torch.tensor(self.updates)}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the average, which the strategy has just loaded as the weights, and load the raw ones."""
        self._in_use = False
        if trainer.state.fn != "fit":  # what was loaded is to be measured, not what this trainer has averaged
            self.updates, self._average = 0, {}
            return
        if RAW not in checkpoint:
            return
        self.updates = int(checkpoint[STATE]["n_averaged"])
        self._average = {name: tensor.clone() for name, tensor in _trained(pl_module).items()}
        if any(is_sharded(module) for module in pl_module.modules()):
            set_model_state_dict(pl_module, checkpoint[RAW], options=StateDictOptions(full_state_dict=True))
        else:
            pl_module.load_state_dict(checkpoint[RAW])

    def _use_average(self, pl_module: pl.LightningModule) -> None:
        if not self._in_use:
            self._exchange(pl_module)
            self._in_use = True

    def _use_raw(self, pl_module: pl.LightningModule) -> None:
        if self._in_use:
            self._exchange(pl_module)
            self._in_use = False

    def _exchange(self, pl_module: pl.LightningModule) -> None:
        """Exchange values in place: what else refers to the weights (shards, graphs) stays right."""
        if not self.updates:
            return
        for name, tensor in _trained(pl_module).items():
            kept = tensor.clone()
            tensor.copy_(self._average[name])
            self._average[name].copy_(kept)


def _trained(module: nn.Module) -> dict[str, Tensor]:
    """Return this rank's part of each parameter that trains, sharing its memory."""
    reshard(module)  # validation leaves parts gathered, and those would go stale
    return {
        name: local_part(parameter.detach())
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
