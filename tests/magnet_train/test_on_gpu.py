"""Training and generation on CUDA: `pytest -m gpu`. The losses to expect are those of the CPU."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CPU = ("-c", "configs/trainer/cpu.yaml")
GPU = ("-c", "configs/trainer/one_gpu.yaml")
FSDP = (
    *("-c", "configs/trainer/fsdp.yaml", "--trainer.devices", "2", "--global_batch", "8"),
    *("--trainer.strategy.init_args.data_parallel_size", "2"),
)


def magnet_train(*words: str) -> None:
    """Run a command in a process of its own, which has to succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "magnet_train", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def losses(shards: Path, run: Path, *options: str, batch: int = 8) -> list[float]:
    """Train for three steps of eight clips and return their losses (nats per masked token)."""
    magnet_train(
        *("fit", "-c", "configs/base.yaml", "-c", "configs/quickstart.yaml", *options),
        *("--data.shards", str(shards), "--data.batch_size", str(batch), "--run", str(run)),
        *(
            "--trainer.max_steps",
            "3",
            "--trainer.val_check_interval",
            "3",
            "--trainer.log_every_n_steps",
            "1",
        ),
        *(
            "--model.lm.num_layers",
            "2",
            "--model.warmup_steps",
            "1",
            "--trainer.enable_progress_bar",
            "false",
        ),
    )
    with (run / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.fixture(scope="module")
def on_cpu(token_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return losses(token_shards, tmp_path_factory.mktemp("cpu") / "run", *CPU)


@pytest.mark.parametrize("options", [(), ("--model.compile", "true")], ids=["eager", "compiled"])
def test_bf16_steps(
    options: tuple[str, ...], token_shards: Path, tmp_path: Path, on_cpu: list[float]
) -> None:
    measured = losses(token_shards, tmp_path / "run", *GPU, *options)
    assert measured == pytest.approx(on_cpu, abs=0.05)  # nats; bf16 keeps 8 bits of a number


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_fsdp2_on_two_ranks(token_shards: Path, tmp_path: Path, on_cpu: list[float]) -> None:
    assert losses(token_shards, tmp_path / "run", *FSDP, batch=4) == pytest.approx(on_cpu, abs=0.05)
    content = torch.load(tmp_path / "run" / "last.ckpt", map_location="cpu", weights_only=True)
    assert all(torch.isfinite(tensor).all() for tensor in content["state_dict"].values())


def test_generate(checkpoint: Path, tmp_path: Path) -> None:
    """The same seed gives the same samples."""
    clips = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        words = ("--text", "a low bell", "--seed", "1", "--device", "cuda", "--out", str(folder))
        magnet_train("generate", "--model", str(checkpoint), *words)
        (line,) = (folder / "results.jsonl").read_text().splitlines()
        clips.append(soundfile.read(folder / json.loads(line)["file"])[0])
    assert len(clips[0]) == 0.48 * 8000
    assert (clips[0] == clips[1]).all()
