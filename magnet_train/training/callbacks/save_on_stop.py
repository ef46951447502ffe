"""Checkpoints at the end of training: after the last step, or after a stop signal, at the same step on all ranks."""

from __future__ import annotations

import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging

from magnet_train.errors import AgreedError, Preempted
from magnet_train.training import lightning_internals as internals
from magnet_train.training.stop_request import before_training, stop_request


class SignalConsensus:
    """Agree across ranks, one poll late, whether any rank received a stop signal.

    The ranks exchange signals on the CPU (gloo) during a step and read the result at the next poll, so no step waits. A
    single process answers at once.

    Args:
        timeout: Time without an answer after which a rank counts as lost; None is torch's default.
    """

    def __init__(self, timeout: timedelta | None = None) -> None:
        single = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
        self._group: Any = None if single else dist.new_group(timeout=timeout, backend="gloo")
        self._pending: tuple[torch.Tensor, dist.Work] | None = None

    def poll(self) -> int:
        """Return the same signal number, or 0, on every rank; all ranks have to poll equally often."""
        if self._group is None:
            return stop_request.received
        agreed = self.finish()
        received = torch.tensor([stop_request.received])
        work = dist.all_reduce(received, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        self._pending = received, work
        return agreed

    def agree(self) -> int:
        """Wait for all ranks; return the same signal number, or 0, on each."""
        return self.poll() or self.finish()

    def finish(self) -> int:
        """Wait for the pending exchange and return its result, 0 without one."""
        if self._pending is None:
            return 0
        received, work = self._pending
        self._pending = None
        work.wait()
        return int(received.item())


class SaveOnStop(Checkpoint):
    """Save `stopped_step=N.ckpt` when SIGTERM or SIGUSR1 reaches any rank, and `step=N.ckpt` at the end.

    All ranks stop together: before training starts, or after the same batch of training or validation. The batches of
    an unfinished accumulation and an unfinished validation are repeated after the resume. The command exits with 75; the
    batch script of a cluster requeues the job once all ranks have exited.
    """

    def __init__(self) -> None:
        super().__init__()
        self._consensus = SignalConsensus()
        self._owns_handlers = False
        self._saved_step = 0
        self.last_model_path = ""  # Lightning's loggers read these three attributes of a checkpoint callback
        self.current_score: float | None = None
        self.save_top_k = 1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Stop before training starts if a signal has arrived by now."""
        if stage != "fit":
            return
        internals.disable_signal_handlers(trainer)
        self._owns_handlers = stop_request.listen()  # False under `magnet-train fit`, which listens already
        self._consensus = SignalConsensus(internals.rank_timeout(trainer))
        number = self._consensus.agree()
        stop_request.begin()
        if number:
            raise Preempted(before_training(number))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_step = trainer.global_step  # a resumed checkpoint holds it

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Save at the last step, or stop if any rank received a signal."""
        if trainer.global_step == trainer.max_steps:
            self._save_last(trainer)
        elif number := self._consensus.poll():
            self._stop(trainer, number)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Stop in the middle of a long validation."""
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if fitting and (number := self._consensus.poll()):
            # Lightning's average has to leave the module, or it would be saved as the raw weights.
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WeightAveraging):
                    callback.on_validation_epoch_end(trainer, pl_module)
            self._stop(trainer, number)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save at the end of a run that ends before `max_steps`, before callbacks change the weights."""
        epochs = trainer.max_epochs or -1
        if trainer.should_stop or 0 < epochs <= trainer.current_epoch + 1:
            self._save_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finish the pending exchange, and restore the signal handlers."""
        self._consensus.finish()
        if self._owns_handlers:
            stop_request.release()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Restore the signal handlers; `magnet-train fit` keeps its own while all ranks exit, for further signals."""
        if self._owns_handlers or not isinstance(exception, (AgreedError, Preempted)):
            stop_request.release()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._saved_step = trainer.global_step  # by whichever callback

    def _save_last(self, trainer: pl.Trainer) -> None:
        if self._saved_step != trainer.global_step and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._save(trainer, f"step={trainer.global_step:07d}.ckpt")

    def _stop(self, trainer: pl.Trainer, number: int) -> None:
        step, saved = trainer.global_step, "nothing to save"
        if step:
            name = f"stopped_step={step:07d}.ckpt"
            self._save(trainer, name)
            saved = f"{name} is saved and --resume auto continues from it"
        raise Preempted(f"stopped by {signal.Signals(number).name} after step {step}; {saved}.")

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        path = Path(trainer.default_root_dir) / name
        earlier = set(path.parent.glob("stopped_step=*.ckpt")) - {path}
        trainer.save_checkpoint(path)
        self.last_model_path = str(path)
        if trainer.is_global_zero:
            for logger in trainer.loggers:  # W&B uploads it if log_model is set
                logger.after_save_checkpoint(self)  # type: ignore[arg-type]
        for stopped in earlier:  # each is as large as the model and its optimizer state
            trainer.strategy.remove_checkpoint(stopped)
