"""A signal at an awkward moment of training, sent by the process to itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from slurm_cluster import catches, wait_until
from slurm_training import ROOT, write_shards

from magnet_train.cli.main import main

STEPS = 4
SENDER = """
import os, signal
from lightning.pytorch.callbacks import Callback

class Sender(Callback):
    def __init__(self, moment: str) -> None:
        self.moment = moment

    def send(self, moment: str, *numbers: int) -> None:
        if moment == self.moment:
            for number in numbers or (signal.SIGTERM,):
                os.kill(os.getpid(), number)

    def on_fit_start(self, trainer, pl_module):
        self.send("before the first step")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            self.send("two at once", signal.SIGUSR1, signal.SIGTERM)
        if batch_idx == 3:
            self.send("last step")

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.send("checkpoint")
"""


def words(shards: Path, run: Path, *options: str) -> list[str]:
    return [
        *(
            "fit",
            "-c",
            "configs/base.yaml",
            "-c",
            "configs/quickstart.yaml",
            "-c",
            "configs/trainer/cpu.yaml",
        ),
        *("--data.shards", str(shards), "--run", str(run), "--data.batch_size", "2"),
        *("--model.lm.dim", "32", "--model.lm.num_layers", "1", "--trainer.enable_progress_bar", "false"),
        *("--trainer.max_steps", str(STEPS), "--trainer.val_check_interval", "100"),
        *("--trainer.callbacks.every_n_train_steps", "2", *options),
    ]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stop_moments") / "shards"
    write_shards(folder)
    return folder


@pytest.mark.parametrize(
    ("moment", "code", "last"),
    [
        ("before the first step", 75, "stopped_step=0000001.ckpt"),
        ("two at once", 75, "stopped_step=0000002.ckpt"),
        ("checkpoint", 75, "stopped_step=0000002.ckpt"),
        ("last step", 0, "step=0000004.ckpt"),
    ],
)
def test_a_signal_at_an_awkward_moment(shards, tmp_path, monkeypatch, capsys, moment, code, last):
    (tmp_path / "sender.py").write_text(SENDER)
    overlay = tmp_path / "sender.yaml"
    overlay.write_text(
        f"trainer:\n  callbacks+:\n    - {{class_path: sender.Sender, init_args: {{moment: {moment}}}}}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    assert main(words(shards, tmp_path / "run", "-c", str(overlay))) == code
    assert (tmp_path / "run" / "last.ckpt").resolve().name == last
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == int(last[-12:-5])
    assert capsys.readouterr().err.count("stopped by SIG") == (code == 75)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


@pytest.mark.slow
def test_a_signal_to_one_rank_that_starts_up_stops_both(shards, tmp_path):
    command = words(shards, tmp_path / "run", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    fit = subprocess.Popen(
        [sys.executable, "-m", "magnet_train", *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def ranks_beside() -> list[int]:
        listed = subprocess.run(["pgrep", "-P", str(fit.pid)], capture_output=True, text=True, check=False)
        return [
            pid for pid in map(int, listed.stdout.split()) if catches(pid, signal.SIGTERM, signal.SIGUSR1)
        ]

    try:
        wait_until(lambda: bool(ranks_beside()), 300, lambda: "no second rank")
        os.kill(ranks_beside()[0], signal.SIGUSR1)
        output = fit.communicate(timeout=300)[1]
    finally:
        if fit.poll() is None:
            os.killpg(fit.pid, signal.SIGKILL)
    assert fit.returncode == 75, output
    assert output.count("stopped by SIGUSR1 before training began") == 1
    assert not list((tmp_path / "run").glob("*.ckpt"))
