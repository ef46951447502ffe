"""Progress of a run: throughput, FLOPs utilisation and gradient norm for the loggers, and the progress bar."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from torch import Tensor
from torch.optim import Optimizer

from magnet_train.errors import UserError
from magnet_train.models import MagnetTransformer
from magnet_train.training.cost import Pass, training_flops
from magnet_train.training.module import MagnetModule, TrainedBatch
from magnet_train.training.objective import group_by_context

_BAR_SECONDS = 0.5  # between two updates: reading the loss makes a GPU wait
_REFRESHES = 10  # of the terminal, a second


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
        self._peak: float | None = None  # FLOP/s of all devices; None counts no FLOPs
        self._since, self._from_step, self._paused_at = 0.0, 0, 0.0
        self._slots: int | None = None  # position in the data before this step
        self._trained = 1.0  # share of trained weights
        self._flops: list[float] = []  # of each batch of this rank since the last logging step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and look up the peak of the devices."""
        self._since, self._from_step = time.monotonic(), trainer.global_step
        peak = None if self.peak_tflops is None else self.peak_tflops * 1e12
        device = trainer.strategy.root_device
        if peak is None and device.type == "cuda":
            peak = get_available_flops(device, _dtype(str(trainer.precision)))
        self._peak, self._flops = None if peak is None else peak * trainer.world_size, []
        if self._peak is not None and isinstance(pl_module, MagnetModule):
            self._trained = _trained_share(pl_module.lm)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._paused_at = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since += time.monotonic() - self._paused_at

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Remember the position before this step, since callbacks may run in any order at its end."""
        self._slots = next((c.slots for c in trainer.callbacks if hasattr(c, "slots")), None)  # type: ignore[attr-defined]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        if (trainer.global_step + 1) % max(1, trainer.log_every_n_steps):  # type: ignore[attr-defined]
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm: Any = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        pl_module.log("train/grad_norm", norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if self._peak is not None and isinstance(pl_module, MagnetModule) and pl_module.trained_batch:
            passes = training_passes(pl_module.trained_batch, pl_module.lm.n_q, pl_module.lm.streams)
            config = pl_module.lm.config
            self._flops.append(sum(training_flops(config, work, self._trained) for work in passes))
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
        batches = trainer.world_size * trainer.accumulate_grad_batches
        clips *= batches
        pl_module.log("speed/tokens_per_second", rate * clips * codebooks * frames)
        codec = getattr(pl_module, "codec", None)
        if codec is not None:
            self.audio_hours_per_hour = rate * clips * frames / codec.frame_rate
            pl_module.log("speed/audio_hours_per_hour", self.audio_hours_per_hour)
        if self._peak is not None and self._flops:
            pl_module.log("speed/mfu", rate * batches * statistics.mean(self._flops) / self._peak)
            self._flops = []
        if self._slots is not None:
            slots = self._slots + clips
            pl_module.log("data/slots", float(slots))
            if train_clips := getattr(trainer.datamodule, "train_clips", 0):  # type: ignore[attr-defined]
                pl_module.log("data/epochs", slots / train_clips)


def training_passes(batch: TrainedBatch, n_q: int, streams: int = 1) -> Iterator[Pass]:
    """Describe the forward passes of a training batch: clips of the first codebooks, and of the others."""
    scored_frames = batch.is_scored.sum(dim=-1).tolist()
    for stages, clips in group_by_context(batch.stages, n_q, False, streams):
        yield Pass(
            stage=stages[0],
            clips=len(clips),
            with_text=len(set(clips) & set(batch.with_text)),
            frames=batch.is_scored.shape[-1],
            text_positions=batch.text_positions,
            answered=sum(scored_frames[clip] for clip in clips),
        )


def _trained_share(lm: MagnetTransformer) -> float:
    """Return the share of trained weights in the matrices of the layers, 0..1, which do nearly all of the work."""
    matrices = [parameter for parameter in lm.layers.parameters() if parameter.dim() == 2]
    return sum(p.numel() for p in matrices if p.requires_grad) / sum(p.numel() for p in matrices)


def _dtype(precision: str) -> torch.dtype:
    if precision.startswith("bf16"):
        return torch.bfloat16
    return torch.float16 if precision.startswith("16") else torch.float32


class StepProgressBar(RichProgressBar):
    """Show steps, time left, losses and hours of audio per hour: as a bar in a terminal, else as lines.

    It counts optimizer steps up to `max_steps`, since the training loader is endless.

    Args:
        line_seconds: Time between two lines where standard error is not a terminal.
    """

    def __init__(self, line_seconds: float = 30.0) -> None:
        self._terminal = sys.stderr.isatty()
        theme = RichProgressBarTheme(metrics_text_delimiter=" · ")
        refreshes = _REFRESHES if self._terminal else 0  # 0 switches the bar off
        super().__init__(refresh_rate=refreshes, theme=theme, console_kwargs={"stderr": True})
        self.line_seconds = line_seconds
        self._started_at, self._updated_at, self._first_step = 0.0, 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the bar start at the step that the run starts from."""
        super().on_train_start(trainer, pl_module)
        self._started_at = self._updated_at = time.monotonic()
        self._first_step = trainer.global_step
        if self.progress is not None:
            steps = trainer.max_steps if trainer.max_steps > 0 else math.inf
            self.train_progress_bar_id = self.progress.add_task(
                "Step", total=steps, completed=self._first_step
            )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do nothing: Lightning's bar would start again."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Update when enough time has passed; the bar also after the last step, whose line `on_train_end` prints."""
        wait = _BAR_SECONDS if self._terminal else self.line_seconds
        now, last = time.monotonic(), trainer.global_step == trainer.max_steps
        due = self._terminal if last else now - self._updated_at >= wait
        if not trainer.is_global_zero or not due:
            return
        self._updated_at = now
        if self._terminal:  # Lightning's bar shows the number after the one that it is given
            super().on_train_batch_end(trainer, pl_module, outputs, batch, trainer.global_step - 1)
        else:
            print(self.describe(trainer, pl_module), file=sys.stderr, flush=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the line of the last step, after the validation at the end."""
        super().on_train_end(trainer, pl_module)
        last = trainer.global_step == trainer.max_steps
        if trainer.is_global_zero and not self._terminal and last:
            print(self.describe(trainer, pl_module), file=sys.stderr, flush=True)

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return what the bar shows behind the steps and the time."""
        logged = trainer.progress_bar_metrics
        shown: dict[str, Any] = {
            name.replace("/", " "): logged[name] for name in ("train/loss", "val/loss") if name in logged
        }
        monitor = next((c for c in trainer.callbacks if isinstance(c, ThroughputMonitor)), None)  # type: ignore[attr-defined]
        if monitor is not None and monitor.audio_hours_per_hour is not None:
            shown["audio hours/hour"] = f"{monitor.audio_hours_per_hour:,.1f}"
        return shown

    def describe(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
        """Return the line for a log file."""
        step, end = trainer.global_step, trainer.max_steps
        words = [f"step {step:,}/{end:,}"]
        for name, value in self.get_metrics(trainer, pl_module).items():
            words.append(f"{value} {name}" if isinstance(value, str) else f"{name} {value:.3f}")
        if step > self._first_step and end > 0:
            seconds_per_step = (time.monotonic() - self._started_at) / (step - self._first_step)
            words.append(f"{spell_time(seconds_per_step * (end - step))} left")
        return " · ".join(words)


def spell_time(seconds: float) -> str:
    """Format a duration in its two largest units: "2 d 3 h", "1 h 20 min", "3 min 5 s"."""
    rest = round(seconds)
    for large, large_size, small, small_size in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if rest >= large_size:
            return f"{rest // large_size} {large} {rest % large_size // small_size} {small}"
    return f"{rest} s"
