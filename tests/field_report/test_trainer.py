"""Flags of the trainer and callbacks of Lightning's: what the field report found, and its right answer."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.shard_writer import ShardWriter
from magnet_train.cli.main import main
from magnet_train.tokens import CodecInfo

ROOT = Path(__file__).parents[2]
CLIPS = 40
Q = (
    *("-c", "configs/base.yaml", "-c", "configs/quickstart.yaml", "-c", "configs/trainer/cpu.yaml"),
    *(
        "--data.batch_size",
        "4",
        "--model.lm.dim",
        "32",
        "--model.lm.num_layers",
        "1",
        "--model.warmup_steps",
        "2",
    ),
    *("--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1", "--trainer.max_steps", "8"),
)
CALLBACKS = "lightning.pytorch.callbacks."


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty clips of random tokens; four of them are held out."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    rng = np.random.default_rng(0)
    with ShardWriter(folder, CodecInfo("quickstart", "0" * 64, 8000, 1, 50.0, n_q=4, card=256)) as writer:
        for index in range(CLIPS):
            tokens = rng.integers(0, 256, (4, 64 + index)).astype(np.int16)
            writer.add(f"clip{index:03d}", tokens, {"text": f"a {['calm', 'fast'][index % 2]} flute on c4"})
    return folder


@pytest.fixture
def fit(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Train in this process; return the exit code and what stands on the terminal."""

    def run(*options: str, callbacks: str = "", name: str = "run") -> tuple[int, str]:
        words = ["fit", *Q, "--data.shards", str(shards), "--run", str(tmp_path / name)]
        if callbacks:
            (tmp_path / "callbacks.yaml").write_text(f"trainer:\n  callbacks+: [{callbacks}]\n")
            words += ["-c", str(tmp_path / "callbacks.yaml")]
        capsys.readouterr()
        try:
            code = main([*words, "--trainer.enable_progress_bar", "false", *options])
        except SystemExit as leaving:
            code = int(str(leaving.code))
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def error_in(text: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith("magnet-train: error: ")]
    return line


def rows_of(run: Path, column: str) -> list[float]:
    with open(run / "metrics.csv") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row.get(column)]


@pytest.mark.case("A7")
def test_two_averages_are_refused(fit):
    code, text = fit(callbacks=f"{CALLBACKS}EMAWeightAveraging")
    assert code == 1
    assert "MovingAverage and EMAWeightAveraging both average the weights, and only one can" in error_in(text)


@pytest.mark.case("A9")
def test_an_epoch_is_one_pass_over_the_clips(fit, tmp_path):
    """Forty clips, of which about a twentieth is held out: one pass of 16 a step is 3 steps."""
    batch = ["--data.batch_size", "16"]
    code, text = fit(*batch, "--trainer.max_epochs", "1")
    assert code == 0
    assert "clips: 3 steps of 16 clips; training ends at step 3" in text
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 3
    # Two epochs train on the same clips as a run without epochs, in the same order and to the last digit.
    assert fit(*batch, "--trainer.max_epochs", "2", name="epochs")[0] == 0
    assert fit(*batch, "--trainer.max_steps", "6", name="steps")[0] == 0
    losses = rows_of(tmp_path / "epochs", "train/loss")
    assert len(losses) == 6
    assert losses == rows_of(tmp_path / "steps", "train/loss")


@pytest.mark.case("A20")
@pytest.mark.parametrize(
    ("callbacks", "options", "words"),
    [
        (
            f"{{class_path: {CALLBACKS}EarlyStopping, init_args: {{monitor: val/loss, min_delta: 9, patience: 1}}}}",
            [],
            "stopped after step 4 of 8 by EarlyStopping: Monitored metric val/loss did not improve",
        ),
        (
            f"{{class_path: {CALLBACKS}Timer, init_args: {{duration: '00:00:00:00'}}}}",
            [],
            "of 8: the time of Timer or trainer.max_time is over.",
        ),
        ("", ["--trainer.max_time", "00:00:00:00"], "of 8: the time of Timer or trainer.max_time is over."),
    ],
)
def test_an_early_end_is_reported(fit, callbacks, options, words):
    code, text = fit(*options, callbacks=callbacks)
    assert code == 0
    assert text.count("stopped after step") == 1
    assert words in text


@pytest.mark.case("B7")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--trainer.logger", "false"], ""),
        (["--trainer.limit_train_batches", "0.5"], ""),
        (["--trainer.overfit_batches", "2"], "tokenize these alone"),
        (["--trainer.strategy", "ddp_spawn", "--trainer.devices", "2"], "use ddp"),
        (["--trainer.log_every_n_steps", "0"], "trainer.log_every_n_steps is 0; give 1 or more."),
        (
            ["--seed_everything", "-1"],
            "seed_everything: expected bool or a number v>=0 and v<4294967296 (given '-1')",
        ),
        (
            ["--model.optimizer.lr", "-1"],
            "model.optimizer cannot be built from its settings (Invalid learning rate: -1",
        ),
        (["--model.optimizer.lr", "nan"], "model.optimizer.lr: expected"),
        (
            ["--model.optimizer.lr", ".nan"],
            "model.optimizer cannot be built from its settings (Invalid learning rate: nan",
        ),
        (["--model.optimizer.lr", ".inf"], "model.optimizer.lr is inf; give a finite number."),
        (["--model.optimizer.weight_decay", "-1"], "model.optimizer cannot be built from its settings"),
    ],
)
def test_odd_values_work_or_are_refused(fit, options, words):
    code, text = fit(*options)
    if words:
        assert code in (1, 2)
        assert words in error_in(text)
    else:
        assert code == 0


@pytest.mark.case("B8")
@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("EarlyStopping", "{monitor: val_loss}", "EarlyStopping monitors val_loss, which is not logged"),
        ("ModelCheckpoint", "{save_top_k: 2}", "ModelCheckpoint rejects its init_args"),
        ("StochasticWeightAveraging", "{swa_lrs: .001}", "use magnet_train.training.optim.MovingAverage"),
        ("LearningRateFinder", "{}", "give --model.optimizer.lr"),
        ("Timer", '{duration: "00:00:10:00"}', ""),
    ],
)
def test_callbacks_work_or_are_refused(fit, name, settings, words):
    code, text = fit(callbacks=f"{{class_path: {CALLBACKS}{name}, init_args: {settings}}}")
    assert code == (1 if words else 0)
    if words:
        assert words in error_in(text)


@pytest.mark.case("B9")
@pytest.mark.parametrize("name", ["TQDMProgressBar", "RichProgressBar"])
def test_another_progress_bar_takes_the_place_of_ours(fit, name):
    code, text = fit("--trainer.enable_progress_bar", "true", callbacks=CALLBACKS + name)
    assert code == 0, text
    assert "hours/hour" not in text  # of our own bar


@pytest.mark.case("B26")
@pytest.mark.parametrize("environment", [{}, {"PYTHONPATH": "."}])
def test_a_folder_named_datamodules_does_not_hide_ours(shards, tmp_path, environment):
    (tmp_path / "datamodules").mkdir()
    (tmp_path / "datamodules" / "__init__.py").write_text("raise RuntimeError('not this one')\n")
    script = Path(sys.executable).with_name("magnet-train")
    command = [str(script)] if environment else [sys.executable, "-m", "magnet_train"]
    path = environment.get("PYTHONPATH", "") if environment else str(ROOT)
    done = subprocess.run(
        [*command, "verify", str(shards)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([path, str(ROOT)]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
