"""`fit --resume`: which checkpoint it takes, what it refuses, and that the resumed run is the same run."""

from __future__ import annotations

import re
import shutil

import pytest
import torch

from magnet_train.cli.main import main

EVERY_3 = ("--trainer.callbacks.every_n_train_steps", "3")


def only_step(run, step):
    """Leave one checkpoint in the folder, as a kill after it was written would have."""
    for path in run.glob("*.ckpt"):
        if path.name != f"step={step:07d}.ckpt":
            path.unlink()
    assert (run / f"step={step:07d}.ckpt").exists()


def assert_same_weights(load, one, other):
    first, second = load(one), load(other)
    assert first["global_step"] == second["global_step"]
    for part in ("state_dict", "current_model_state"):
        assert first[part].keys() == second[part].keys()
        assert all(torch.equal(tensor, second[part][name]) for name, tensor in first[part].items())
    for a, b in zip(first["optimizer_states"], second["optimizer_states"], strict=True):
        assert a["param_groups"] == b["param_groups"]
        for number, state in a["state"].items():
            assert all(torch.equal(value, b["state"][number][name]) for name, value in state.items())
    assert first["lr_schedulers"] == second["lr_schedulers"]
    assert first["averaging_state"] == second["averaging_state"]
    assert first["callbacks"]["DataPosition"] == second["callbacks"]["DataPosition"]


def test_last_points_to_the_end_of_the_run(trainings, tmp_path, load):
    run = tmp_path / "run"
    assert trainings.fit(run, "--trainer.callbacks.every_n_train_steps", "4") == 0
    assert (run / "last.ckpt").resolve().name == "step=0000006.ckpt"
    assert load(run / "last.ckpt")["global_step"] == 6
    assert not list(run.glob(".*"))


def test_a_folder_with_a_run_is_not_overwritten(trainings, tmp_path, capsys):
    run = tmp_path / "run"
    assert trainings.fit(run) == 0
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    assert trainings.fit(run) == 1
    assert "--resume auto" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == before


def test_required_fails_and_auto_starts_where_there_is_nothing(trainings, tmp_path, capsys):
    run = tmp_path / "run"
    assert trainings.fit(run, "--resume", "required") == 1
    assert "no checkpoint" in capsys.readouterr().err
    assert trainings.fit(run, "--resume", "auto") == 0
    assert "starting a new run" in capsys.readouterr().out


def test_auto_skips_a_damaged_checkpoint_and_names_it(trainings, tmp_path, capsys, load):
    run = tmp_path / "run"
    assert trainings.fit(run, *EVERY_3, "--trainer.callbacks.save_top_k", "-1") == 0
    newest = run / "step=0000006.ckpt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1  # one bit of a weight: torch loads it without a word
    newest.write_bytes(content)
    capsys.readouterr()
    assert trainings.fit(run, "--resume", "required", "--trainer.max_steps", "8") == 0
    out = capsys.readouterr().out
    assert f"skipped: {newest} cannot be read (its part" in out
    assert f"resuming from {run / 'step=0000003.ckpt'}" in out
    assert load(run / "last.ckpt")["global_step"] == 8


def test_unreadable_checkpoints_do_not_start_a_new_run(trainings, tmp_path, capsys):
    run = tmp_path / "run"
    assert trainings.fit(run) == 0
    for path in run.glob("step*.ckpt"):
        path.write_bytes(path.read_bytes()[:1000])
    assert trainings.fit(run, "--resume", "auto") == 1
    assert "none of the checkpoints" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["fit", "validate", "predict"])
def test_a_damaged_file_named_exactly_is_one_sentence(trainings, tmp_path, capsys, command):
    (tmp_path / "bad.ckpt").write_bytes(b"no checkpoint")
    words = trainings.words(command, tmp_path / "run")
    assert main([*words, "--ckpt_path", str(tmp_path / "bad.ckpt")]) == 1
    assert "bad.ckpt" in capsys.readouterr().err.splitlines()[-1]
    assert main([*words, "--ckpt_path", str(tmp_path / "bad.ckpt"), "--resume", "auto"]) == 1
    assert "give one of the two" in capsys.readouterr().err.splitlines()[-1]
    if command != "fit":
        assert main(words) == 1
        assert "--ckpt_path" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("monitor", [False, True], ids=["at a step", "after validation"])
def test_resume_is_bit_equal(trainings, tmp_path, load, column, accumulate, monitor):
    """`monitor` saves in on_validation_end, the other in on_train_batch_end; both with a validation every 3 steps."""
    options = ["--trainer.accumulate_grad_batches", str(accumulate), "--trainer.callbacks.save_top_k", "-1"]
    options += ["--trainer.val_check_interval", str(3 * accumulate)]
    options += ["--trainer.callbacks.monitor", "val/loss"] if monitor else []
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert trainings.fit(whole, *EVERY_3, *options) == 0
    shutil.copytree(whole, cut)
    only_step(cut, 3)
    assert trainings.fit(cut, *EVERY_3, *options, "--resume", "required") == 0
    assert_same_weights(load, whole / "step=0000006.ckpt", cut / "step=0000006.ckpt")
    for name in ("train/loss", "val/loss"):
        assert column(cut, name) == column(whole, name)


def test_a_checkpoint_in_the_middle_of_an_accumulation_repeats_it(
    trainings, tmp_path, load, column, monkeypatch
):
    """Saved by the clock after 2 of the 3 batches of a step."""
    accumulate = ("--trainer.accumulate_grad_batches", "3", "--trainer.val_check_interval", "100")
    overlay = tmp_path / "save.yaml"
    overlay.write_text("trainer: {callbacks: [{class_path: saving.SaveAtBatch, init_args: {batch: 7}}]}\n")
    (tmp_path / "saving.py").write_text(
        "from lightning.pytorch.callbacks import Checkpoint\n"
        "class SaveAtBatch(Checkpoint):\n"
        "    def __init__(self, batch: int) -> None:\n"
        "        self.batch = batch\n"
        "    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):\n"
        "        if batch_idx == self.batch:\n"
        "            trainer.save_checkpoint(trainer.default_root_dir + '/middle.ckpt')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    options = [
        "-c",
        str(overlay),
        "--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging",
        *accumulate,
    ]
    assert trainings.fit(whole, *options) == 0
    middle = whole / "middle.ckpt"
    assert load(middle)["global_step"] == 2
    assert trainings.fit(rest, *options, "--ckpt_path", str(middle)) == 0
    assert_same_weights(load, whole / "step=0000006.ckpt", rest / "step=0000006.ckpt")
    expected = {step: loss for step, loss in column(whole, "train/loss").items() if step >= 2}
    assert column(rest, "train/loss") == expected


def test_the_configuration_overrides_the_checkpoint(trainings, tmp_path, load, capsys, caplog):
    run = tmp_path / "run"
    lr = ("--model.optimizer.lr", "0.004", "--model.optimizer.weight_decay", "0.5")
    assert trainings.fit(run, *EVERY_3) == 0
    with caplog.at_level("INFO"):
        assert trainings.fit(run, "--resume", "auto", "--trainer.max_steps", "8", *lr) == 0
    resumed = load(run / "last.ckpt")
    (group,) = resumed["optimizer_states"][0]["param_groups"]
    assert resumed["global_step"] == 8
    assert group["initial_lr"] == 0.004
    assert group["weight_decay"] == 0.5
    assert resumed["lr_schedulers"][0]["base_lrs"] == [0.004]
    assert "lr 0.004; it was 0.002" in caplog.text
    assert "max_steps 8; it was 6" in caplog.text
    assert "clips of a step" not in caplog.text


def test_another_optimizer_is_refused_in_one_sentence(trainings, tmp_path, monkeypatch, capsys, caplog):
    (tmp_path / "own_optim.py").write_text(
        "import torch\n"
        "from magnet_train.training.optim import WarmupCosine\n"
        "class Grouped(torch.optim.AdamW):\n"
        "    def __init__(self, named, lr: float = 0.002):\n"
        "        named = list(named)\n"
        "        wide, rest = ([p for _, p in named if (p.ndim > 1) is wide] for wide in (True, False))\n"
        "        super().__init__([{'params': wide}, {'params': rest}], lr=lr)\n"
        "class Schedule(WarmupCosine):\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    run = tmp_path / "run"
    assert trainings.fit(run) == 0
    before = sorted(path.name for path in run.iterdir())
    resume = ("--resume", "auto", "--trainer.max_steps", "8", "--model.optimizer")
    for other in ("torch.optim.SGD", "own_optim.Grouped"):
        capsys.readouterr()
        assert trainings.fit(run, *resume, other, "--model.optimizer.lr", "0.1") == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert re.search(r"last\.ckpt|step=0000006\.ckpt", error)
        assert f"optimizer AdamW and this run has {other.rpartition('.')[2]}" in error
        assert "--init_from" in error
        assert sorted(path.name for path in run.iterdir()) == before
    options = ("--model.schedule", "own_optim.Schedule", "--model.warmup_steps", "3")
    with caplog.at_level("INFO"):
        assert trainings.fit(run, *resume[:-1], *options) == 0
    assert "schedule Schedule; it was WarmupCosine" in caplog.text
    assert "warmup_steps 3; it was 2" in caplog.text


@pytest.mark.parametrize("accumulate", [1, 2])
def test_another_number_of_clips_in_a_step_is_reported_and_skips_none(
    trainings, tmp_path, load, caplog, accumulate
):
    run = tmp_path / "run"
    assert trainings.fit(run) == 0
    options = ("--data.batch_size", "2", "--trainer.accumulate_grad_batches", str(accumulate))
    with caplog.at_level("INFO"):
        assert trainings.fit(run, "--resume", "auto", "--trainer.max_steps", "8", *options) == 0
    assert ("clips of a step 2; it was 4" in caplog.text) == (accumulate == 1)
    assert load(run / "last.ckpt")["callbacks"]["DataPosition"]["slots"] == 6 * 4 + 2 * 2 * accumulate


def test_hyper_parameters_in_a_checkpoint_change_nothing(trainings, tmp_path, monkeypatch, load):
    (tmp_path / "keeping.py").write_text(
        "from magnet_train.training.module import MagnetModule\n"
        "class Keeping(MagnetModule):\n"
        "    def on_save_checkpoint(self, checkpoint):\n"
        "        super().on_save_checkpoint(checkpoint)\n"
        "        checkpoint['hyper_parameters'] = {'_class_path': 'keeping.Keeping', 'cfg_dropout': 0.9}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    run = tmp_path / "run"
    overlay = tmp_path / "model.yaml"
    overlay.write_text("model: {class_path: keeping.Keeping}\n")
    assert trainings.fit(run, "-c", str(overlay)) == 0
    options = ("--model.cfg_dropout", "0.25", "--trainer.max_steps", "7")
    assert trainings.fit(run, "-c", str(overlay), *options, "--ckpt_path", str(run / "last.ckpt")) == 0
    assert "cfg_dropout: 0.25" in (run / "config.yaml").read_text()


def test_dropout_resumes_exactly(trainings, tmp_path, load, column, monkeypatch):
    """Randomness of torch itself follows from the step."""
    (tmp_path / "dropping.py").write_text(
        "import torch\n"
        "from magnet_train.training.module import MagnetModule\n"
        "class Dropping(MagnetModule):\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        return super().training_step(batch, batch_idx) * (0.5 + torch.rand(()))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    overlay = tmp_path / "model.yaml"
    overlay.write_text("model: {class_path: dropping.Dropping}\n")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert trainings.fit(whole, "-c", str(overlay), *EVERY_3, "--trainer.callbacks.save_top_k", "-1") == 0
    shutil.copytree(whole, cut)
    only_step(cut, 3)
    assert trainings.fit(cut, "-c", str(overlay), *EVERY_3, "--resume", "auto") == 0
    assert_same_weights(load, whole / "step=0000006.ckpt", cut / "step=0000006.ckpt")
    assert len(column(whole, "train/loss")) == 6
