"""The end of `configs/trainer/multinode.sbatch`, with stand-ins for `srun` and `scontrol`; see test_slurm.py as well."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "configs" / "trainer" / "multinode.sbatch"


@pytest.mark.parametrize(
    ("code", "requeued"),
    [(0, False), (1, False), (2, False), (75, True), (130, False), (137, False), (138, True), (143, True)],
)
def test_a_job_is_requeued_only_where_a_signal_stopped_it(tmp_path, code, requeued):
    for name, text in (("srun", f"echo $@ >> log; exit {code}"), ("scontrol", "echo scontrol $@ >> log")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "123", "SLURM_JOB_NAME": "mine", "SLURM_NNODES": "3"}
    path = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", str(SCRIPT), "--model.compile", "true"],
        cwd=tmp_path,
        env=os.environ | job | path,
        check=False,
    )
    assert done.returncode == code
    started, *requeues = (tmp_path / "log").read_text().splitlines()
    assert started.startswith("magnet-train fit -c configs/base.yaml")
    assert started.endswith(
        "--trainer.num_nodes 3 --data.shards shards --run runs/mine --resume auto --model.compile true"
    )
    assert requeues == (["scontrol requeue 123"] if requeued else [])
