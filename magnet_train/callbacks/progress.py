"""A progress bar that counts towards `max_steps`, since the training loader has no end."""

from __future__ import annotations

from lightning.pytorch.callbacks import TQDMProgressBar


class StepProgressBar(TQDMProgressBar):
    """Show batches done of all batches, their rate and the time left.

    Args:
        refresh_rate: Batches between two updates of the bar.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate=refresh_rate)

    @property
    def total_train_batches(self) -> int | float:
        """Batches from start to end of the run."""
        if self.trainer.max_steps < 1:
            return super().total_train_batches
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches
