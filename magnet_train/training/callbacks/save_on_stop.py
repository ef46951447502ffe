"""Save when training ends: by a signal, at one step of all ranks, or because it is done."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from lightning.pytorch.utilities.types import STEP_OUTPUT

from magnet_train.errors import AgreedError, Preempted
from magnet_train.training import lightning_internals as internals
from magnet_train.training.callbacks.signal_consensus import SignalConsensus
from magnet_train.training.stop_request import before_training, stop_request


class SaveOnStop(Checkpoint):
    """Save `stopped_step=N.ckpt` when SIGTERM or SIGUSR1 reaches any rank, and `step=N.ckpt` at the end.

    All ranks stop together, before training begins or after the same batch of training or of validation. A batch in
    the middle of an accumulation is taken back, and a validation that was cut is done again after the resume. The
    command then leaves with exit code 75; a cluster's script asks for a requeue once all ranks have left.
    """

    def __init__(self) -> None:
        super().__init__()
        self._vote = SignalConsensus()
        self._listening = False
        self._saved_step = 0
        self.last_model_path = ""  # these three are what Lightning's loggers ask a checkpoint callback for
        self.current_score: float | None = None
        self.save_top_k = 1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Stop before training begins if a signal came while it was prepared."""
        if stage != "fit":
            return
        internals.disable_signal_handlers(trainer)
        self._listening = stop_request.listen()  # unless the command line has done so from the beginning
        self._vote = SignalConsensus(internals.rank_timeout(trainer))
        number = self._vote.agree()
        stop_request.begin()
        if number:
            raise Preempted(before_training(number))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the step that a checkpoint holds already."""
        self._saved_step = trainer.global_step

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
            if isinstance(callback, WeightAveraging):  # Lightning's would save the average as the raw weights
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
        self._release()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Restore the signal handlers, unless all ranks are leaving: a launcher may send another on their way out."""
        if isinstance(exception, (AgreedError, Preempted)):
            self._release()
        else:
            stop_request.release()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember what is saved already, whoever asked for it."""
        self._saved_step = trainer.global_step

    def _release(self) -> None:
        if self._listening:
            stop_request.release()

    def _save_the_end(self, trainer: pl.Trainer) -> None:
        if self._saved_step != trainer.global_step and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._save(trainer, f"step={trainer.global_step:07d}.ckpt")

    def _stop(self, trainer: pl.Trainer, number: int) -> None:
        name = f"stopped_step={trainer.global_step:07d}.ckpt"
        if trainer.global_step:
            self._save(trainer, name)
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
