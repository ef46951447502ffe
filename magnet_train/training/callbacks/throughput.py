"""How fast training is, how much of the data it has seen, and how large its gradients are."""

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
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from magnet_train.errors import UserError
from magnet_train.models import MagnetTransformer
from magnet_train.tokens import CONDITION, TokenBatch
from magnet_train.training.flops import Pass, training_flops
from magnet_train.training.module import MagnetModule


class ThroughputMonitor(Callback):
    """Log at the trainer's logging steps, and nothing in between, so that a step waits for nothing.

    - `train/grad_norm`: 2-norm of all gradients before clipping.
    - `speed/steps_per_second`, `speed/tokens_per_second` (of all codebooks), `speed/audio_hours_per_hour`: over
      the training since the last logging step, all devices together, validation left out.
    - `speed/mfu`: share of the device's peak that the matrix products of the batches need, 0..1: counted from the
      codebooks, masks and captions that they had, by the same rules as `magnet-train benchmark`.
    - `data/slots` and `data/epochs`: clips trained on since the run began, and in multiples of the clips there are.

    Args:
        peak_tflops: The device's peak in the precision of the run, in 10^12 operations a second; None looks up
            known GPUs, and leaves the MFU out for others.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        if peak_tflops is not None and not 0 < peak_tflops < math.inf:
            raise UserError(f"ThroughputMonitor has peak_tflops {peak_tflops}; give a number above 0.")
        self.peak_tflops = peak_tflops
        self.audio_hours_per_hour: float | None = None  # the newest, for the progress bar
        self._peak: float | None = None  # operations a second of all devices
        self._since = 0.0
        self._from_step = 0
        self._paused_at = 0.0
        self._slots: int | None = None  # of the data, before this step
        self._trained = 1.0  # share of the weights that train
        self._stages: list[int] = []  # of the batch that is being trained on
        self._text_positions = 0  # of its captions
        self._text_hook: RemovableHandle | None = None
        self._flops: list[float] = []  # of this rank's batches since the last logging step

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
        """Let the text encoder go."""
        if self._text_hook is not None:
            self._text_hook.remove()

    def _note_text(self, encoder: nn.Module, arguments: Any, states_and_mask: tuple[Tensor, Tensor]) -> None:
        self._text_positions = states_and_mask[0].shape[1]

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
        if self._peak is not None and isinstance(pl_module, MagnetModule):
            self._stages = pl_module.stages_of(batch)

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
            if there_are := getattr(trainer.datamodule, "train_clips", 0):  # type: ignore[attr-defined]
                pl_module.log("data/epochs", slots / there_are)


def training_passes(
    module: MagnetModule, batch: TokenBatch, stages: Sequence[int], text_positions: int
) -> Iterator[Pass]:
    """Say what went through the model in a training step: clips of the first codebook, and all others.

    Args:
        module: Says which frames are masked and which captions hidden.
        batch: Of that step.
        stages: B codebooks.
        text_positions: S, that the captions were padded to.
    """
    answered = (module.draw_mask(batch["noise"]) & batch["valid"]).sum(dim=-1).tolist()
    shown = (batch["noise"][:, CONDITION] >= module.cfg_dropout).tolist()
    for first in (True, False):
        rows = [row for row, stage in enumerate(stages) if (stage == 0) == first]
        if rows:
            yield Pass(
                stage=0 if first else 1,
                clips=len(rows),
                with_text=sum(shown[row] and bool(batch["text"][row]) for row in rows),
                frames=batch["tokens"].shape[-1],
                text_positions=text_positions,
                answered=sum(answered[row] for row in rows),
            )


def trained_share(lm: MagnetTransformer) -> float:
    """Return the share of the weights of the layers' matrices that train, 0..1; they do nearly all of the work."""
    matrices = [parameter for parameter in lm.layers.parameters() if parameter.dim() == 2]
    return sum(p.numel() for p in matrices if p.requires_grad) / sum(p.numel() for p in matrices)


def _dtype(precision: str) -> torch.dtype:
    if precision.startswith("bf16"):
        return torch.bfloat16
    return torch.float16 if precision.startswith("16") else torch.float32
