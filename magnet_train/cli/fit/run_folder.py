"""The folder of a run: checked, cleaned before training, and watched while it lasts."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger

from magnet_train.cli.ranks import is_first_process, print_once
from magnet_train.errors import UserError, require_extra
from magnet_train.storage.atomic_io import sweep_partial_files
from magnet_train.training.callbacks.samples import PREDICTIONS

FINISHED = "finished"  # holds the last step of a run that has ended
METRICS = "metrics.csv"  # what Lightning's CSV logger writes


def check_folder(name: str) -> Path:
    """Return the folder that `--run` names; raises `UserError` if it is the current one or cannot be written."""
    run = Path(name)
    if not name.strip() or "\0" in name or run.resolve() == Path.cwd():
        raise UserError(
            f"--run {name!r} is not a folder of its own, and the run would be mixed with the files of the current "
            "folder; use --run runs/NAME."
        )
    existing = next(path for path in (run, *run.parents) if os.path.lexists(path))  # "." at the latest
    if not existing.is_dir():
        raise UserError(f"--run {run} cannot be a folder, since {existing} is a file; choose another one.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"--run {run} cannot be written, since {existing} is not writable; choose another folder."
        )
    return run


def is_finished(run: Path, step: int) -> bool:
    """Return whether `fit` has ended in this folder after `step`, its last step, and the validation due there."""
    path = run / FINISHED
    return path.is_file() and path.read_text(errors="replace").strip() == str(step)


def direct_outputs(config: Namespace, command: str) -> None:
    """Let loggers and callbacks write to the run's folder where `save_dir` or `dirpath` is "." or not set.

    The CSV logger empties metrics.csv, which `validate`, `test` and `predict` must leave as training wrote it: they
    use a folder of their own.
    """
    loggers = config.trainer.logger if isinstance(config.trainer.logger, list) else [config.trainer.logger]
    if any(getattr(logger, "class_path", "").endswith("TensorBoardLogger") for logger in loggers):
        require_extra("tensorboard", "tensorboard", "TensorBoardLogger")
    own_folder = Path(config.run) / (PREDICTIONS if command == "predict" else command)
    for component in [*loggers, *(config.trainer.callbacks or [])]:
        settings = component.get("init_args") if isinstance(component, Namespace) else None
        for option in ("save_dir", "dirpath"):
            if settings is not None and settings.get(option, "") in (None, "."):
                csv_beside = command != "fit" and component.class_path.endswith("CSVLogger")
                settings[option] = str(own_folder) if csv_beside else config.run


@contextlib.contextmanager
def prepared(run: Path, trainer: pl.Trainer) -> Iterator[None]:
    """Remove half-written files and keep the metrics of an earlier run; undo it if training has not begun and fails."""
    if not is_first_process():
        yield
        return
    for path in sweep_partial_files(run):
        print_once(f"removed the unfinished file {path}")
    before = set(run.rglob("*"))
    metrics = run / METRICS
    kept = next(path for n in itertools.count(1) if not (path := run / f"metrics.{n}.csv").exists())
    if metrics.exists():  # Lightning's CSV logger would empty it
        metrics.rename(kept)
    try:
        yield
    except BaseException:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, RunRecord) and callback.already_saved for callback in callbacks):
            for path in sorted(set(run.rglob("*")) - before - {kept}, reverse=True):  # of loggers
                with contextlib.suppress(OSError):
                    path.rmdir() if path.is_dir() else path.unlink()
        if kept.exists() and not metrics.exists():
            kept.rename(metrics)
        raise
    finally:
        if kept.exists():
            print_once(f"kept the earlier metrics as {kept}")


class RunRecord(SaveConfigCallback):
    """Save config.yaml and log it once training begins, so that a refused resume leaves the record of the run.

    Afterwards it watches the run's folder: code that writes whole files would silently create a deleted one again.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Do not save yet."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the configuration: the resume was accepted."""
        super().setup(trainer, pl_module, "fit")

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write config.yaml into the run's folder, whichever loggers there are, and log the configuration."""
        run = Path(trainer.default_root_dir)
        run.mkdir(parents=True, exist_ok=True)
        self.parser.save(
            self.config, run / self.config_filename, skip_none=False, overwrite=True, multifile=False
        )
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger):  # config.yaml is beside its metrics
                logger.log_hyperparams(config)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record that the last step was reached and its validation done, which no checkpoint can hold."""
        if self.already_saved and trainer.is_global_zero and trainer.global_step == trainer.max_steps:
            (Path(trainer.default_root_dir) / FINISHED).write_text(f"{trainer.global_step}\n")

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any, **names: Any) -> None:
        """Check the folder as often as the loggers write."""
        if not trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            self._require_folder(trainer)

    def _require_folder(self, trainer: pl.Trainer, *arguments: Any, **names: Any) -> None:
        run = Path(trainer.default_root_dir)
        if self.already_saved and trainer.is_global_zero and not run.is_dir():
            raise UserError(
                f"the folder {run} of this run was deleted at step {trainer.global_step}, with the checkpoints in it; "
                "restore it, or start a new run."
            )

    on_validation_start = on_save_checkpoint = _require_folder  # before samples or a checkpoint are written
