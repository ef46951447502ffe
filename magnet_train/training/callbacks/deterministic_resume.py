"""Bit-exact resume: counters at whole steps, seeds per step, settings from the configuration, no lost metrics."""

from __future__ import annotations

import contextlib
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch.optim.lr_scheduler import LambdaLR

from magnet_train.errors import UserError
from magnet_train.training import lightning_internals as internals

# Entries of parameter groups that the configuration sets; an optimizer may keep state in others.
_SETTINGS = ("initial_lr", "weight_decay", "betas", "eps", "momentum")


class DeterministicResume(Callback):
    """Save checkpoints from which a resumed run continues bit for bit, under the resumed run's configuration.

    - A checkpoint inside an accumulation drops the batches since the last optimizer step, whose gradients are not
      saved; the resumed run trains on them again. One during a validation, or right before a validation that is due,
      makes the resumed run validate first.
    - Each optimizer step seeds torch from (seed, step, rank), so dropout needs no state in the checkpoint.
    - Learning rate, weight decay and the like are those of the resumed run's configuration. Changes are printed, also
      those of the run's length, the schedule, the clips of a step, and what the model learns from a clip. Another
      optimizer is refused.
    """

    def __init__(self) -> None:
        self._configured: list[list[dict[str, Any]]] = []  # by optimizer and parameter group
        self._settings: dict[str, Any] = {}  # of this run
        self._restored: dict[str, Any] = {}  # of the run that saved the checkpoint

    def state_dict(self) -> dict[str, Any]:
        """Return the settings that a resume may change and the optimizer does not hold."""
        return dict(self._settings)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = dict(state_dict)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that the optimizer state fits, and remember the configured settings, before Lightning restores it.

        Raises:
            UserError: The checkpoint holds the state of another optimizer or of other parameters.
        """
        for name, now in _optimizer_shape(trainer).items():
            then = self._restored.get(name, now)
            if then != now:
                raise UserError(
                    f"{internals.loaded_checkpoint(pl_module)} was saved with {name} {then} and this run has {now}, which "
                    "the saved optimizer state does not fit; give the same model.optimizer and tuning, or start a new run "
                    "from the weights with --init_from."
                )
        self._configured = [
            [{name: group[name] for name in _SETTINGS if name in group} for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Overwrite the restored optimizer settings with the configured ones, and print what changed."""
        self._settings = _run_settings(trainer, pl_module) | _optimizer_shape(trainer)
        if trainer.ckpt_path is None:
            return
        changes = {
            name: (self._restored[name], now)
            for name, now in self._settings.items()
            if self._restored.get(name, now) != now
        }
        for optimizer, configured in zip(trainer.optimizers, self._configured, strict=True):
            for group, settings in zip(optimizer.param_groups, configured, strict=True):
                changed = {name: value for name, value in settings.items() if group.get(name) != value}
                changes |= {
                    name.removeprefix("initial_"): (group.get(name), now) for name, now in changed.items()
                }
                group.update(changed)
        for name, (then, now) in changes.items():
            rank_zero_info(f"resuming with {name} {now}; it was {then} when the checkpoint was saved")
        for config in trainer.lr_scheduler_configs:
            _recompute_rates(config.scheduler)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Seed the first batch of each optimizer step."""
        if trainer.ckpt_path is not None:
            internals.set_logged_step(trainer, trainer.global_step)
        if (internals.batches_ready(trainer) - 1) % trainer.accumulate_grad_batches == 0:
            entropy = (int(getattr(pl_module, "seed", 0)), trainer.global_step, trainer.global_rank)
            torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set Lightning's counters back to the last optimizer step, or to the start of an unfinished validation."""
        if unfinished := internals.batches_ready(trainer) % trainer.accumulate_grad_batches:
            internals.drop_batches(checkpoint, unfinished)
        elif trainer.validating:
            internals.restart_validation(checkpoint)
        elif internals.validation_is_due(trainer):
            internals.start_with_validation(checkpoint)


class LastRow(Callback):
    """Log the metrics of a finished step when a callback stops the run after that step.

    Lightning logs them after all hooks of the step. A signal, a full disk or a failed checkpoint raises in one of these
    hooks, and a resumed run continues with the next step, so the row would be lost. Values that the hooks did not get
    to log are missing from it.
    """

    def __init__(self) -> None:
        self._before: dict[str, Any] = {}  # values by metric, before this batch

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._before = internals.logged_values(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Log the step if its update was made and its hooks were running."""
        if trainer.training and internals.in_batch_end_hooks(trainer):
            with contextlib.suppress(Exception):  # the exception that stopped the run matters more
                internals.log_unfinished_step(trainer, self._before)


def _optimizer_shape(trainer: pl.Trainer) -> dict[str, Any]:
    """Return, as primitives, what the state of an optimizer belongs to."""
    return {
        "optimizer": ", ".join(type(optimizer).__qualname__ for optimizer in trainer.optimizers),
        "sizes of parameter groups": [
            len(group["params"]) for optimizer in trainer.optimizers for group in optimizer.param_groups
        ],
    }


def _run_settings(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
    """Collect, as primitives, what determines the clips of a step and what the model learns from each."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    settings: dict[str, Any] = {
        "max_steps": trainer.max_steps,
        "gradient_clip_val": trainer.gradient_clip_val,
        "precision": str(trainer.precision),
    }
    if batch_size := getattr(data, "batch_size", 0):
        settings["clips of a step"] = batch_size * trainer.world_size * trainer.accumulate_grad_batches
    if hasattr(data, "segment_duration"):
        settings["segment_duration"] = float(data.segment_duration)
    if hasattr(data, "captions"):
        settings["captions"] = str(data.captions)
    settings["model"] = type(module).__qualname__
    settings["schedule"] = ", ".join(
        type(config.scheduler).__qualname__ for config in trainer.lr_scheduler_configs
    )
    names = ("warmup_steps", "cfg_dropout", "stage_weights", "stage_sampling")
    return settings | {name: getattr(module, name) for name in names if hasattr(module, name)}


def _recompute_rates(scheduler: Any) -> None:
    """Set the learning rates of this step from the configured schedule."""
    if not isinstance(scheduler, LambdaLR):  # no closed form: continue from the checkpoint's rate
        return
    groups = scheduler.optimizer.param_groups
    scheduler.base_lrs = [group["initial_lr"] for group in groups]
    for group, base, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"] = base * factor(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in groups]  # read by LearningRateMonitor and get_last_lr()
