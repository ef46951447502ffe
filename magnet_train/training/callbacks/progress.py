"""A progress bar that counts towards `max_steps`, since the training loader has no end."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities.types import STEP_OUTPUT
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from magnet_train.training.callbacks.throughput import ThroughputMonitor

_BATCHES = {"validate": "num_val_batches", "test": "num_test_batches", "predict": "num_predict_batches"}


class StepProgressBar(ProgressBar):
    """Show step, loss, hours of audio trained an hour, and the time left.

    In a terminal as a bar; elsewhere (a log file, SLURM) as a line now and then.

    Args:
        refresh_seconds: Time between two updates of the bar.
        line_seconds: Time between two lines where there is no terminal.
    """

    def __init__(self, refresh_seconds: float = 0.5, line_seconds: float = 30.0) -> None:
        super().__init__()
        self.refresh_seconds = refresh_seconds
        self.line_seconds = line_seconds
        self._enabled = True
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._told_at = 0.0
        self._started_at = 0.0
        self._first_step = 0
        self._paused = 0.0  # seconds of validation since training started
        self._paused_at = 0.0

    def disable(self) -> None:
        """Show nothing: what Lightning asks of all ranks but one."""
        self._enabled = False

    def enable(self) -> None:
        """Show something again."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock and the bar."""
        self._started_at, self._first_step, self._paused = time.monotonic(), trainer.global_step, 0.0
        self._told_at = self._started_at
        self._open()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Update now and then: reading the loss makes a GPU's queue run dry."""
        wait = self.line_seconds if self._bar is None else self.refresh_seconds
        if not self._enabled or (
            time.monotonic() - self._told_at < wait and trainer.global_step != trainer.max_steps
        ):
            return
        self._told_at = time.monotonic()
        self._show("train", trainer.global_step, max(0, trainer.max_steps), self.describe(trainer, pl_module))

    def describe(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
        """Say where training is, in one line."""
        words = [f"step {trainer.global_step:,}/{trainer.max_steps:,}"]
        metrics = self.get_metrics(trainer, pl_module)
        for name in ("train/loss", "val/loss"):
            value = metrics.get(name)
            if isinstance(value, (int, float)):
                words.append(f"{name.replace('/', ' ')} {value:.3f}")
        speed = next((c for c in trainer.callbacks if isinstance(c, ThroughputMonitor)), None)  # type: ignore[attr-defined]
        if speed is not None and speed.audio_hours_per_hour is not None:
            words.append(f"{speed.audio_hours_per_hour:,.1f} audio hours/hour")
        if (left := self._seconds_left(trainer)) is not None:
            words.append(f"{spell_time(left)} left")
        return " · ".join(words)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the time of a validation out of the estimate."""
        self._paused_at = time.monotonic()
        self._open()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hide its bar."""
        self._paused += time.monotonic() - self._paused_at
        self._hide("validate")

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show the batches of a validation."""
        self._show_batch(trainer, "validate", batch_idx)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the bar."""
        self._open()

    def on_test_batch_end(self, trainer: pl.Trainer, *arguments: Any, **names: Any) -> None:
        """Show the batches of a test."""
        self._show_batch(trainer, "test", arguments[3])

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the bar."""
        self._open()

    def on_predict_batch_end(self, trainer: pl.Trainer, *arguments: Any, **names: Any) -> None:
        """Show the batches of a prediction."""
        self._show_batch(trainer, "predict", arguments[3])

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the terminal as it was."""
        self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the terminal to the message."""
        self._close()

    def print(self, *words: Any, **options: Any) -> None:
        """Print above the bar."""
        self._console.print(*words, **options)

    def _seconds_left(self, trainer: pl.Trainer) -> float | None:
        steps = trainer.global_step - self._first_step
        if steps < 1 or trainer.max_steps < 1:
            return None
        each = (time.monotonic() - self._started_at - self._paused) / steps
        return each * (trainer.max_steps - trainer.global_step)

    def _show_batch(self, trainer: pl.Trainer, what: str, batch: int) -> None:
        counts = getattr(trainer, _BATCHES[what])
        total = sum(counts) if isinstance(counts, list) else counts
        if self._bar is not None and total != float("inf"):
            self._show(what, batch + 1, int(total), f"{what} {batch + 1}/{int(total)}")

    def _show(self, name: str, done: int, total: int, text: str) -> None:
        if not self._enabled:
            return
        if self._bar is None:
            self._console.print(text, highlight=False, soft_wrap=True)
        elif name in self._tasks:
            self._bar.update(self._tasks[name], completed=done, total=total, text=text)
        else:
            self._tasks[name] = self._bar.add_task("", completed=done, total=total, text=text)

    def _hide(self, name: str) -> None:
        if self._bar is not None and name in self._tasks:
            self._bar.remove_task(self._tasks.pop(name))

    def _open(self) -> None:
        if self._enabled and self._bar is None and self._console.is_terminal:
            self._bar = Progress(
                BarColumn(bar_width=24), TextColumn("{task.fields[text]}"), console=self._console
            )
            self._bar.start()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._tasks = None, {}


def spell_time(seconds: float) -> str:
    """Write a duration in its two largest units: "2 d 3 h", "1 h 20 min", "3 min 5 s"."""
    rest = round(seconds)
    for big, small, big_size, small_size in (
        ("d", "h", 86400, 3600),
        ("h", "min", 3600, 60),
        ("min", "s", 60, 1),
    ):
        if rest >= big_size:
            return f"{rest // big_size} {big} {rest % big_size // small_size} {small}"
    return f"{rest} s"
