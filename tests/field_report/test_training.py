"""Cases of the field report about training, validation, checkpoints and the folder of a run: real runs of `fit`."""

from __future__ import annotations

import csv
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from datamodules import StreamingDataModule, TokenDataModule
from harness.shard_writer import ShardWriter
from magnet_train.cli.folder_lock import LOCK, folder_lock
from magnet_train.cli.main import main
from magnet_train.cli.ranks import is_first_process
from magnet_train.errors import UserError
from magnet_train.masking import stratified_stages
from magnet_train.tokens import CodecInfo
from magnet_train.training.checkpointing import checkpoints_of

CODEC = CodecInfo("quickstart", "0" * 64, 8000, 1, 50.0, n_q=4, card=256)
OPTIONS = (
    *("-c", "configs/base.yaml", "-c", "configs/quickstart.yaml", "-c", "configs/trainer/cpu.yaml"),
    *("--data.batch_size", "4", "--model.lm.dim", "32", "--model.lm.num_layers", "1"),
    *("--trainer.max_steps", "6", "--trainer.val_check_interval", "3", "--trainer.log_every_n_steps", "1"),
    *("--trainer.enable_progress_bar", "false", "--model.warmup_steps", "2"),
)
EVERY_3 = ("--trainer.callbacks.every_n_train_steps", "3")
Fit = Callable[..., int]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty captioned clips of random tokens in several shards."""
    folder = tmp_path_factory.mktemp("shards") / "shards"
    rng = np.random.default_rng(0)
    with ShardWriter(folder, CODEC, shard_bytes=25_000) as writer:
        for index in range(40):
            tokens = rng.integers(0, 256, (4, 64 + index)).astype(np.int16)
            writer.add(f"clip{index:03d}", tokens, {"text": f"a {['calm', 'fast'][index % 2]} flute on c4"})
    return folder


@pytest.fixture
def fit(shards: Path) -> Fit:
    """Return a function that trains in this process."""
    return lambda run, *options: main(
        ["fit", *OPTIONS, "--data.shards", str(shards), "--run", str(run), *options]
    )


@pytest.fixture
def plugged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that makes a module `plugged_<test>` of some code and returns the folder for overlays."""

    def write(code: str) -> Path:
        (tmp_path / "plugged.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "plugged", raising=False)
        return tmp_path

    return write


def column(path: Path, name: str) -> dict[int, str]:
    """Read a column of a metrics file: step -> text."""
    with path.open() as file:
        return {int(row["step"]): row[name] for row in csv.DictReader(file) if row.get(name)}


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Name and bytes of everything below a folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def only(run: Path, name: str, target: Path) -> Path:
    """Make a folder as a crash right after that checkpoint would have left it."""
    target.mkdir()
    shutil.copy(run / name, target)
    return target


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the last line of stderr, which is the error."""
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("magnet-train: error: ")
    return line


# Two runs in one folder


@pytest.mark.case("A8")
def test_a_second_fit_in_a_folder_names_the_first(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with folder_lock(run, "fit", "--run"):
        assert fit(run) == 1
        assert [path.name for path in run.iterdir()] == [LOCK]
    line = sentence(capsys)
    assert f"{run} is in use by another fit (process {os.getpid()} on {socket.gethostname()} since " in line
    assert not run.exists()  # neither began
    run.mkdir()
    (run / LOCK).write_text("process 1 on a machine that lost its power")  # nobody holds it
    assert fit(run, *EVERY_3) == 0
    assert not (run / LOCK).exists()
    assert fit(run, "--resume", "auto", "--trainer.max_steps", "7") == 0


def test_a_lock_dies_with_its_process_and_not_with_the_last_worker(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from magnet_train.cli.folder_lock import folder_lock\n"
        "with folder_lock(Path(sys.argv[1]), 'fit', '--run'):\n"
        "    worker = os.fork()\n"
        "    if worker: print(worker, flush=True)\n"
        "    time.sleep(100)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    worker = int(owner.stdout.readline())
    try:
        with (
            pytest.raises(UserError, match=f"process {owner.pid} on"),
            folder_lock(tmp_path / "run", "fit", "--run"),
        ):
            pass
        owner.kill()
        owner.wait()
        assert (tmp_path / "run" / LOCK).exists()
        with folder_lock(tmp_path / "run", "fit", "--run"):
            pass
    finally:
        owner.kill()
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, False),  # a child of Lightning's
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True),  # torchrun
        ({"RANK": "8", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),  # Lightning's own launcher on a second machine
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "0"}, False),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),  # Lightning's launcher within one task of a job
    ],
)
def test_one_process_of_a_run_takes_the_lock(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], first: bool
) -> None:
    for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() == first


@pytest.mark.case("B24")
@pytest.mark.parametrize("name", ["", " ", ".", "./", "x/.."])
def test_the_current_folder_cannot_be_a_run(
    fit: Fit, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    assert fit(name) == 1
    assert "is not a folder of its own" in sentence(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


# What a resume goes on from, and says


@pytest.mark.case("A10")
def test_a_resume_with_another_clip_length_reports_it(
    fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And with whatever else decides what is learned of a clip."""
    run = tmp_path / "run"
    assert fit(run) == 0
    more = ("--resume", "auto", "--trainer.max_steps")
    with caplog.at_level("INFO"):
        assert fit(run, *more, "7") == 0
        assert caplog.text.count("it was") == caplog.text.count("max_steps 7; it was 6") == 1
        changes = ("--data.segment_duration", "1.0", "--model.cfg_dropout", "0.5")
        weights = ("--model.stage_weights", "[1, 1, 1, 1]", "--trainer.gradient_clip_val", "0.5")
        captions = ("--data.captions", "{drop_word: 0.5}")
        assert fit(run, *more, "8", *changes, *weights, *captions) == 0
    assert "segment_duration 1.0; it was 1.28" in caplog.text
    assert "cfg_dropout 0.5; it was 0.1" in caplog.text
    assert "stage_weights [1.0, 1.0, 1.0, 1.0]; it was [0.3, 0.4, 0.15, 0.15]" in caplog.text
    assert "gradient_clip_val 0.5; it was 1.0" in caplog.text
    assert "it was None" in caplog.text  # captions


@pytest.mark.case("A12")
def test_resume_chooses_by_step_and_not_by_the_time_of_a_file(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, copy = tmp_path / "run", tmp_path / "copy"
    assert fit(run, *EVERY_3) == 0
    copy.mkdir()
    later = copy / "step=0000006.ckpt"
    for name in ("step=0000006.ckpt", "step=0000003.ckpt"):
        shutil.copy(run / name, copy)
    os.utime(later, (0, 0))
    shutil.copy(run / "step=0000003.ckpt", copy / "step=0000009.ckpt")  # what is within counts
    assert checkpoints_of(copy)[0] == later
    capsys.readouterr()
    assert fit(copy, "--resume", "auto", "--trainer.max_steps", "7") == 0
    assert f"resuming from {later}" in capsys.readouterr().out


def test_the_newest_two_are_kept_and_the_older_one_stands_in_for_a_damaged_one(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert fit(run, "--trainer.callbacks.every_n_train_steps", "2") == 0
    steps = sorted(path.name for path in run.glob("step=*.ckpt"))
    assert steps == ["step=0000004.ckpt", "step=0000006.ckpt"]
    newest = run / steps[1]
    newest.write_bytes(newest.read_bytes()[:-1000])
    capsys.readouterr()
    more = ("--resume", "auto", "--trainer.callbacks.every_n_train_steps", "2")
    assert fit(run, *more, "--trainer.max_steps", "8") == 0
    out = capsys.readouterr().out
    assert f"skipped: {newest} cannot be read" in out
    assert f"resuming from {run / steps[0]}" in out
    assert {path.name for path in run.glob("*=*.ckpt")} == {
        *steps,
        "step=0000008.ckpt",
    }  # and what it began with
    assert torch.load(newest, weights_only=True)["global_step"] == 6  # written again, whole


@pytest.mark.case("A13")
@pytest.mark.parametrize("parts", ["1", "2"])
def test_a_validation_that_was_due_is_done_after_the_resume(fit: Fit, tmp_path: Path, parts: str) -> None:
    """The crash comes between the checkpoint of step 3 and the validation of step 3."""
    options = (
        "--trainer.accumulate_grad_batches",
        parts,
        "--trainer.val_check_interval",
        str(3 * int(parts)),
    )
    whole = tmp_path / "whole"
    assert fit(whole, *EVERY_3, *options) == 0
    cut = only(whole, "step=0000003.ckpt", tmp_path / "cut")
    assert fit(cut, *EVERY_3, *options, "--resume", "required") == 0
    for name in ("val/loss", "train/loss", "data/slots"):
        expected = column(whole / "metrics.csv", name)
        rest = {step: value for step, value in expected.items() if name == "val/loss" or step >= 3}
        assert column(cut / "metrics.csv", name) == rest
    first, second = (torch.load(run / "last.ckpt", weights_only=True) for run in (whole, cut))
    for part in ("state_dict", "current_model_state"):
        assert all(torch.equal(tensor, second[part][name]) for name, tensor in first[part].items())


def test_a_validation_that_was_due_at_the_last_step_is_done_after_the_resume(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The crash comes between the checkpoint of the last step and its validation."""
    whole = tmp_path / "whole"
    assert fit(whole, *EVERY_3) == 0
    expected = column(whole / "metrics.csv", "val/loss")
    cut = only(whole, "step=0000006.ckpt", tmp_path / "cut")
    capsys.readouterr()
    assert fit(cut, *EVERY_3, "--resume", "auto") == 0
    assert "nothing to do" not in capsys.readouterr().out
    assert column(cut / "metrics.csv", "val/loss") == dict(list(expected.items())[-1:])
    assert not column(cut / "metrics.csv", "train/loss")
    assert (cut / "step=0000006.ckpt").read_bytes() == (whole / "step=0000006.ckpt").read_bytes()
    for run in (whole, cut):
        before = contents(run)
        assert fit(run, *EVERY_3, "--resume", "auto") == 0
        assert "at step 6 of 6 already; nothing to do" in capsys.readouterr().out
        assert contents(run) == before
    never = only(whole, "step=0000006.ckpt", tmp_path / "never")
    assert fit(never, *EVERY_3, "--resume", "auto", "--trainer.limit_val_batches", "0") == 0
    assert [path.name for path in never.glob("*.ckpt")] == ["step=0000006.ckpt"]  # no step was made


OTHER_TEXT = "model: {init_args: {text: {class_path: magnet_train.text.NoText}, cfg_dropout: 0.0}}\n"


@pytest.mark.case("A25")
@pytest.mark.parametrize("logger", ["csv", "tensorboard"])
def test_a_refused_resume_changes_nothing(
    fit: Fit, tmp_path: Path, logger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    loggers = ("-c", f"configs/logger/{logger}.yaml")
    assert fit(run, *loggers) == 0
    (tmp_path / "text.yaml").write_text(OTHER_TEXT)
    before = contents(run)
    more = ("--resume", "auto", "--trainer.max_steps", "8", *loggers)
    for change in (("--data.seed", "3"), ("--model.lm.num_layers", "2"), ("-c", str(tmp_path / "text.yaml"))):
        assert fit(run, *more, *change) == 1
        assert "the checkpoint" in sentence(capsys)
        assert contents(run) == before, change


# What a batch holds, and whose weights a validation hears


def batches_of(data: Any, steps: int) -> list[torch.Tensor]:
    loader = iter(data.train_dataloader())
    return [next(loader)["slot"] for _ in range(steps)]


@pytest.mark.case("A17")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", [TokenDataModule, StreamingDataModule])
def test_every_batch_holds_every_codebook(kind: Any, ranks: int, workers: int, shards: Path) -> None:
    """Rank by rank with real workers; two batches of each worker."""
    seen: list[int] = []
    for rank in range(ranks):
        data = kind(shards, segment_duration=1.0, batch_size=8, num_workers=workers)
        callbacks = [__import__("datamodules").DataPosition()]
        data.trainer = SimpleNamespace(global_rank=rank, world_size=ranks, callbacks=callbacks)
        data.setup("fit")
        for slots in batches_of(data, 2 * workers):
            stages = stratified_stages(slots, [1.0] * 4)
            assert stages.bincount(minlength=4).tolist() == [2, 2, 2, 2]
            seen += slots.tolist()
    assert sorted(seen) == list(range(8 * 2 * workers * ranks))  # each slot once


HEARD = """
import torch
from magnet_train.training.module import MagnetModule

class Heard(MagnetModule):
    def sample(self, texts, *arguments, **names):
        torch.save(self.lm.heads.detach().clone(), f"{self.trainer.default_root_dir}/heard_{self.global_step}.pt")
        return super().sample(texts, *arguments, **names)
"""


@pytest.mark.case("A18")
def test_validation_samples_are_of_the_averaged_weights(
    fit: Fit, tmp_path: Path, plugged_in: Callable[[str], Path]
) -> None:
    (plugged_in(HEARD) / "heard.yaml").write_text("model: {class_path: plugged.Heard}\n")
    run = tmp_path / "run"
    prompts = ("--model.sample_prompts", '["a calm flute on c4"]')
    assert fit(run, "-c", str(tmp_path / "heard.yaml"), *EVERY_3, *prompts) == 0
    assert (run / "samples" / "step_0000006" / "0.wav").exists()
    for step in (3, 6):
        stored = torch.load(run / f"step={step:07d}.ckpt", weights_only=True)
        heard = torch.load(run / f"heard_{step}.pt", weights_only=True)
        assert torch.equal(heard, stored["state_dict"]["lm.heads"])
        assert not torch.equal(heard, stored["current_model_state"]["lm.heads"])


# The disk under a run


BREAK = """
import resource, shutil
from lightning.pytorch.callbacks import Callback

class Break(Callback):
    def __init__(self, how: str) -> None:
        self.how = how
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 2:
            if self.how == "deleted":
                shutil.rmtree(trainer.default_root_dir)
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(self.how), resource.RLIM_INFINITY))
"""
SELDOM = ("--trainer.log_every_n_steps", "100")
PROMPTS = ("--model.sample_prompts", '["a calm flute on c4"]')


@contextmanager
def unlimited_after() -> Iterator[None]:
    """Take the limit on the size of files back, before pytest writes the result into a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.case("B16")
@pytest.mark.parametrize(
    ("how", "options", "words"),
    [
        ("10", (), "no room on disk for"),  # metrics.csv
        ("10", ("-c", "configs/logger/tensorboard.yaml"), "no room on disk for"),
        ("10", (*SELDOM, *EVERY_3, "--trainer.val_check_interval", "100"), "step=0000003.ckpt"),
        ("10", (*SELDOM, *PROMPTS), "no room on disk for"),  # the sound, or what notices it first
        (
            "10300",
            (*SELDOM, *PROMPTS),
            "no room on disk",
        ),  # after the sound, before the picture or the metrics
        ("deleted", (), "was deleted"),
        ("deleted", ("-c", "configs/logger/tensorboard.yaml"), "was deleted"),
        ("deleted", (*SELDOM, *EVERY_3), "was deleted"),
        ("deleted", (*SELDOM, *PROMPTS), "was deleted"),
    ],
)
def test_a_full_disk_or_a_lost_folder_is_one_sentence(
    fit: Fit,
    tmp_path: Path,
    plugged_in: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    how: str,
    options: tuple[str, ...],
    words: str,
) -> None:
    """RLIMIT_FSIZE: the kernel refuses the write in the call that a full disk fails in, for root as well."""
    plugged_in(BREAK)
    breaking = f"{{class_path: plugged.Break, init_args: {{how: '{how}'}}}}"
    with unlimited_after():
        code = fit(tmp_path / "run", *options, "--trainer.callbacks+", breaking)
    assert code == 1
    assert words in sentence(capsys)
    assert not (tmp_path / "run").exists() or how != "deleted"


SHARDED = """
trainer:
  devices: 2
  strategy:
    class_path: lightning.pytorch.strategies.{kind}
    init_args: {{{option}}}
"""


@pytest.mark.case("B17")
@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("ModelParallelStrategy", "data_parallel_size: 2, save_distributed_checkpoint: true"),
        ("ModelParallelStrategy", "data_parallel_size: 2"),  # Lightning's default
    ],
)
def test_checkpoints_that_nothing_reads_are_refused_at_the_start(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, option: str
) -> None:
    (tmp_path / "sharded.yaml").write_text(SHARDED.format(kind=kind, option=option))
    assert fit(tmp_path / "run", "-c", str(tmp_path / "sharded.yaml")) == 1
    assert "set save_distributed_checkpoint: false" in sentence(capsys)
    assert not (tmp_path / "run").exists()


