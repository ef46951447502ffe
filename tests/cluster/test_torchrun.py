"""`torchrun --max-restarts`: the restarted workers go on with the run that the first ones began."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from slurm_cluster import catches, command_line, wait_until
from slurm_training import OPTIONS, PACED, write_shards

ROOT = Path(__file__).parents[2]


def start(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start two ranks that may be restarted once; `folder/pace` holds the seconds of a step."""
    words = [
        "--standalone",
        "--nproc_per_node",
        "2",
        "--max-restarts",
        "1",
        "-m",
        "--",
        "magnet_train",
        "fit",
    ]
    words += ["-c", "configs/base.yaml", *OPTIONS, "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    with (folder / "output").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *words, "--data.shards", "shards", *options],
            cwd=folder,
            env=os.environ
            | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
            | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@pytest.mark.slow
def test_restarted_workers_resume(tmp_path):
    write_shards(tmp_path / "shards")
    (tmp_path / "paced.py").write_text(PACED)
    (tmp_path / "small.yaml").write_text("model: {class_path: paced.Paced}\n")
    (tmp_path / "pace").write_text("1")
    torchrun = start(tmp_path, "--run", "run")

    def output() -> str:
        return (tmp_path / "output").read_text(errors="replace")

    def ranks() -> list[int]:
        children = subprocess.run(
            ["pgrep", "-P", str(torchrun.pid)], capture_output=True, text=True, check=False
        )
        return [pid for pid in map(int, children.stdout.split()) if "magnet_train" in command_line(pid)]

    try:
        wait_until((tmp_path / "run" / "last.ckpt").exists, 300, output)
        assert all(catches(pid, signal.SIGTERM, signal.SIGUSR1) for pid in ranks())
        os.kill(ranks()[1], signal.SIGKILL)
        (tmp_path / "pace").write_text("0")
        assert torchrun.wait(900) == 0, output()
    finally:
        if torchrun.poll() is None:
            os.killpg(torchrun.pid, signal.SIGKILL)
    assert output().count("resuming from run/step=") == 1
    whole = start(tmp_path, "--run", "whole")
    assert whole.wait(900) == 0, output()
    one, other = (torch.load(tmp_path / run / "last.ckpt", weights_only=True) for run in ("run", "whole"))
    assert one["global_step"] == other["global_step"]
    for part in ("state_dict", "current_model_state"):
        assert all(torch.equal(tensor, other[part][name]) for name, tensor in one[part].items())
