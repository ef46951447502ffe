"""The installed Lightning lies in the supported range and has every private part that the package relies on."""

from __future__ import annotations

import tomllib
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from packaging.requirements import Requirement

from magnet_train.training import lightning_internals as internals

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


def test_the_installed_version_is_supported():
    declared = map(Requirement, tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"])
    allowed = next(requirement for requirement in declared if requirement.name == "lightning")
    assert allowed.specifier.contains(lightning.__version__)


def test_parts_that_the_command_line_overrides():
    for name in ("_get", "_prepare_subcommand_parser", "_prepare_subcommand_kwargs", "_parse_ckpt_path"):
        assert callable(getattr(LightningCLI, name)), name


def test_parts_behind_a_pending_validation_and_launched_ranks():
    for name in ("_is_validation_done", "_should_check_val_fx"):
        assert hasattr(_TrainingEpochLoop, name), name
    assert isinstance(_FitLoop.done, property)
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False
    )
    assert trainer.strategy.launcher is None or trainer.strategy.launcher.procs == []
    internals.set_max_steps(trainer, 7)
    assert trainer.max_steps == 7


class Probe(pl.Callback):
    """Looks at the trainer in the last hook of each batch, and saves there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.due: list[bool] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        loop = trainer.fit_loop.epoch_loop
        assert internals.in_batch_end_hooks(trainer)
        assert internals.batches_ready(trainer) == loop.batch_idx + 1
        assert getattr(loop, internals.STEPPED) == trainer.global_step - 1  # counted after the hooks
        assert trainer.fit_loop._data_fetcher is not None
        assert trainer._val_check_time_interval is None
        assert isinstance(loop.val_loop.skip, bool)
        assert "training_step.loss" in internals.logged_values(trainer)
        assert callable(trainer._logger_connector.update_train_step_metrics)
        self.due.append(internals.validation_is_due(trainer))
        trainer.save_checkpoint(self.path)


class Model(BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss["loss"])
        return loss


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    probe = Probe(tmp_path / "c.ckpt")
    trainer = pl.Trainer(
        max_steps=4,
        val_check_interval=2,
        limit_val_batches=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[probe],
    )
    assert callable(trainer._signal_connector.register_signal_handlers)
    internals.disable_signal_handlers(trainer)
    trainer.fit(Model())
    return probe


def test_the_state_of_a_running_trainer(probe: Probe):
    assert probe.due == [False, True, False, True]


def test_the_counters_of_a_checkpoint(probe: Probe):
    checkpoint = torch.load(probe.path, weights_only=True)
    state = checkpoint["loops"]["fit_loop"]
    names = {"ready", "started", "processed", "completed"}
    for progress in (state[internals.BATCHES], state[internals.VALIDATION_BATCHES]):
        assert progress["total"].keys() == progress["current"].keys() == names
        assert "is_last_batch" in progress
    assert state[internals.EPOCH_STATE][internals.STEPPED] == 3


@pytest.mark.parametrize("strategy", [DDPStrategy(), ModelParallelStrategy(), FSDPStrategy()])
def test_strategies(strategy: Any):
    trainer: Any = SimpleNamespace(strategy=strategy)
    assert internals.rank_timeout(trainer) == internals.default_pg_timeout
    internals.set_rank_timeout(trainer, timedelta(minutes=1))
    internals.set_rank_timeout(trainer, timedelta(minutes=2))  # the strategy has its own by now
    assert internals.rank_timeout(trainer) == timedelta(minutes=1)
    alone: Any = SimpleNamespace(strategy=SingleDeviceStrategy())
    assert internals.rank_timeout(alone) is None


def test_the_bar_that_ours_extends():
    bar = RichProgressBar()
    assert bar.progress is None
    assert bar.train_progress_bar_id is None