# Metrics of the last step


STOP = """
import os, signal
from lightning.pytorch.callbacks import Callback

class Stop(Callback):
    def __init__(self, how: str) -> None:
        self.how = how
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3 and self.how == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 4:
            trainer.should_stop = self.how == "early"
            if self.how == "crash":
                raise RuntimeError("crash")
"""


@pytest.mark.parametrize(("how", "code"), [("none", 0), ("early", 0), ("signal", 75), ("crash", None)])
def test_the_metrics_of_the_last_step_are_there(
    fit: Fit, tmp_path: Path, plugged_in: Callable[[str], Path], how: str, code: int | None
) -> None:
    plugged_in(STOP)
    stopping = f"{{class_path: plugged.Stop, init_args: {{how: '{how}'}}}}"
    run = tmp_path / "run"
    options = ("--trainer.callbacks+", stopping)
    if code is None:
        with pytest.raises(RuntimeError, match="crash"):
            fit(run, *options)
    else:
        assert fit(run, *options) == code
    steps = 6 if how == "none" else 4
    assert sorted(column(run / "metrics.csv", "train/loss")) == list(range(steps))
    expected = {step: f"{4.0 * (step + 1)}" for step in range(steps)}
    if how == "crash":
        del expected[3]  # the callback that logs it was not called, and no older value stands in its row
    assert column(run / "metrics.csv", "data/slots") == expected


CUT = """
import os, signal
from lightning.pytorch.callbacks import Callback

class Cut(Callback):
    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        os.kill(os.getpid(), signal.SIGTERM)
    def on_validation_epoch_end(self, trainer, pl_module):
        raise AssertionError("the validation did not end")
"""


def test_a_stop_in_a_validation_saves_both_kinds_of_weights(
    fit: Fit, tmp_path: Path, plugged_in: Callable[[str], Path]
) -> None:
    """The checkpoint holds raw and averaged weights, each in its place."""
    plugged_in(CUT)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert fit(whole, *EVERY_3) == 0
    assert fit(cut, "--trainer.callbacks+", "plugged.Cut") == 75
    first = torch.load(whole / "step=0000003.ckpt", weights_only=True)
    second = torch.load(cut / "stopped_step=0000003.ckpt", weights_only=True)
    for part in ("state_dict", "current_model_state"):
        assert all(torch.equal(tensor, second[part][name]) for name, tensor in first[part].items())
