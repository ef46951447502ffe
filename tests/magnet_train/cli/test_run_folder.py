"""What a command leaves in the folder of a run, above all when it is refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest

from magnet_train.cli.main import main


def contents(folder):
    """Name and bytes of everything below a folder."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def trained(trainings, tmp_path):
    """A finished run of six steps."""
    assert trainings.fit(tmp_path / "run") == 0
    return tmp_path / "run"


@pytest.mark.parametrize("change", [("--data.seed", "3"), ("--model.lm.num_layers", "2")])
def test_a_refused_resume_leaves_the_record_of_the_run(trainings, trained, capsys, change):
    before = contents(trained)
    assert trainings.fit(trained, "--resume", "auto", "--trainer.max_steps", "8", *change) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"magnet-train: error: the checkpoint {trained}{os.sep}")
    assert ".ckpt" in error
    assert contents(trained) == before


@pytest.mark.parametrize("end", ["6", "3"])
@pytest.mark.parametrize("by", ["--resume auto", "--ckpt_path"])
def test_a_run_that_is_done_is_left_alone(trainings, trained, capsys, end, by):
    before = contents(trained)
    options = by.split() if "resume" in by else [by, str(trained / "last.ckpt")]
    capsys.readouterr()
    assert trainings.fit(trained, *options, "--trainer.max_steps", end) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert f"at step 6 of {end} already; nothing to do" in line
    assert contents(trained) == before


def test_metrics_that_were_kept_are_never_overwritten(trainings, trained):
    first = (trained / "metrics.csv").read_text()
    (trained / "metrics.2.csv").write_text("older\n")
    assert trainings.fit(trained, "--resume", "auto", "--trainer.max_steps", "7") == 0
    assert (trained / "metrics.1.csv").read_text() == first
    assert trainings.fit(trained, "--resume", "auto", "--trainer.max_steps", "8") == 0
    assert (trained / "metrics.2.csv").read_text() == "older\n"
    assert (trained / "metrics.3.csv").exists()


def test_another_runs_checkpoint_does_not_go_into_a_folder_with_checkpoints(
    trainings, trained, tmp_path, capsys
):
    other = tmp_path / "other"
    shutil.copytree(trained, other, symlinks=True)
    before = contents(other)
    longer = ("--trainer.max_steps", "7", "--ckpt_path")
    assert trainings.fit(other, *longer, str(trained / "last.ckpt")) == 1
    assert f"{other} already holds another run" in capsys.readouterr().err.splitlines()[-1]
    assert contents(other) == before
    assert trainings.fit(other, *longer, str(other / "last.ckpt")) == 0
    assert (other / "step=0000007.ckpt").exists()
    assert trainings.fit(tmp_path / "new", *longer, str(trained / "last.ckpt")) == 0


def test_the_other_commands_leave_metrics_and_configuration(trainings, trained):
    before = contents(trained)
    for command in ("validate", "test", "predict"):
        assert main(trainings.words(command, trained, "--ckpt_path", str(trained / "last.ckpt"))) == 0
    after = contents(trained)
    assert after.items() >= before.items()
    assert {"validate", "test", "predictions"} == {path.name for path in trained.iterdir() if path.is_dir()}
    assert "val/loss" in (trained / "validate" / "metrics.csv").read_text()


def test_an_impossible_folder_is_one_sentence(trainings, tmp_path, capsys):
    (tmp_path / "afile").write_text("mine")
    for run in (tmp_path / "afile", tmp_path / "afile" / "x"):
        assert trainings.fit(run) == 1
        assert "afile is a file; choose another one" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_sentence(trainings, tmp_path, capsys):
    (tmp_path / "closed").mkdir(mode=0o500)
    for run in (tmp_path / "closed", tmp_path / "closed" / "x"):
        assert trainings.fit(run) == 1
        assert "is not writable" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "options",
    [
        ("--trainer.max_steps", "0"),
        ("--model.lm.num_heads", "3"),
        ("a truncated shard",),
    ],
)
def test_a_run_that_never_began_leaves_no_folder(trainings, tmp_path, options):
    if options[0] == "a truncated shard":  # found when the data is opened, after Lightning made the folder
        shards = shutil.copytree(trainings.shards, tmp_path / "shards")
        tar = next(shards.glob("*.tar"))
        tar.write_bytes(tar.read_bytes()[:2000])
        options = ("--data.shards", str(shards))
    assert trainings.fit(tmp_path / "runs" / "x", *options) == 1
    assert not (tmp_path / "runs").exists()


INTERRUPT = """
import os, signal, sys
from magnet_train.training.module import MagnetModule

class Interrupted(MagnetModule):
    def training_step(self, batch, batch_idx):
        if self.global_step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return super().training_step(batch, batch_idx)
"""


@pytest.mark.parametrize("every", ["3", "100"])
def test_ctrl_c_reports_the_step_and_how_to_continue(trainings, tmp_path, every):
    (tmp_path / "interrupted.py").write_text(INTERRUPT)
    (tmp_path / "model.yaml").write_text("model: {class_path: interrupted.Interrupted}\n")
    run = tmp_path / "run"
    options = ("-c", str(tmp_path / "model.yaml"), "--trainer.callbacks.every_n_train_steps", every)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, "-m", "magnet_train", *trainings.words("fit", run, *options)],
        env=os.environ | {"PYTHONPATH": path},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 130
    line = ended.stderr.splitlines()[-1]
    assert line.startswith("magnet-train: interrupted after step 4; ")
    assert "Traceback" not in ended.stderr
    assert "graceful" not in ended.stderr
    saved = f"{run / 'step=0000003.ckpt'} is the newest checkpoint, and --resume auto continues from it."
    assert line.endswith(
        saved if every == "3" else "nothing was saved yet; start it again with the same command."
    )
