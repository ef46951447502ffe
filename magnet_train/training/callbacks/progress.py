"""Progress bar that counts optimizer steps up to `max_steps`, since the training loader is endless."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme

from magnet_train.training.callbacks.throughput import ThroughputMonitor

_BAR_SECONDS = 0.5  # between two updates: reading the loss makes a GPU wait
_REFRESHES = 10  # of the terminal, a second


class StepProgressBar(RichProgressBar):
    """Show steps, time left, losses and hours of audio per hour: as a bar in a terminal, else as lines.

    Args:
        line_seconds: Time between two lines where standard error is not a terminal.
    """

    def __init__(self, line_seconds: float = 30.0) -> None:
        self._terminal = sys.stderr.isatty()
        theme = RichProgressBarTheme(metrics_text_delimiter=" · ")
        refreshes = _REFRESHES if self._terminal else 0  # 0 switches the bar off
        super().__init__(refresh_rate=refreshes, theme=theme, console_kwargs={"stderr": True})
        self.line_seconds = line_seconds
        self._updated_at = 0.0
        self._started_at, self._first_step = 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and the bar at the step that the run starts from."""
        super().on_train_start(trainer, pl_module)
        self._started_at = self._updated_at = time.monotonic()
        self._first_step = trainer.global_step
        if self.progress is not None:
            steps = trainer.max_steps if trainer.max_steps > 0 else math.inf
            self.train_progress_bar_id = self.progress.add_task(
                "Step", total=steps, completed=self._first_step
            )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the bar as it is, where Lightning's starts again for each epoch."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Update after the last step, and otherwise when enough time has passed."""
        wait = _BAR_SECONDS if self._terminal else self.line_seconds
        now, last = time.monotonic(), trainer.global_step == trainer.max_steps
        if not trainer.is_global_zero or (now - self._updated_at < wait and not last):
            return
        self._updated_at = now
        if self._terminal:  # Lightning's bar shows the number after the one that it is given
            super().on_train_batch_end(trainer, pl_module, outputs, batch, trainer.global_step - 1)
        else:
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
        words = [f"step {trainer.global_step:,}/{trainer.max_steps:,}"]
        for name, value in self.get_metrics(trainer, pl_module).items():
            words.append(f"{value} {name}" if isinstance(value, str) else f"{name} {value:.3f}")
        steps = trainer.global_step - self._first_step
        if steps > 0 and trainer.max_steps > 0:
            seconds = (
                (time.monotonic() - self._started_at) / steps * (trainer.max_steps - trainer.global_step)
            )
            words.append(f"{spell_time(seconds)} left")
        return " · ".join(words)


def spell_time(seconds: float) -> str:
    """Format a duration in its two largest units: "2 d 3 h", "1 h 20 min", "3 min 5 s"."""
    rest = round(seconds)
    for large, small, large_size, small_size in (
        ("d", "h", 86400, 3600),
        ("h", "min", 3600, 60),
        ("min", "s", 60, 1),
    ):
        if rest >= large_size:
            return f"{rest // large_size} {large} {rest % large_size // small_size} {small}"
    return f"{rest} s"
