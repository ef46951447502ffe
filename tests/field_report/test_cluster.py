"""Signals to `fit`: in its first seconds, and from a real SLURM (cases B12 and B14; B13 is in tests/cluster)."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import catches, wait_until

from magnet_train.training.stop_request import PREEMPTED

ROOT = Path(__file__).parents[2]
FIT = ("fit", "-c", "configs/base.yaml", "-c", "configs/quickstart.yaml", "-c", "configs/trainer/cpu.yaml")


def imports_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.case("B12")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("moment", ["as soon as it is handled", "while torch is imported"])
def test_a_signal_in_the_first_seconds(tmp_path, number, moment):
    fit = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "magnet_train",
            *FIT,
            "--data.shards",
            "shards",
            "--run",
            str(tmp_path / "run"),
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(
            lambda: catches(fit.pid, signal.SIGTERM, signal.SIGUSR1), 60, lambda: "no handlers", every=0.01
        )
        if moment == "while torch is imported":
            wait_until(lambda: imports_torch(fit.pid), 60, lambda: "no torch", every=0.01)
        fit.send_signal(number)
        output = fit.communicate(timeout=60)[1]
    finally:
        fit.kill()
    assert fit.returncode == PREEMPTED
    assert (
        output
        == f"magnet-train: stopped by {number.name} before training began; start it again with --resume auto.\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.case("B14")
def test_all_ranks_leave_with_75_before_the_requeue(jobs):
    job = jobs.submit()
    job.wait_training()
    jobs.slurm.command("scancel", "--signal=USR1", str(job.number))
    output = job.wait_requeued()
    assert output.count("stopped by SIGUSR1") == 1
    assert "lost contact" not in output
    for rank in (0, 1):
        assert f"task {rank}: Exited with exit code {PREEMPTED}" in output or "tasks 0-1: Exited" in output
    assert "CANCELLED" not in output.split("Exited with exit code")[0]  # the requeue ended no rank
    jobs.assert_as_undisturbed(job.finish())
