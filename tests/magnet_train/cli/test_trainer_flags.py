"""Every flag of the trainer and every callback of Lightning's: each works, or one sentence says why not.

The two tables are held against what the installed Lightning has, so that a flag or callback of a new version is missed.
"""

from __future__ import annotations

import csv
import inspect
import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch import callbacks

from magnet_train.errors import UserError
from magnet_train.training.optim import MovingAverage

pytestmark = pytest.mark.slow  # a hundred runs of a few seconds each

WORKS = None
# Flag -> values, and for each whether it works or words of the sentence that refuses it.
FLAGS: dict[str, list[tuple[str, str | None]]] = {
    "accelerator": [("auto", WORKS), ("foo", "invalid accelerator name")],
    "accumulate_grad_batches": [("2", WORKS), ("0", "trainer.accumulate_grad_batches is 0; give 1 or more")],
    "barebones": [("true", "barebones=True")],
    "benchmark": [("true", WORKS)],
    "callbacks": [("[]", WORKS)],
    "check_val_every_n_epoch": [("1", WORKS), ("0", "trainer.check_val_every_n_epoch is 0; give 1 or more")],
    "default_root_dir": [],  # a link to --run
    "detect_anomaly": [("true", WORKS)],
    "deterministic": [("warn", WORKS)],
    "devices": [("1", WORKS), ("0", "devices='0'"), ("-1", "should be an int > 0")],
    "enable_autolog_hparams": [("false", WORKS)],
    "enable_checkpointing": [("true", WORKS), ("false", WORKS)],
    "enable_model_summary": [("true", WORKS)],
    "enable_progress_bar": [("true", WORKS)],
    "fast_dev_run": [("2", WORKS), ("-1", "fast_dev_run=-1")],
    "gradient_clip_algorithm": [("value", WORKS), ("foo", "foo")],
    "gradient_clip_val": [
        ("0.5", WORKS),
        ("-1", "gradient_clip_val is -1"),
        (".nan", "trainer.gradient_clip_val is nan"),
    ],
    "inference_mode": [("false", WORKS)],
    "limit_predict_batches": [("1", WORKS), ("-1", "limit_predict_batches")],
    "limit_test_batches": [("1", WORKS), ("-1", "limit_test_batches")],
    "limit_train_batches": [
        ("0.5", WORKS),
        ("0", "limit_train_batches is 0, which leaves nothing to train on"),
        ("-1", "invalid value -1 for limit_train_batches"),
        (".nan", "limit_train_batches"),
    ],
    "limit_val_batches": [("1", WORKS), ("-1", "limit_val_batches"), ("0.00001", "limit_val_batches")],
    "log_every_n_steps": [
        ("1000", WORKS),
        ("0", "log_every_n_steps is 0; give 1"),
        ("-1", "log_every_n_steps is -1"),
    ],
    "logger": [("true", WORKS), ("false", WORKS)],
    "max_epochs": [
        ("2", WORKS),
        ("0", "trainer.max_epochs is 0; give 1 or more, or -1"),
        ("-2", "max_epochs"),
    ],
    "max_steps": [("4", WORKS), ("0", "trainer.max_steps is 0"), ("-1", "trainer.max_steps is -1")],
    "max_time": [("00:01:00:00", WORKS), ("soon", "soon")],
    "min_epochs": [("1", WORKS), ("-1", "trainer.min_epochs is -1; give 0 or more")],
    "min_steps": [("2", WORKS), ("-3", "trainer.min_steps is -3; give 0 or more")],
    "model_registry": [("null", WORKS)],
    "num_nodes": [("1", WORKS), ("0", "num_nodes must be a positive integer")],
    "num_sanity_val_steps": [("1", WORKS), ("-2", "trainer.num_sanity_val_steps is -2; give -1 or more")],
    "overfit_batches": [("2", "tokenize these alone"), ("0.5", "tokenize these alone")],
    "plugins": [("null", WORKS)],
    "precision": [("bf16-mixed", WORKS), ("16-true", "trainer.precision 16-true")],
    "profiler": [("simple", WORKS), ("foo", "profiler")],
    "reload_dataloaders_every_n_epochs": [("1", WORKS), ("-1", "reload_dataloaders_every_n_epochs is -1")],
    "strategy": [
        ("auto", WORKS),
        ("ddp_spawn", "trainer.strategy ddp_spawn copies this process"),
        ("ddp_notebook", "use ddp"),
        ("fsdp", "use -c configs/trainer/fsdp.yaml"),
        ("ddpp", "no trainer.strategy 'ddpp'; give ddp"),
    ],
    "sync_batchnorm": [("true", WORKS)],
    "use_distributed_sampler": [("true", WORKS)],
    "val_check_interval": [
        ("0.5", WORKS),
        ("00:00:00:01", WORKS),
        ("0", "val_check_interval is 0"),
        ("3.5", "3.5"),
        ("-1", "is -1"),
    ],
}
# Those that cannot be in the one run that tries the others together.
APART = (
    "logger false",
    "enable_checkpointing false",
    "fast_dev_run 2",
    "callbacks []",
    "max_epochs 2",
    "val_check_interval 00:00:00:01",
)

