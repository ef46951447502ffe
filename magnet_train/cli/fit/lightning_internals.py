"""Private parts of Lightning that the commands rely on, each behind one function.

- `LightningCLI._get`, `._parse_ckpt_path` and `._prepare_subcommand_kwargs`, used by `magnet_train.cli.lightning`
- `Strategy._timeout`, and `Strategy.launcher.procs`, the ranks that Lightning's own launcher started
- `_FitLoop.epoch_loop.max_steps`, which `Trainer.max_steps` reads; `._is_validation_done`,
  `._should_check_val_fx`, `_FitLoop._data_fetcher` and `.done`
- the progress of the validation loop in a checkpoint
- the texts and categories of its log messages and warnings
"""

from __future__ import annotations

import logging
import subprocess
import time
import warnings
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.loops.fit_loop import _FitLoop
from torch.distributed.constants import default_pg_timeout

_LOG_NOISE = ("\nDetected KeyboardInterrupt", "💡", "TPU available")
_WARNING_NOISE = (
    "LightningCLI's args parameter",  # the arguments are those of the command line
    ".*directory .* exists and is not empty",  # the folder of the same run
    ".*isinstance.treespec, LeafSpec.. is deprecated",
    "The dirpath has changed from",
    r"\s*(By default only one Jsonargparse|\S+ (parameter )?was deprecated in v)",  # parts that Lightning uses
    "You have overridden `transfer_batch_to_device`",  # on purpose
    "Couldn't infer the batch indices",  # a batch carries its slots
    ".*using the WeightAveraging callback, but loading a checkpoint outside",  # the average is what is loaded
    ".*callbacks used to create the checkpoint need to be provided",  # by `validate` and `predict`
)


def silence_advice() -> None:
    """Hide log messages and warnings that no user can act on: Lightning's guesses, and reports of what is intended."""
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    for message in _WARNING_NOISE:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not record.getMessage().startswith(_LOG_NOISE)
    )


def set_rank_timeout(trainer: pl.Trainer, minutes: float) -> None:
    """Set the time after which a silent rank counts as dead, unless the strategy was configured with its own."""
    if getattr(trainer.strategy, "_timeout", None) == default_pg_timeout:
        trainer.strategy._timeout = timedelta(minutes=minutes)  # type: ignore[attr-defined]


def set_max_steps(trainer: pl.Trainer, steps: int) -> None:
    """Change `trainer.max_steps` of a trainer that was built."""
    trainer.fit_loop.epoch_loop.max_steps = steps


def validation_is_pending(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint was saved before the end of a validation, which a resume does first."""
    loops = checkpoint.get("loops", {}).get("fit_loop", {})
    batches = loops.get("epoch_loop.val_loop.batch_progress", {}).get("current", {})
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
