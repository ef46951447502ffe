"""One run, however it is cut: real processes over gloo, real shards, the real command line."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

import magnet_train
from magnet_train.cli.main import main
from magnet_train.errors import UserError
from magnet_train.training.parallel import accumulate

ROOT = Path(__file__).parents[3]
STEPS = 20
SMALL = [
    *("-c", "configs/base.yaml", "-c", "configs/quickstart.yaml", "-c", "configs/trainer/cpu.yaml"),
    *("--model.lm.dim", "32", "--model.lm.num_layers", "2", "--model.warmup_steps", "5"),
    *("--trainer.max_steps", str(STEPS), "--trainer.log_every_n_steps", "1"),
    *("--trainer.enable_progress_bar", "false"),
]


@pytest.fixture(scope="module")
def shards(write_clips, tmp_path_factory) -> Path:
    """Clips of 15 to 114 frames, most shorter than a segment: ranks have very different masked counts."""
    return write_clips(tmp_path_factory.mktemp("data") / "shards", clips=100, shortest=15)


def fit(shards: Path, run: Path, *options: str, launcher: tuple[str, ...] = (), command: str = "fit") -> None:
    """Run `magnet-train fit` or another command in processes of its own."""
    start = [sys.executable, *launcher, "-m", "magnet_train", command]
    words = [*start, *SMALL, "--data.shards", str(shards), "--run", str(run), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
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


def sharded(ranks: int, batch_size: int, folder: Path) -> list[str]:
    """Options for FSDP2 over `ranks` CPU processes: the shipped overlay's strategy at another size."""
    overlay = folder / f"fsdp{ranks}.yaml"
    overlay.write_text(
        "trainer:\n  strategy:\n    class_path: lightning.pytorch.strategies.ModelParallelStrategy\n"
        f"    init_args: {{data_parallel_size: {ranks}, tensor_parallel_size: 1, save_distributed_checkpoint: false}}\n"
    )
    return ["-c", str(overlay), "--trainer.devices", str(ranks), "--data.batch_size", str(batch_size)]


@pytest.mark.slow
def test_a_sharded_run_is_the_same_run(shards, tmp_path):
    """FSDP2 on 4 ranks, cut at step 10 and gone on with on 2; stratified, so that ranks differ in what they do.

    Losses within 1e-5 of one process, weights and averages of the last checkpoint within 1e-5, and the one file
    that comes out is read, exported and generated from like any other.
    """
    common = [
        "--model.schedule",
        "magnet_train.training.optim.WarmupInverseSquareRoot",
    ]  # whatever max_steps is
    common += ["--model.stage_sampling", "stratified", "--model.recompute_activations", "true"]
    common += [
        "--model.sample_prompts",
        '["a calm flute on c4"]',
        "--trainer.callbacks.every_n_train_steps",
        "10",
    ]
    common += ["--trainer.callbacks.save_top_k", "-1", "--trainer.val_check_interval", "10"]
    one, four, two = tmp_path / "one", tmp_path / "four", tmp_path / "two"
    fit(shards, one, *common, "--data.batch_size", "16")
    fit(shards, four, *common, *sharded(4, 4, tmp_path), "--trainer.max_steps", "10")
    middle = four / "step=0000010.ckpt"
    resumed = [*sharded(2, 8, tmp_path), "--ckpt_path", str(middle)]
    fit(shards, two, *common, *resumed)
    assert column(two, "train/loss") == pytest.approx(column(one, "train/loss")[10:], abs=1e-5)
    # The checkpoint was saved right before the validation of step 10, so the resumed run begins with it.
    assert column(two, "val/loss") == pytest.approx(column(one, "val/loss"), abs=1e-5)

    expected = torch.load(one / "last.ckpt", weights_only=True)
    checkpoint = torch.load(two / "last.ckpt", weights_only=True)
    assert checkpoint.keys() == expected.keys()
    for part in ("state_dict", "current_model_state"):
        assert checkpoint[part].keys() == expected[part].keys()
        for name, tensor in expected[part].items():
            torch.testing.assert_close(checkpoint[part][name], tensor, atol=1e-5, rtol=0)
    export = tmp_path / "export"
    arguments = ["export", "--checkpoint", str(two / "last.ckpt"), "--out", str(export), "--format", "magnet"]
    assert main(arguments) == 0
    tokens = [
        magnet_train.Magnet.from_pretrained(path).generate_tokens(["a calm flute on c4"], seconds=1, seed=0)
        for path in (two / "last.ckpt", export)
    ]
    assert torch.equal(*tokens)


