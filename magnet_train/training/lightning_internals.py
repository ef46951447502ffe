"""Private parts of Lightning that the package depends on, one function each.

Tried with Lightning 2.6.0 and 2.6.6. `tests/magnet_train/training/test_lightning_internals.py` checks that the installed
version has every one of them. Loop progress counts batches as ready, started, processed and completed, in this order;
the hooks of a batch run between processed and completed. `magnet_train.cli.lightning` also overrides `LightningCLI._get`,
`._parse_ckpt_path` and `._prepare_subcommand_kwargs`.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loops.fit_loop import _FitLoop
from torch.distributed.constants import default_pg_timeout

BATCHES, VALIDATION_BATCHES = "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"
EPOCH_STATE, STEPPED = "epoch_loop.state_dict", "_batches_that_stepped"


def loaded_checkpoint(module: pl.LightningModule) -> str:
    """Name, for errors, the checkpoint that is being loaded: "the checkpoint PATH", without the path if it is unknown."""
    path = None if module._trainer is None else module.trainer.ckpt_path
    return f"the checkpoint {path}" if path else "the checkpoint"


def disable_signal_handlers(trainer: pl.Trainer) -> None:
    """Keep Lightning from installing its signal handlers: they broadcast within a signal, where ranks cannot agree."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def rank_timeout(trainer: pl.Trainer) -> timedelta | None:
    """Return how long a rank waits for the others in a collective operation; None without process group."""
    timeout: timedelta | None = getattr(trainer.strategy, "_timeout", None)
    return timeout


def set_rank_timeout(trainer: pl.Trainer, timeout: timedelta) -> None:
    """Set the time that a rank waits for the others, unless the strategy was given one."""
    if rank_timeout(trainer) == default_pg_timeout:
        trainer.strategy._timeout = timeout  # type: ignore[attr-defined]


def set_logged_step(trainer: pl.Trainer, step: int) -> None:
    """Set the step that loggers see next; Lightning counts one twice when it repeats a validation."""
    setattr(trainer.fit_loop.epoch_loop, STEPPED, step)


def in_batch_end_hooks(trainer: pl.Trainer) -> bool:
    """Return whether the current training batch is processed and its last hooks are still running."""
    batch: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return bool(batch.processed == batch.ready == batch.completed + 1)


def validation_is_due(trainer: pl.Trainer) -> bool:
    """Return whether Lightning validates right after the hooks that are running; False if it validates by time."""
    loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    if not in_batch_end_hooks(trainer) or fetcher is None or loop.val_loop.skip:
        return False
    by_time = trainer._val_check_time_interval is not None  # type: ignore[attr-defined]
    return not by_time and bool(loop._should_check_val_fx(fetcher))


def batches_ready(trainer: pl.Trainer) -> int:
    """Return how many training batches of this epoch were fetched, including the current one."""
    return int(trainer.fit_loop.epoch_loop.batch_progress.current.ready)


def drop_batches(checkpoint: dict[str, Any], batches: int) -> None:
    """Remove the batches after the last optimizer step from a checkpoint's counters."""
    state = checkpoint["loops"]["fit_loop"]
    for counters in (state[BATCHES]["total"], state[BATCHES]["current"]):
        ready = counters["ready"] - batches
        counters |= {"ready": ready, "started": ready, "processed": ready, "completed": ready - 1}
    state[EPOCH_STATE][STEPPED] -= 1  # Lightning counts a step found finished once more when it starts


def restart_validation(checkpoint: dict[str, Any]) -> None:
    """Let a resume repeat the validation that is running while the checkpoint is saved."""
    progress = checkpoint["loops"]["fit_loop"][VALIDATION_BATCHES]
    _begin_validation(progress, progress["total"]["completed"] - progress["current"]["completed"])


def start_with_validation(checkpoint: dict[str, Any]) -> None:
    """Let a resume begin with the validation that is due after the current batch."""
    state = checkpoint["loops"]["fit_loop"]
    for counters in (state[BATCHES]["total"], state[BATCHES]["current"]):
        counters["completed"] = counters["processed"]  # as Lightning counts after the hooks of this batch
    _begin_validation(state[VALIDATION_BATCHES], state[VALIDATION_BATCHES]["total"]["completed"])


def _begin_validation(progress: dict[str, Any], earlier: int) -> None:
    """Set the counters to the first batch of a validation, after `earlier` batches of other validations."""
    for part, done in (("total", earlier), ("current", 0)):
        progress[part] |= {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}
    progress["is_last_batch"] = False


def logged_values(trainer: pl.Trainer) -> dict[str, Any]:
    """Return the latest value of each metric that hooks of training have logged."""
    results: Any = trainer._results
    return {name: metric._forward_cache for name, metric in results.items()}


def log_unfinished_step(trainer: pl.Trainer, before: dict[str, Any]) -> None:
    """Send the metrics of the current step to the loggers, without values that are still those of `before`."""
    results: Any = trainer._results
    for name, metric in results.items():
        if metric._forward_cache is before.get(name):
            metric._forward_cache = None
    trainer._logger_connector.update_train_step_metrics()


def set_max_steps(trainer: pl.Trainer, steps: int) -> None:
    """Change `trainer.max_steps` of a trainer that was built."""
    trainer.fit_loop.epoch_loop.max_steps = steps


def validation_is_pending(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint was saved before the end of a validation, which a resume does first."""
    loops = checkpoint.get("loops", {}).get("fit_loop", {})
    batches = loops.get(VALIDATION_BATCHES, {}).get("current", {})
    return bool(batches.get("ready", 0) > batches.get("completed", 0))


class _ValidatingFitLoop(_FitLoop):
    @property
    def done(self) -> bool:
        loop, fetcher = self.epoch_loop, self._data_fetcher
        pending = fetcher is not None and not loop._is_validation_done and loop._should_check_val_fx(fetcher)
        return not pending and super().done


def allow_pending_validation(trainer: pl.Trainer) -> None:
    """Let `Trainer.fit` do a pending validation of the last step, where Lightning would return at once."""
    trainer.fit_loop.__class__ = _ValidatingFitLoop


def end_launched_ranks(trainer: pl.Trainer, grace: float) -> None:
    """Wait `grace` seconds for the ranks that Lightning started on this machine, then kill them."""
    deadline = time.monotonic() + grace
    for process in getattr(trainer.strategy.launcher, "procs", []):
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
