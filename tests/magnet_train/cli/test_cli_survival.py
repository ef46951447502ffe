"""Signals, dead ranks, non-finite losses and full disks in real processes."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import time

import pytest
import torch
from safetensors import safe_open

PREEMPTED = 75
LONG = ("--trainer.max_steps", "100000", "--trainer.val_check_interval", "100000")
DDP = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "2")
SHARDED = """
trainer:
  devices: 2
  strategy:
    class_path: lightning.pytorch.strategies.ModelParallelStrategy
    init_args: {data_parallel_size: 2, tensor_parallel_size: 1, save_distributed_checkpoint: false}
"""
EVERY_5 = ("--trainer.callbacks.every_n_train_steps", "5")

SLOW_VALIDATION = """
import time
from magnet_train.training.module import MagnetModule

class SlowValidation(MagnetModule):
    def validation_step(self, batch, batch_idx):
        time.sleep(0.2)
        super().validation_step(batch, batch_idx)
        (open(self.trainer.default_root_dir + f"/validating_{self.trainer.global_rank}", "w")).close()
"""

BAD_LOSS = """
import os
import torch
from magnet_train.training.module import MagnetModule

class BadLoss(MagnetModule):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        bad = self.global_step == 4 and self.global_rank == int(os.environ["BAD_RANK"])
        return loss * torch.tensor(float(os.environ.get("BAD_FACTOR", "nan")) if bad else 1.0)
