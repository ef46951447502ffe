"""Throughput, model FLOPs utilisation, data seen and gradient norm."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from magnet_train.errors import UserError
from magnet_train.models import MagnetTransformer
from magnet_train.tokens import CONDITION, TokenBatch
from magnet_train.training.flops import Pass, training_flops
from magnet_train.training.module import MagnetModule


class ThroughputMonitor(Callback):
    """Log at the trainer's logging steps only, so that other steps never wait for the GPU.

    - `train/grad_norm`: 2-norm of all gradients before clipping.
    - `speed/steps_per_second`, `speed/tokens_per_second` (of all codebooks), `speed/audio_hours_per_hour`: of all devices
      since the last logging step, without validation.
    - `speed/mfu`: model FLOPs utilisation, 0..1: FLOPs of the matrix products over the peak of the devices. Counted from
      the codebooks, masks and captions of the batches, as in `magnet-train benchmark`.
    - `data/slots` and `data/epochs`: clips trained on since the start of the run, and the same in passes over the data.

    Args:
        peak_tflops: Peak of one device in the precision of the run, in 10^12 FLOP/s; None takes the peak of known GPUs,
            and logs no MFU for other devices.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        if peak_tflops is not None and not 0 < peak_tflops < math.inf:
            raise UserError(f"ThroughputMonitor has peak_tflops {peak_tflops}; give a number above 0.")
        self.peak_tflops = peak_tflops
        self.audio_hours_per_hour: float | None = None  # latest value, for the progress bar
        self._peak: float | None = None  # FLOP/s of all devices
        self._since = 0.0
        self._from_step = 0
        self._paused_at = 0.0
        self._slots: int | None = None  # position in the data before this step
        self._trained = 1.0  # share of trained weights
        self._stages: list[int] = []  # of the current batch
        self._text_positions = 0  # of the current batch, with padding
        self._text_hook: RemovableHandle | None = None
        self._flops: list[float] = []  # of each batch of this rank since the last logging step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._since, self._from_step = time.monotonic(), trainer.global_step
        peak = None if self.peak_tflops is None else self.peak_tflops * 1e12
        if peak is None and trainer.strategy.root_device.type == "cuda":
            peak = get_available_flops(trainer.strategy.root_device, _dtype(str(trainer.precision)))
        self._peak = None if peak is None else peak * trainer.world_size
        self._flops = []
        if self._peak is not None and isinstance(pl_module, MagnetModule):
            self._trained = trained_share(pl_module.lm)
            self._text_hook = pl_module.text.register_forward_hook(self._note_text)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the hook from the text encoder."""
        if self._text_hook is not None:
            self._text_hook.remove()

    def _note_text(self, encoder: nn.Module, arguments: Any, states_and_mask: tuple[Tensor, Tensor]) -> None:
        self._text_positions = states_and_mask[0].shape[1]

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._paused_at = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restart the clock."""
        self._since += time.monotonic() - self._paused_at

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the position before this step, since callbacks may run in any order at its end."""
        self._slots = next((c.slots for c in trainer.callbacks if hasattr(c, "slots")), None)  # type: ignore[attr-defined]
        if self._peak is not None and isinstance(pl_module, MagnetModule):
            self._stages = pl_module.stages_of(batch)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Log the gradient norm before a logging step."""
        if (trainer.global_step + 1) % max(1, trainer.log_every_n_steps):  # type: ignore[attr-defined]
            return
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        norm: Any = torch.nn.utils.get_total_norm(gradients)
        pl_module.log("train/grad_norm", norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Log throughput since the last logging step."""
        if self._peak is not None and isinstance(pl_module, MagnetModule):
            passes = training_passes(pl_module, batch, self._stages, self._text_positions)
            self._flops.append(
                sum(training_flops(pl_module.lm.config, work, self._trained) for work in passes)
            )
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
        if self._peak is not None and self._flops:
            batches = trainer.world_size * trainer.accumulate_grad_batches
            pl_module.log("speed/mfu", rate * batches * statistics.mean(self._flops) / self._peak)
            self._flops = []
        if self._slots is not None:
            slots = self._slots + clips
            pl_module.log("data/slots", float(slots))
            if train_clips := getattr(trainer.datamodule, "train_clips", 0):  # type: ignore[attr-defined]
                pl_module.log("data/epochs", slots / train_clips)


def training_passes(
    module: MagnetModule, batch: TokenBatch, stages: Sequence[int], text_positions: int
) -> Iterator[Pass]:
    """Describe the forward passes of a training batch: clips of the first codebook, and of the others.

    Args:
        module: Draws the masks and drops captions.
        batch: Batch of the step.
        stages: Codebook of each of the B clips.
        text_positions: S, the padded length of the captions.
    """
    answered = (module.draw_mask(batch["noise"]) & batch["valid"]).sum(dim=-1).tolist()
    keep_condition = (batch["noise"][:, CONDITION] >= module.cfg_dropout).tolist()
    for first in (True, False):
        rows = [row for row, stage in enumerate(stages) if (stage == 0) == first]
        if rows:
            yield Pass(
                stage=0 if first else 1,
                clips=len(rows),
                with_text=sum(keep_condition[row] and bool(batch["text"][row]) for row in rows),
                frames=batch["tokens"].shape[-1],
                text_positions=text_positions,
                answered=sum(answered[row] for row in rows),
            )


def trained_share(lm: MagnetTransformer) -> float:
    """Return the share of trained weights in the matrices of the layers, 0..1, which do nearly all of the work."""
    matrices = [parameter for parameter in lm.layers.parameters() if parameter.dim() == 2]
    return sum(p.numel() for p in matrices if p.requires_grad) / sum(p.numel() for p in matrices)


def _dtype(precision: str) -> torch.dtype:
    if precision.startswith("bf16"):
        return torch.bfloat16
    return torch.float16 if precision.startswith("16") else torch.float32