@pytest.mark.slow
def test_two_machines_started_by_torchrun(shards, tmp_path):
    """Two launchers of two processes each on one host, the YAML of several machines, one curve."""
    one, many = tmp_path / "one", tmp_path / "many"
    fit(shards, one, "--data.batch_size", "16", "--trainer.max_steps", "6")
    overlay = ["-c", "configs/trainer/multinode.yaml", "-c", "configs/trainer/cpu.yaml"]
    options = [*overlay, "--trainer.num_nodes", "2", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    options += ["--global_batch", "16", "--data.batch_size", "2", "--trainer.max_steps", "6"]
    options += ["--data.shards", str(shards), "--run", str(many)]
    port = free_port()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    nodes = []
    for rank in range(2):
        launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "2"]
        launcher += ["--node_rank", str(rank), "--master_addr", "127.0.0.1", "--master_port", str(port)]
        # Without the two dashes torchrun takes our --run for a beginning of its own --run-path.
        command = [sys.executable, *launcher, "-m", "--", "magnet_train", "fit", *SMALL, *options]
        log = (tmp_path / f"node{rank}.log").open("w")
        nodes.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        )
    for rank, node in enumerate(nodes):
        assert node.wait(timeout=600) == 0, (tmp_path / f"node{rank}.log").read_text()[-4000:]
    assert column(many, "train/loss") == pytest.approx(column(one, "train/loss"), abs=1e-5)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def trainer_of(parts: int = 1) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", logger=False, accumulate_grad_batches=parts, enable_progress_bar=False
    )


def test_a_global_batch_sets_the_accumulation():
    trainer = trainer_of()
    accumulate(trainer, 8, None)
    assert trainer.accumulate_grad_batches == 1
    accumulate(trainer, 8, 48)
    assert trainer.accumulate_grad_batches == 6
    accumulate(trainer_of(6), 8, 48)


@pytest.mark.parametrize(
    ("parts", "global_batch", "words"),
    [
        (1, 20, "--global_batch 20 .* 8 times 1"),
        (1, 4, "--global_batch 4 "),
        (2, 48, "takes 6 batches.* says 2"),
    ],
)
def test_a_global_batch_that_does_not_come_out_even_is_refused(parts, global_batch, words):
    with pytest.raises(UserError, match=words):
        accumulate(trainer_of(parts), 8, global_batch)


@pytest.mark.slow
def test_ranks_share_the_samples_of_a_validation(shards, tmp_path):
    """Three prompts on one rank and on two: the same sound, whoever made it."""
    prompts = ["--model.sample_prompts", '["a calm flute on c4", "a bell", "a fast drum"]']
    fit(shards, tmp_path / "run", "--trainer.max_steps", "2", "--data.batch_size", "4")
    sounds = []
    for ranks in ("1", "2"):
        run = tmp_path / f"on_{ranks}"
        devices = ["--trainer.devices", ranks, "--trainer.strategy", "auto" if ranks == "1" else "ddp"]
        checkpoint = ["--ckpt_path", str(tmp_path / "run" / "last.ckpt")]
        fit(shards, run, *prompts, *devices, *checkpoint, "--data.batch_size", "4", command="validate")
        sounds.append([path.read_bytes() for path in sorted(run.glob("samples/*/*.wav"))])
    assert len(sounds[0]) == 3
    assert len(set(sounds[0])) == 3
    assert sounds[0] == sounds[1]