LIGHTNING = "lightning.pytorch.callbacks."
WITHOUT_AVERAGE = "callbacks without that of base.yaml"
# Callback -> settings, and for each whether it works or words of the sentence that refuses it.
CALLBACKS: dict[str, list[tuple[dict[str, Any], str | None]]] = {
    "BackboneFinetuning": [({}, "use --tuning magnet_train.training.finetune.Freeze")],
    "BaseFinetuning": [({}, "does nothing by itself")],
    "BasePredictionWriter": [({}, "does nothing by itself")],
    "BatchSizeFinder": [({}, "give --data.batch_size")],
    "Callback": [({}, WORKS)],
    "Checkpoint": [({}, WORKS)],
    "DeviceStatsMonitor": [({"cpu_stats": True}, WORKS)],
    "EMAWeightAveraging": [({}, "both average the weights"), ({"decay": 2.0}, "rejects its init_args")],
    "EarlyStopping": [
        ({"monitor": "val/loss"}, WORKS),
        (
            {"monitor": "val_loss"},
            "EarlyStopping monitors val_loss, which is not logged; set monitor to val/loss",
        ),
        ({"monitor": "val/losses"}, "val/losses"),
        ({"monitor": "val/loss", "mode": "foo"}, "EarlyStopping rejects its init_args"),
    ],
    "GradientAccumulationScheduler": [
        ({"scheduling": {0: 1, 1: 2}}, WORKS),
        ({"scheduling": {0: 0}}, "GradientAccumulationScheduler rejects its init_args"),
    ],
    "LambdaCallback": [({}, WORKS)],
    "LearningRateFinder": [({}, "give --model.optimizer.lr")],
    "LearningRateMonitor": [],  # in base.yaml
    "ModelCheckpoint": [
        ({"monitor": "val/loss", "save_top_k": 2}, WORKS),
        ({"every_n_epochs": 1, "filename": "{epoch}"}, WORKS),
        ({"save_top_k": 2}, "ModelCheckpoint rejects its init_args"),
        ({"monitor": "val_loss"}, "set monitor to val/loss"),
        ({"monitor": "loss/val", "save_top_k": 2}, "loss/val"),
        ({"every_n_train_steps": -1}, "ModelCheckpoint rejects its init_args"),
    ],
    "ModelPruning": [
        ({"pruning_fn": "l1_unstructured"}, "torch.nn.utils.prune"),
        ({"pruning_fn": "foo"}, "foo"),
    ],
    "ModelSummary": [({}, WORKS)],
    "OnExceptionCheckpoint": [({"dirpath": "."}, WORKS)],
    "ProgressBar": [({}, "ProgressBar")],
    "RichModelSummary": [],  # what enable_model_summary adds
    "RichProgressBar": [],  # tests/field_report/test_trainer.py
    "SpikeDetection": [({}, "magnet_train.training.callbacks.NonFiniteGuard")],
    "StochasticWeightAveraging": [
        ({"swa_lrs": 0.001}, "magnet_train.training.optim.MovingAverage"),
        ({"swa_lrs": -1}, "StochasticWeightAveraging rejects its init_args"),
    ],
    "TQDMProgressBar": [],  # tests/field_report/test_trainer.py
    "ThroughputMonitor": [({"batch_size_fn": "builtins.len"}, WORKS)],
    "Timer": [
        ({"duration": "00:01:00:00"}, WORKS),
        ({"duration": "soon"}, "Timer rejects its init_args"),
        ({"interval": "foo"}, "Timer rejects its init_args"),
    ],
    "WeightAveraging": [({}, "both average the weights")],
}


SPY = """
import os
import signal

from lightning.pytorch.callbacks import Callback


class Spy(Callback):
    def on_validation_batch_start(self, *_):
        os.kill(os.getpid(), signal.SIGTERM)

    def on_validation_epoch_end(self, *_):
        raise AssertionError("half a validation was taken for a whole one")
"""


def written(callback: str, settings: dict[str, Any]) -> str:
    flow = yaml.safe_dump(settings, default_flow_style=True, width=1000).strip()
    return f"- {{class_path: {LIGHTNING}{callback}, init_args: {flow}}}"


def refused(trainings, capsys, run: Path, *options: str) -> str:
    """Return the one sentence on stderr; the exit code is 1, or 2 for wrong usage, and nothing is raised."""
    capsys.readouterr()
    code: object
    try:
        code = trainings.fit(run, *options)
    except SystemExit as leaving:
        code = leaving.code
    assert code in (1, 2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("magnet-train: ")]
    return line


def test_no_flag_and_no_callback_is_forgotten():
    flags = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
    assert FLAGS.keys() == flags
    assert set(CALLBACKS) == set(callbacks.__all__)


