"""Let no stop lose the metrics of the step that it ends with."""

from __future__ import annotations

import contextlib
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback


class LastRow(Callback):
    """Hand the metrics of a finished step to the loggers when a callback stops the run after that step.

    Lightning does so only after all hooks of the step. A signal, a full disk or a failed checkpoint raises
    within one of them, and a resumed run goes on with the next step: the row would be missing for good. What the
    step did not come to log is left out of it.
    """

    def __init__(self) -> None:
        self._before: dict[str, Any] = {}  # values by metric, as they were before this batch

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note which values are those of earlier steps."""
        results: Any = trainer._results
        self._before = {name: metric._forward_cache for name, metric in results.items()}

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Log the step if its update is done and its hooks were being called."""
        batch: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        if not trainer.training or not batch.processed == batch.ready == batch.completed + 1:
            return
        results: Any = trainer._results
        for name, metric in results.items():
            if metric._forward_cache is self._before.get(name):  # of an earlier step
                metric._forward_cache = None
        with contextlib.suppress(Exception):  # what stopped the run counts, not that a log cannot be written
            trainer._logger_connector.update_train_step_metrics()
