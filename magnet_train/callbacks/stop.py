"""Save when training ends: by a signal, at one step of all ranks, or because it is done."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import STEP_OUTPUT

from magnet_train.callbacks.vote import StopVote
from magnet_train.errors import Preempted
from magnet_train.optim import MovingAverage

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class SaveOnStop(Checkpoint):
    """Save `stopped_step=N.ckpt` when SIGTERM or SIGUSR1 reaches any rank, and `step=N.ckpt` at the end.

    All ranks stop after the same batch, of training or of validation. A batch in the middle of an accumulation is
    taken back, and a validation that was cut is done anew after the resume. Under SLURM, SIGUSR1
    (`#SBATCH --signal=USR1@120`) also puts the job back into the queue; after SIGTERM SLURM does that itself
    where it is meant.

    Args:
        requeue: Ask SLURM to run the job again after SIGUSR1.
    """

    def __init__(self, requeue: bool = True) -> None:
        super().__init__()
        self.requeue = requeue
        self._vote = StopVote()
        self._handlers: dict[signal.Signals, Any] = {}
        self._saved_step = 0
        self.last_model_path = ""  # these three are what Lightning's loggers ask a checkpoint callback for
        self.current_score: float | None = None
        self.save_top_k = 1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over from Lightning's handlers: they answer from inside the signal, where ranks cannot agree."""
        self._vote = StopVote(getattr(trainer.strategy, "_timeout", None))
        self._saved_step = trainer.global_step
        self._handlers = {number: signal.getsignal(number) for number in SIGNALS}
        for number in SIGNALS:
            signal.signal(number, self._ask)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save at the last step, or stop here if any rank was asked to."""
        if trainer.global_step == trainer.max_steps:
            self._save_the_end(trainer)
        elif number := self._vote.poll():
            self._stop(trainer, number)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop in the middle of a long validation."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        number = self._vote.poll()
        if not number:
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            # Validation runs on averages: weights go back. The others would take half a validation for a whole one.
            if isinstance(callback, (MovingAverage, WeightAveraging)):
                callback.on_validation_epoch_end(trainer, pl_module)
        self._stop(trainer, number)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end of a run that something else than `max_steps` ends, before weights are averaged over."""
        epochs = trainer.max_epochs or -1
        if trainer.should_stop or 0 < epochs <= trainer.current_epoch + 1:
            self._save_the_end(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave nothing under way."""
        self._vote.close()
        self._restore_handlers()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back."""
        self._restore_handlers()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember what is saved already, whoever asked for it."""
        self._saved_step = trainer.global_step

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._vote.received = number

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _save_the_end(self, trainer: pl.Trainer) -> None:
        if self._saved_step != trainer.global_step and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._save(trainer, f"step={trainer.global_step:07d}.ckpt")

    def _stop(self, trainer: pl.Trainer, number: int) -> None:
        name = f"stopped_step={trainer.global_step:07d}.ckpt"
        if trainer.global_step:
            self._save(trainer, name)
        if number == signal.SIGUSR1 and self.requeue and SLURMEnvironment.detect() and trainer.is_global_zero:
            _requeue()
        saved = (
            f"{name} is saved and --resume auto goes on from it" if trainer.global_step else "nothing to save"
        )
        raise Preempted(
            f"stopped by {signal.Signals(number).name} after step {trainer.global_step}; {saved}."
        )

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        folder = Path(trainer.default_root_dir)
        before = set(folder.glob("stopped_step=*.ckpt"))
        trainer.save_checkpoint(folder / name)
        self.last_model_path = str(folder / name)
        if trainer.is_global_zero:
            for logger in trainer.loggers:  # W&B uploads it, if it was asked for (log_model)
                logger.after_save_checkpoint(self)  # type: ignore[arg-type]
        for path in before - {folder / name}:  # each would be as large as the model and its optimizer
            trainer.strategy.remove_checkpoint(path)


def _requeue() -> None:
    """Put this SLURM job, or this task of its array, back into the queue."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        rank_zero_info(
            f"the job is saved but could not be put back into the queue ({error}); submit it again."
        )
    else:
        rank_zero_info(f"put job {job} back into the queue")