def test_flags_that_work_together(trainings, tmp_path, column):
    """Half of a pass over 38 clips, 4 at once and 2 accumulated: 2 steps an epoch, and validation twice in each."""
    words = []
    for flag, values in FLAGS.items():
        for value, outcome in values:
            if outcome is WORKS and f"{flag} {value}" not in APART:
                words += [f"--trainer.{flag}", value]
    assert trainings.fit(tmp_path, *words, "-c", "configs/logger/csv.yaml") == 0
    assert len(column(tmp_path, "val/loss")) == 4
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.parametrize("flag", APART)
def test_flags_that_work_apart(trainings, tmp_path, flag, monkeypatch, recwarn):
    """On a machine where SLURM is installed, outside of its jobs."""
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), os.environ["PATH"]]))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    name, value = flag.split()
    assert trainings.fit(tmp_path / "run", f"--trainer.{name}", value) == 0
    assert not [warning for warning in recwarn if "srun" in str(warning.message)]
    files = {path.name for path in (tmp_path / "run").glob("*")}
    assert ("last.ckpt" in files) == (flag not in ("enable_checkpointing false", "fast_dev_run 2"))
    assert ("metrics.csv" in files) == (flag not in ("logger false", "fast_dev_run 2"))


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [(flag, *row) for flag, rows in FLAGS.items() for row in rows if row[1] is not WORKS],
)
def test_flags_that_are_refused(trainings, tmp_path, capsys, flag, value, words):
    assert words in refused(trainings, capsys, tmp_path / "run", f"--trainer.{flag}", value)


def test_callbacks_that_work_together(trainings, tmp_path):
    rows = [
        written(name, settings)
        for name, rows in CALLBACKS.items()
        for settings, outcome in rows
        if outcome is WORKS
    ]
    (tmp_path / "callbacks.yaml").write_text(
        "trainer:\n  callbacks+:\n" + "\n".join(f"  {row}" for row in rows)
    )
    assert trainings.fit(tmp_path / "run", "-c", str(tmp_path / "callbacks.yaml")) == 0
    with open(tmp_path / "run" / "metrics.csv") as file:
        assert any("vm_percent" in name for name in next(csv.reader(file)))


def test_callbacks_see_no_end_of_an_interrupted_validation(trainings, tmp_path, monkeypatch):
    (tmp_path / "spy.py").write_text(SPY)
    (tmp_path / "spy.yaml").write_text("trainer: {callbacks+: [spy.Spy]}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    many = ["--data.val_fraction", "0.9", "--data.batch_size", "1"]
    try:
        assert trainings.fit(tmp_path / "run", "-c", str(tmp_path / "spy.yaml"), *many) == 75
    finally:  # the way out ignores further signals
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert (tmp_path / "run" / "last.ckpt").exists()


@pytest.mark.parametrize("name", ["EMAWeightAveraging", "WeightAveraging"])
def test_lightnings_own_average_instead_of_ours(trainings, tmp_path, name):
    (tmp_path / "callbacks.yaml").write_text(f"trainer:\n  callbacks:\n  {written(name, {})}\n")
    assert trainings.fit(tmp_path / "run", "-c", str(tmp_path / "callbacks.yaml")) == 0


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [(name, *row) for name, rows in CALLBACKS.items() for row in rows if row[1] is not WORKS],
)
def test_callbacks_that_are_refused(trainings, tmp_path, capsys, name, settings, words):
    (tmp_path / "callbacks.yaml").write_text(f"trainer:\n  callbacks+:\n  {written(name, settings)}\n")
    assert words in refused(trainings, capsys, tmp_path / "run", "-c", str(tmp_path / "callbacks.yaml"))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("data.segment_duration", value) for value in ("nan", ".nan", ".inf", "-1", "1.0e+12", "long")],
        *[("data.batch_size", value) for value in ("0", "1000000000", "1.5")],
        *[("data.num_workers", value) for value in ("-1", "1000000")],
        *[("data.seed", value) for value in ("-1", "99999999999999999999")],
        *[("data.val_fraction", value) for value in (".nan", "1", "-0.1")],
        *[("model.cfg_dropout", value) for value in (".nan", "2")],
        *[("model.warmup_steps", value) for value in ("-1", "nan")],
        *[("model.stage_weights", value) for value in ("[1, 1, 1, .nan]", "[0, 0, 0, 0]", "[1]")],
        *[("model.lm.dim", value) for value in ("0", "-2", "wide")],
        *[("model.lm.num_layers", value) for value in ("0", "-1")],
        *[("model.decoding.temperature", value) for value in (".nan", "-1")],
        *[("model.optimizer.eps", value) for value in ("-1", ".inf")],
        ("model.optimizer.betas", "[2, 0.9]"),
        *[("rank_timeout", value) for value in (".inf", ".nan", "0")],
        *[("global_batch", value) for value in ("0", "-4", "3")],
        *[("seed_everything", value) for value in ("99999999999", "-1", "abc")],
    ],
)
def test_absurd_numbers(trainings, tmp_path, capsys, option, value):
    line = refused(trainings, capsys, tmp_path / "run", f"--{option}", value)
    assert option.rpartition(".")[2].rstrip("s") in line


@pytest.mark.parametrize(
    "settings", [{"decay": 1.0}, {"decay": -0.1}, {"decay": float("nan")}, {"every_n_steps": 0}]
)
def test_absurd_averages(settings):
    with pytest.raises(UserError, match="MovingAverage has decay"):
        MovingAverage(**settings)