"""


def module(folder, name: str, code: str) -> list[str]:
    """Write a module and an overlay that names it; return the options."""
    (folder / f"{name.lower()}.py").write_text(code)
    overlay = folder / f"{name.lower()}.yaml"
    overlay.write_text(f"model: {{class_path: {name.lower()}.{name}}}\n")
    return ["-c", str(overlay)]


def path_with(folder) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def has_steps(training):
    return lambda: (training.run / "last.ckpt").exists()


def assert_stopped_well(training, load):
    assert training.wait(60) == PREEMPTED, training.text[-3000:]
    assert training.everyone_is_gone()
    last = training.run / "last.ckpt"
    assert last.resolve().name.startswith("stopped_step=")
    assert training.text.count("magnet-train: stopped by SIG") == 1
    return load(last)["global_step"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "number"),
    [
        ("single", signal.SIGTERM),
        ("rank 0", signal.SIGUSR1),
        ("rank 1", signal.SIGTERM),
        ("group", signal.SIGTERM),
        ("rank 1, sharded", signal.SIGTERM),
    ],
)
def test_a_signal_in_training_saves_one_common_step(trainings, tmp_path, load, column, who, number):
    devices = () if who == "single" else DDP
    if who == "rank 1, sharded":
        (tmp_path / "sharded.yaml").write_text(SHARDED)
        devices = ("-c", str(tmp_path / "sharded.yaml"), "--data.batch_size", "2")
    training = trainings.start(tmp_path / "run", *LONG, *EVERY_5, *devices)
    training.wait_until(has_steps(training))
    if who == "group":
        os.killpg(training.process.pid, number)
    else:
        ranks = training.ranks()
        assert len(ranks) == (1 if who == "single" else 2)
        os.kill(ranks[-1 if who.startswith("rank 1") else 0], number)
    step = assert_stopped_well(training, load)
    if who != "single":
        return
    # The stopped run, resumed, is the uninterrupted one.
    goal = ("--trainer.max_steps", str(step + 3), "--trainer.val_check_interval", "100000")
    assert trainings.fit(tmp_path / "run", *goal, *EVERY_5, "--resume", "required") == 0
    assert trainings.fit(tmp_path / "whole", *goal, *EVERY_5) == 0
    resumed, whole = load(tmp_path / "run" / "last.ckpt"), load(tmp_path / "whole" / "last.ckpt")
    assert resumed["global_step"] == step + 3
    assert resumed["callbacks"]["DataPosition"] == whole["callbacks"]["DataPosition"]


@pytest.mark.slow
def test_a_signal_in_validation_does_not_wait_for_its_end(trainings, tmp_path, load, column):
    """At rank 1; the resumed run validates again and equals the uninterrupted one."""
    options = ["--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--data.val_fraction", "0.9"]
    slow = module(tmp_path, "SlowValidation", SLOW_VALIDATION)
    batch_one = ["--data.batch_size", "1", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    training = trainings.start(tmp_path / "run", *options, *slow, *batch_one, **path_with(tmp_path))
    training.wait_until((tmp_path / "run" / "validating_1").exists)
    os.kill(training.ranks()[1], signal.SIGTERM)
    assert assert_stopped_well(training, load) == 2
    assert not column(tmp_path / "run", "val/loss")  # nothing was logged of half a validation

    again = trainings.start(
        tmp_path / "run", *options, *slow, *batch_one, "--resume", "auto", **path_with(tmp_path)
    )
    whole = trainings.start(tmp_path / "whole", *options, *slow, *batch_one, **path_with(tmp_path))
    assert (again.wait(), whole.wait()) == (0, 0), again.text[-2000:] + whole.text[-2000:]
    for name in ("train/loss", "val/loss"):
        assert column(tmp_path / "run", name) == column(tmp_path / "whole", name)
    one, other = load(tmp_path / "run" / "last.ckpt"), load(tmp_path / "whole" / "last.ckpt")
    for part in ("state_dict", "current_model_state"):
        assert all(torch.equal(tensor, other[part][name]) for name, tensor in one[part].items())


@pytest.mark.slow
def test_a_signal_under_slurm_leaves_the_requeue_to_the_batch_script(trainings, tmp_path, load):
    """All ranks have to leave before: tests/cluster has the script and a real SLURM."""
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    slurm = {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        **{"SLURM_JOB_ID": "123", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        **{"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "1", "SLURM_NODELIST": "localhost"},
        **{"SLURM_NTASKS_PER_NODE": "1"},
    }
    training = trainings.start(tmp_path / "run", *LONG, *EVERY_5, **slurm)
    training.wait_until(has_steps(training))
    os.kill(training.process.pid, signal.SIGUSR1)
    step = assert_stopped_well(training, load)
    assert not (tmp_path / "asked").exists()
    assert not list((tmp_path / "run").glob("hpc_ckpt*"))  # Lightning's own way of requeueing kept out
    again = trainings.start(
        tmp_path / "run", *LONG, "--trainer.max_steps", str(step + 2), "--resume", "auto", **slurm
    )
    assert again.wait() == 0, again.text[-3000:]
    assert load(tmp_path / "run" / "last.ckpt")["global_step"] == step + 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_dead_rank_ends_the_run(trainings, tmp_path, load, number):
    training = trainings.start(tmp_path / "run", *LONG, *EVERY_5, *DDP, "--rank_timeout", "0.8")
    training.wait_until(has_steps(training))
    os.kill(training.ranks()[1], number)
    assert training.wait(180) not in (0, PREEMPTED)
    time.sleep(1)
    assert training.everyone_is_gone(), training.text[-2000:]
    assert load(training.run / "last.ckpt")["global_step"] > 0


def test_a_non_finite_loss_stops_before_the_update(trainings, tmp_path, monkeypatch, capsys, load):
    options = module(tmp_path, "BadLoss", BAD_LOSS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("BAD_RANK", "0")
    run = tmp_path / "run"
    assert trainings.fit(run, *options, "--trainer.callbacks.every_n_train_steps", "1") == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "not finite at step 4 (rank 0, slots [16, 17, 18, 19], keys clip" in message
    (saved,) = (run / "non_finite").iterdir()
    with safe_open(saved, "pt") as file:
        assert file.get_tensor("slot").tolist() == [16, 17, 18, 19]
        assert file.get_tensor("tokens").shape == (4, 4, 64)
        assert "clip" in file.metadata()["key"]
        assert "flute" in file.metadata()["text"]
    assert load(run / "last.ckpt")["global_step"] == 4
    assert all(tensor.isfinite().all() for tensor in load(run / "last.ckpt")["state_dict"].values())


def test_a_bad_batch_that_cannot_be_saved_is_still_named(trainings, tmp_path, monkeypatch, capsys):
    options = module(tmp_path, "BadLoss", BAD_LOSS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("BAD_RANK", "0")
    run = tmp_path / "run"
    run.mkdir()
    (run / "non_finite").write_text("a file where the folder should be")
    assert trainings.fit(run, *options) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "not finite at step 4 (rank 0, slots [16, 17, 18, 19], keys clip" in message
    assert "which could not be saved: cannot write" in message


@pytest.mark.slow
def test_a_non_finite_loss_on_one_rank_stops_all(trainings, tmp_path, load):
    options = module(tmp_path, "BadLoss", BAD_LOSS)
    training = trainings.start(
        tmp_path / "run", *LONG, *EVERY_5, *DDP, *options, BAD_RANK="1", **path_with(tmp_path)
    )
    assert training.wait() == 1
    assert training.everyone_is_gone()
    assert (
        training.text.count("magnet-train: error: the loss is not finite at step 4 (rank 1, slots [18, 19]")
        == 1
    )
    assert [path.name for path in (tmp_path / "run" / "non_finite").iterdir()] == [
        "step_0000004_rank_1_0.safetensors"
    ]


def test_spikes_are_skipped_only_on_request(trainings, tmp_path, monkeypatch, column, load):
    options = module(tmp_path, "BadLoss", BAD_LOSS)
    overlay = tmp_path / "guard.yaml"
    overlay.write_text(
        "trainer:\n  callbacks:\n"
        "    - {class_path: magnet_train.training.callbacks.NonFiniteGuard, init_args: {skip_above: 3.0}}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("BAD_RANK", "0")
    monkeypatch.setenv("BAD_FACTOR", "1000")
    run, without = tmp_path / "run", tmp_path / "without"
    assert trainings.fit(run, *options, "-c", str(overlay)) == 0
    assert column(run, "train/skipped_updates") == {0: 0, 1: 0, 2: 0, 3: 0, 4: 1, 5: 1}
    assert load(run / "last.ckpt")["callbacks"]["NonFiniteGuard"]["skipped"] == 1
    states = load(run / "last.ckpt")["optimizer_states"][0]["state"]
    assert {int(state["step"]) for state in states.values()} == {5}  # of 6
    assert trainings.fit(without, *options) == 0
    states = load(without / "last.ckpt")["optimizer_states"][0]["state"]
    assert {int(state["step"]) for state in states.values()} == {6}


def test_the_mean_of_the_losses_does_not_depend_on_accumulated_parts(trainings, tmp_path, load, column):
    """A resume from four parts to one skips nothing; the mean is that of the losses that are logged, in nats."""
    overlay = tmp_path / "guard.yaml"
    overlay.write_text(
        "trainer:\n  callbacks:\n"
        "    - {class_path: magnet_train.training.callbacks.NonFiniteGuard, init_args: {skip_above: 1.5}}\n"
    )
    run, options = tmp_path / "run", ("-c", str(overlay), "--trainer.val_check_interval", "100")
    assert trainings.fit(run, *options, "--trainer.accumulate_grad_batches", "4") == 0
    expected = None
    for loss in column(run, "train/loss").values():
        expected = loss if expected is None else 0.98 * expected + 0.02 * loss
    assert load(run / "last.ckpt")["callbacks"]["NonFiniteGuard"]["mean_nats"] == pytest.approx(expected)
    assert trainings.fit(run, *options, "--resume", "auto", "--trainer.max_steps", "9") == 0
    assert load(run / "last.ckpt")["callbacks"]["NonFiniteGuard"]["skipped"] == 0


def test_non_finite_weights_are_not_saved(trainings, tmp_path, monkeypatch, capsys):
    (tmp_path / "poisoned.py").write_text(
        "import torch\nfrom magnet_train.training.module import MagnetModule\n"
        "class Poisoned(MagnetModule):\n"
        "    def on_before_zero_grad(self, optimizer):\n"
        "        if self.global_step == 5: self.lm.heads.data[0, 0, 0] = float('inf')\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        return super().training_step(batch, batch_idx) * 0.0\n"
    )
    overlay = tmp_path / "poisoned.yaml"
    overlay.write_text("model: {class_path: poisoned.Poisoned}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    run = tmp_path / "run"
    assert trainings.fit(run, "-c", str(overlay), "--trainer.val_check_interval", "100") == 1
    assert "the weights are not finite after step 6" in capsys.readouterr().err
    assert not list(run.glob("*.ckpt"))


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_before(trainings, tmp_path, load):
    """RLIMIT_FSIZE: the kernel refuses the write, for root as well, in the call that a full disk fails in."""
    run = tmp_path / "run"
    assert trainings.fit(run, "--trainer.max_steps", "2") == 0
    size = (run / "step=0000002.ckpt").stat().st_size
    overlay = tmp_path / "limit.yaml"
    overlay.write_text("trainer: {callbacks: [{class_path: limit.Limit}]}\n")
    (tmp_path / "limit.py").write_text(
        "import resource, signal\nfrom lightning.pytorch.callbacks import Callback\n"
        "class Limit(Callback):\n"
        "    def on_train_start(self, trainer, pl_module):\n"
        "        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"        resource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2}, {size // 2}))\n"
    )
    full = trainings.start(run, "--resume", "auto", "-c", str(overlay), **path_with(tmp_path))
    assert full.wait() == 1
    (sentence,) = [line for line in full.text.splitlines() if line.startswith("magnet-train: error:")]
    assert "no room on disk" in sentence
    assert load(run / "last.ckpt")["global_step"] == 2
    assert not list(run.glob(".*"))
    assert shutil.disk_usage(run).free > size  # it was the limit
