"""How fast training is, how much of the data it has seen, and how large its gradients are."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.optim import Optimizer

from magnet_train.errors import UserError
from magnet_train.models import MagnetTransformer


class SpeedMonitor(Callback):
    """Log at the trainer's logging steps, and nothing in between, so that a step waits for nothing.

    - `train/grad_norm`: 2-norm of all gradients before clipping.
    - `speed/steps_per_second`, `speed/tokens_per_second` (of all codebooks), `speed/audio_hours_per_hour`: over
      the training since the last logging step, all devices together, validation left out.
    - `speed/mfu`: share of the device's peak that the model's matrix products use, 0..1.
    - `data/slots` and `data/epochs`: clips trained on since the run began, and in multiples of the clips there are.

    Args:
        peak_tflops: The device's peak in the precision of the run, in 10^12 operations a second; None looks up
            known GPUs, and leaves the MFU out for others.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        if peak_tflops is not None and not 0 < peak_tflops < math.inf:
            raise UserError(f"SpeedMonitor has peak_tflops {peak_tflops}; give a number above 0.")
        self.peak_tflops = peak_tflops
        self.audio_hours_per_hour: float | None = None  # the newest, for the progress bar
        self._peak: float | None = None  # operations a second of all devices
        self._since = 0.0
        self._from_step = 0
        self._paused_at = 0.0
        self._slots: int | None = None  # of the data, before this step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._since, self._from_step = time.monotonic(), trainer.global_step
        peak = None if self.peak_tflops is None else self.peak_tflops * 1e12
        if peak is None and trainer.strategy.root_device.type == "cuda":
            peak = get_available_flops(trainer.strategy.root_device, _dtype(str(trainer.precision)))
        self._peak = None if peak is None else peak * trainer.world_size

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._paused_at = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let it go on."""
        self._since += time.monotonic() - self._paused_at

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the position before this step, whichever callback is asked first at its end."""
        self._slots = next((c.slots for c in trainer.callbacks if hasattr(c, "slots")), None)  # type: ignore[attr-defined]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure the gradients that a logging step is about to use."""
        if (trainer.global_step + 1) % max(1, trainer.log_every_n_steps):  # type: ignore[attr-defined]
            return
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        norm: Any = torch.nn.utils.get_total_norm(gradients)
        pl_module.log("train/grad_norm", norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log what happened since the last logging step."""
        steps = trainer.global_step - self._from_step
        if not steps or trainer.global_step % max(1, trainer.log_every_n_steps):  # type: ignore[attr-defined]
            return
        now = time.monotonic()
        rate = steps / (now - self._since)
        self._since, self._from_step = now, trainer.global_step
        pl_module.log("speed/steps_per_second", rate)
        self._log_data(trainer, pl_module, batch["tokens"], rate)

    def _log_data(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, tokens: Tensor, rate: float
    ) -> None:
        clips, codebooks, frames = tokens.shape
        clips *= trainer.world_size * trainer.accumulate_grad_batches
        pl_module.log("speed/tokens_per_second", rate * clips * codebooks * frames)
        codec = getattr(pl_module, "codec", None)
        if codec is not None:
            self.audio_hours_per_hour = rate * clips * frames / codec.frame_rate
            pl_module.log("speed/audio_hours_per_hour", self.audio_hours_per_hour)
        lm = getattr(pl_module, "lm", None)
        if self._peak is not None and isinstance(lm, MagnetTransformer):
            pl_module.log("speed/mfu", rate * clips * flops_per_clip(lm, frames) / self._peak)
        if self._slots is not None:
            slots = self._slots + clips
            pl_module.log("data/slots", float(slots))
            if there_are := getattr(trainer.datamodule, "train_clips", 0):  # type: ignore[attr-defined]
                pl_module.log("data/epochs", slots / there_are)


def flops_per_clip(lm: MagnetTransformer, frames: int) -> float:
    """Count the operations of one training step on one clip of `frames` token frames.

    Six for each weight of a matrix that a frame passes (two forward, four backward) and twelve for each pair of
    frames and channel of self-attention; one of the heads is used. The text's few tokens, norms and embeddings
    are left out, and so is what activation checkpointing computes twice.

    Source: arXiv 2204.02311, appendix B.
    """
    of_the_text = ("cross_attention.k_proj.weight", "cross_attention.v_proj.weight")
    matrices = lm.card * lm.dim + sum(
        parameter.numel()
        for name, parameter in lm.layers.named_parameters()
        if parameter.dim() == 2 and not name.endswith(of_the_text)
    )
    return 6.0 * matrices * frames + 12.0 * int(lm.config["num_layers"]) * lm.dim * frames * frames


def _dtype(precision: str) -> torch.dtype:
    if precision.startswith("bf16"):
        return torch.bfloat16
    return torch.float16 if precision.startswith("16") else torch.float32
