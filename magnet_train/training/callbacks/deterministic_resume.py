"""Make a resumed run the same run: whole steps only, and randomness that follows from the step."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

_CLIPS = "clips of a step"
_EPOCH_LOOP = "epoch_loop."
# What a configuration says of an optimizer. Others in its groups are state (Prodigy's estimates, say).
_NUMBERS = ("initial_lr", "weight_decay", "betas", "eps", "momentum")


class DeterministicResume(Callback):
    """Save states that a resume continues bit for bit, and let the configuration rule what follows.

    - A checkpoint in the middle of an accumulation forgets the batches since the last optimizer step, whose
      gradients it could not keep: the resumed run trains on them again. One in the middle of a validation, or
      right before one that was due, lets the resumed run validate first.
    - Each step seeds torch from (seed, step, rank), so that dropout needs no state in the checkpoint.
    - Learning rate, weight decay and the like come from the configuration of the resumed run, not from the
      checkpoint; what changed is said, also the run's length, the clips of a step and what is learned of a clip.
    """

    def __init__(self) -> None:
        self._configured: list[list[dict[str, Any]]] = []  # by optimizer and group
        self._run: dict[str, Any] = {}  # what is saved of this run, primitives only
        self._restored: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Keep what a resume may change and the optimizer does not hold."""
        return dict(self._run)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what the checkpoint's run was set to."""
        self._restored = dict(state_dict)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the optimizers' numbers before Lightning restores their state."""
        self._configured = [
            [{name: group[name] for name in _NUMBERS if name in group} for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the configuration's numbers over those that came with the optimizer's state."""
        self._run = _settings(trainer, pl_module)
        if trainer.ckpt_path is None:
            return
        for name, now in self._run.items():
            if self._restored.get(name, now) != now:  # checkpoints of before do not say
                rank_zero_info(
                    f"resuming with {name} {now}; it was {self._restored[name]} when the checkpoint was saved"
                )
        for optimizer, configured in zip(trainer.optimizers, self._configured, strict=True):
            for name, (then, now) in _put_back(optimizer, configured).items():
                rank_zero_info(f"resuming with {name} {now}; it was {then} when the checkpoint was saved")
        for config in trainer.lr_scheduler_configs:
            _follow_schedule(config.scheduler)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the first batch of each optimizer step."""
        if trainer.ckpt_path is not None:
            # Lightning counts a step once more when it finds its validation undone, which another interval changes.
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        if _batches_since_step(trainer, counted=1) == 1:
            entropy = (int(getattr(pl_module, "seed", 0)), trainer.global_step, trainer.global_rank)
            torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take Lightning's counters back to the last optimizer step, and to the start of a cut validation."""
        state = checkpoint["loops"]["fit_loop"]
        unfinished = _batches_since_step(trainer) if trainer.accumulate_grad_batches > 1 else 0
        if unfinished:
            _take_back(state[_EPOCH_LOOP + "batch_progress"], unfinished)
            # Lightning counts the step it finds finished once more when it starts again.
            state[_EPOCH_LOOP + "state_dict"]["_batches_that_stepped"] -= 1
        elif trainer.validating:
            _before_validation(state[_EPOCH_LOOP + "val_loop.batch_progress"], begun=True)
        elif _validation_is_due(trainer):
            batches = state[_EPOCH_LOOP + "batch_progress"]
            for part in ("total", "current"):  # as Lightning counts after the hooks of this batch
                batches[part]["completed"] = batches[part]["processed"]
            _before_validation(state[_EPOCH_LOOP + "val_loop.batch_progress"], begun=False)


def _settings(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
    """Collect, as primitives, what decides how many clips a step takes and what is learned of each."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    settings: dict[str, Any] = {"max_steps": trainer.max_steps}
    if batch_size := getattr(data, "batch_size", 0):
        settings[_CLIPS] = batch_size * trainer.world_size * trainer.accumulate_grad_batches
    if hasattr(data, "segment_duration"):
        settings["segment_duration"] = float(data.segment_duration)
    if hasattr(data, "captions"):
        settings["captions"] = str(data.captions)
    for name in ("cfg_dropout", "stage_weights", "stage_sampling"):
        if hasattr(module, name):
            settings[name] = getattr(module, name)
    settings["gradient_clip_val"] = trainer.gradient_clip_val
    settings["precision"] = str(trainer.precision)
    return settings


def _validation_is_due(trainer: pl.Trainer) -> bool:
    """Tell whether Lightning will validate after the batch whose last hooks are being called."""
    loop = trainer.fit_loop.epoch_loop
    done: Any = loop.batch_progress.current
    in_its_hooks = done.processed == done.ready == done.completed + 1
    fetcher = trainer.fit_loop._data_fetcher
    if not in_its_hooks or fetcher is None or loop.val_loop.skip:
        return False
    by_the_clock = trainer._val_check_time_interval is not None  # type: ignore[attr-defined]
    return not by_the_clock and bool(loop._should_check_val_fx(fetcher))


def _batches_since_step(trainer: pl.Trainer, counted: int = 0) -> int:
    """Return how many batches the accumulation has seen since the last optimizer step."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    every = int(trainer.accumulate_grad_batches)
    since = (progress.current.ready - counted) % every
    return int(since) + counted


def _take_back(progress: dict[str, Any], batches: int) -> None:
    for part in ("total", "current"):
        ready = progress[part]["ready"] - batches
        progress[part] |= {"ready": ready, "started": ready, "processed": ready, "completed": ready - 1}


def _before_validation(progress: dict[str, Any], begun: bool) -> None:
    """Describe a validation that has begun and finished no batch: Lightning runs such a one again.

    Args:
        progress: Batches of this validation if it has `begun`, else of the one before.
        begun: It has.
    """
    done = progress["total"]["completed"] - (progress["current"]["completed"] if begun else 0)
    for part, completed in (("total", done), ("current", 0)):
        progress[part] |= {
            "ready": completed + 1,
            "started": completed + 1,
            "processed": completed,
            "completed": completed,
        }
    progress["is_last_batch"] = False


def _put_back(optimizer: Optimizer, configured: list[dict[str, Any]]) -> dict[str, tuple[Any, Any]]:
    """Give the groups their configured numbers; return what that changed: name -> (then, now)."""
    changed = {}
    for group, numbers in zip(optimizer.param_groups, configured, strict=True):
        for name, value in numbers.items():
            if group[name] != value:
                changed[name.removeprefix("initial_")] = (group[name], value)
                group[name] = value
    return changed


def _follow_schedule(scheduler: Any) -> None:
    """Set the learning rates of this step as the configured schedule has them."""
    if not isinstance(scheduler, LambdaLR):  # no closed form: it goes on from the checkpoint's rate
        return
    groups = scheduler.optimizer.param_groups
    scheduler.base_lrs = [group["initial_lr"] for group in groups]
    for group, base, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"] = base * factor(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in groups]  # what LearningRateMonitor and get_last_lr() read
