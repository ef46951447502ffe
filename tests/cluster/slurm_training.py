"""Submit `configs/trainer/multinode.sbatch` to the test's cluster: two nodes, one CPU process each, a small model."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from slurm_cluster import Slurm, catches, wait_until

from harness.shard_writer import ShardWriter
from magnet_train.codecs import load_codec

ROOT = Path(__file__).parents[2]
STEPS = 24
# Holds a run up in mid-training for as long as the test needs, at no cost of CPU time.
PACED = """
import time
from pathlib import Path
from magnet_train.training.module import MagnetModule

class Paced(MagnetModule):
    def training_step(self, batch, batch_idx):
        time.sleep(float(Path("pace").read_text()))
        return super().training_step(batch, batch_idx)
"""
ALLOCATION = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1")
OPTIONS = (
    *("-c", "configs/quickstart.yaml", "-c", "configs/trainer/cpu.yaml", "-c", "small.yaml"),
    *("--data.batch_size", "2", "--global_batch", "4", "--model.lm.dim", "32", "--model.lm.num_layers", "1"),
    *("--trainer.max_steps", str(STEPS), "--trainer.val_check_interval", "1000", "--model.warmup_steps", "2"),
    *("--trainer.enable_progress_bar", "false", "--trainer.callbacks.every_n_train_steps", "4"),
)


def write_shards(folder: Path) -> None:
    """Write clips that are long enough for the ten seconds of `configs/data/music_10s.yaml`."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder, load_codec("quickstart").info) as writer:
        for index in range(24):
            tokens = rng.integers(0, 256, (4, 600)).astype(np.int16)
            writer.add(f"clip{index:03d}", tokens, {"text": f"a {['calm', 'fast'][index % 2]} flute on c4"})


class TrainingJob:
    """A submitted job, in a folder of its own.

    Args:
        slurm: The cluster.
        folder: Where it runs; must be empty.
        shards: What it trains on.
        options: Further words for `sbatch`.
    """

    def __init__(self, slurm: Slurm, folder: Path, shards: Path, *options: str) -> None:
        self.slurm = slurm
        self.folder = folder
        self.run = folder / "runs" / "magnet"
        (folder / "paced.py").write_text(PACED)
        (folder / "small.yaml").write_text("model: {class_path: paced.Paced}\n")
        (folder / "shards").symlink_to(shards)
        self.pace(1.0)
        self.number = slurm.submit(
            *ALLOCATION,
            *(f"--chdir={folder}", f"--output={folder}/output", *options),
            ROOT / "configs" / "trainer" / "multinode.sbatch",
            *OPTIONS,
            GLOO_SOCKET_IFNAME="eth0",
            PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            PYTHONPATH=f"{folder}{os.pathsep}{ROOT}",
        )

    @property
    def output(self) -> str:
        path = self.folder / "output"
        return path.read_text(errors="replace") if path.exists() else ""

    def pace(self, seconds: float) -> None:
        """Let a step take at least this long."""
        (self.folder / "pace.new").write_text(str(seconds))
        (self.folder / "pace.new").replace(self.folder / "pace")

    def ranks(self) -> list[int]:
        """Return the processes that train, of both nodes, once they handle signals."""
        found = [pid for node in ("node1", "node2") for pid in self.slurm.pids(node, "magnet-train fit")]
        return [pid for pid in found if catches(pid, signal.SIGTERM, signal.SIGUSR1)]

    def wait_ranks(self) -> None:
        wait_until(lambda: len(self.ranks()) == 2, 300, self.explain)

    def wait_training(self) -> None:
        """Wait until a step was saved."""
        wait_until((self.run / "last.ckpt").exists, 300, self.explain)

    def wait_requeued(self) -> str:
        """Wait until the job is in the queue again; return its output."""
        self.slurm.wait_requeued(self.number, self.explain)
        return self.output

    def finish(self) -> dict[str, Any]:
        """Let it train to its end; return the last checkpoint."""
        self.pace(0.0)
        self.slurm.wait_state(self.number, "COMPLETED", explain=self.explain)
        return torch.load(self.run / "last.ckpt", weights_only=True)

    def explain(self) -> str:
        return f"{self.output}\n{self.slurm.describe(self.number)}\n{self.slurm.logs()}"


class Jobs:
    """Submits jobs, and knows how they end if nothing disturbs them."""

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        self.slurm = slurm
        self.folder = folder
        self._submitted: list[TrainingJob] = []
        self._undisturbed: dict[str, Any] | None = None
        write_shards(folder / "shards")

    def submit(self, *options: str) -> TrainingJob:
        folder = self.folder / f"job{len(self._submitted)}"
        folder.mkdir()
        self._submitted.append(TrainingJob(self.slurm, folder, self.folder / "shards", *options))
        return self._submitted[-1]

    def cancel_all(self) -> None:
        self.slurm.command("scancel", "-u", "root")
        wait_until(lambda: not self.slurm.command("squeue", "-h").strip(), 120, self.slurm.logs)

    def assert_as_undisturbed(self, checkpoint: dict[str, Any]) -> None:
        """Compare every tensor bit for bit."""
        if self._undisturbed is None:
            self._undisturbed = self.submit().finish()
        whole = self._undisturbed
        assert checkpoint["global_step"] == whole["global_step"] == STEPS
        for part in ("state_dict", "current_model_state"):
            assert checkpoint[part].keys() == whole[part].keys()
            assert all(torch.equal(tensor, whole[part][name]) for name, tensor in checkpoint[part].items())
        assert checkpoint["callbacks"]["DataPosition"] == whole["callbacks"]["DataPosition"]


@pytest.fixture(scope="module")
def cluster_jobs(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    return Jobs(slurm, tmp_path_factory.mktemp("cluster_jobs"))


@pytest.fixture
def jobs(cluster_jobs: Jobs) -> Iterator[Jobs]:
    """Jobs on a real SLURM; what a test leaves is cancelled."""
    yield cluster_jobs
    cluster_jobs.cancel_all()
