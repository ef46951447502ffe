"""One run, however it is cut: real processes over gloo, real shards, the real command line."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datamodules.writer import ShardWriter
from magnet_train.tokens import CodecInfo

ROOT = Path(__file__).parents[2]
CODEC = CodecInfo("quickstart", "0" * 64, 8000, 1, 50.0, n_q=4, card=256)
STEPS = 20
SMALL = [
    *("-c", "configs/base.yaml", "-c", "configs/quickstart.yaml", "-c", "configs/trainer/cpu.yaml"),
    *("--model.lm.dim", "32", "--model.lm.num_layers", "2", "--model.warmup_steps", "5"),
    *("--trainer.max_steps", str(STEPS), "--trainer.log_every_n_steps", "1"),
    *("--trainer.enable_progress_bar", "false"),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Clips of 15 to 114 frames, most shorter than a segment: ranks have very different masked counts."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    rng = np.random.default_rng(0)
    with ShardWriter(folder, CODEC) as writer:
        for index in range(100):
            tokens = rng.integers(0, 256, (4, 15 + index)).astype(np.int16)
            writer.add(f"clip{index:03d}", tokens, {"text": f"a {['calm', 'fast'][index % 2]} flute on c4"})
    return folder


def fit(shards: Path, run: Path, *options: str, launcher: tuple[str, ...] = ()) -> None:
    """Run `magnet-train fit` in processes of its own."""
    start = [sys.executable, *launcher, "-m", "magnet_train", "fit"]
    command = [*start, *SMALL, "--data.shards", str(shards), "--run", str(run), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def column(run: Path, name: str) -> list[float]:
    with (run / "metrics.csv").open() as lines:
        return [float(row[name]) for row in csv.DictReader(lines) if row[name]]


CUTS = {  # the same 16 clips a step
    "one process": ["--data.batch_size", "16"],
    "two parts": ["--data.batch_size", "8", "--trainer.accumulate_grad_batches", "2"],
    "two ranks": ["--data.batch_size", "8", "--trainer.devices", "2", "--trainer.strategy", "ddp"],
    "two ranks, four parts": [
        *("--data.batch_size", "2", "--trainer.accumulate_grad_batches", "4"),
        *("--trainer.devices", "2", "--trainer.strategy", "ddp"),
    ],
    "four ranks": ["--data.batch_size", "4", "--trainer.devices", "4", "--trainer.strategy", "ddp"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampling", "cuts"),
    [
        ("reference", ["one process", "two parts", "two ranks", "four ranks"]),
        ("stratified", ["one process", "two ranks, four parts"]),
    ],
)
def test_a_run_is_the_same_however_it_is_cut(sampling, cuts, shards, tmp_path):
    """Losses within 1e-5 for 20 steps with warm-up, clipping, averaging and validation."""
    losses, held_out = {}, {}
    for name in cuts:
        options = CUTS[name]
        run = tmp_path / name.replace(" ", "_")
        parts = int(options[options.index("--trainer.accumulate_grad_batches") + 1]) if "parts" in name else 1
        fit(
            shards,
            run,
            *options,
            *("--model.stage_sampling", sampling, "--trainer.val_check_interval", str(STEPS * parts)),
        )
        losses[name], held_out[name] = column(run, "train/loss"), column(run, "val/loss")
    for name in cuts:
        assert len(losses[name]) == STEPS
        gap = max(abs(a - b) for a, b in zip(losses[name], losses["one process"], strict=True))
        assert gap <= 1e-5
        assert held_out[name] == pytest.approx(held_out["one process"], abs=1e-5)
