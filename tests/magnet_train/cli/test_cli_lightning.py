"""fit, validate, test and predict through the real command line, on real shards."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from magnet_train.cli.main import main
from magnet_train.errors import UserError
from magnet_train.models import MagnetTransformer, precision

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def losses_of(run: Path, column: str = "train/loss") -> list[float]:
    with open(run / "metrics.csv") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


def test_fit_writes_a_run_that_the_other_commands_read(trainings, tmp_path, capsys):
    run = tmp_path / "run"
    assert trainings.fit(run) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert told == f"try it: magnet-train generate --model {run / 'last.ckpt'} --text '...' --out clips"
    assert {"config.yaml", "last.ckpt", "metrics.csv"} <= {p.name for p in run.iterdir()}
    assert len(losses_of(run)) == 6
    for k in range(4):
        for kind in ("loss", "perplexity", "accuracy"):
            assert len(losses_of(run, f"val/{kind}_codebook_{k}")) == 2
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    assert checkpoint["callbacks"]["DataPosition"]["slots"] == 6 * 4
    assert "current_model_state" in checkpoint

    for command in ("validate", "test", "predict"):
        words = trainings.words(command, tmp_path / "again", "--ckpt_path", str(run / "last.ckpt"))
        assert main(words) == 0
    predicted = tmp_path / "again" / "predictions"
    records = [json.loads(line) for line in (predicted / "predictions_0.jsonl").read_text().splitlines()]
    assert records
    assert all(record["key"].startswith("clip") and "flute" in record["text"] for record in records)
    assert {record["precision"] for record in records} == {"32-true"}
    for record in records:
        tokens = np.load(predicted / f"{record['slot']:06d}.npy", allow_pickle=False)
        assert (tokens.shape, tokens.dtype, tokens.min() >= 0, tokens.max() < 256) == (
            (4, 64),
            np.int16,
            True,
            True,
        )
        assert (predicted / f"{record['slot']:06d}.wav").stat().st_size > 10_000


def test_fit_without_checkpoints_names_no_earlier_model(trainings, tmp_path, capsys):
    run = tmp_path / "run"
    assert trainings.fit(run, "--trainer.max_steps", "3") == 0
    assert "try it" in capsys.readouterr().out
    off = ["--trainer.enable_checkpointing", "false"]
    assert trainings.fit(run, "--resume", "auto", *off) == 0
    assert "try it" not in capsys.readouterr().out


def test_weights_in_16_bits_measure_the_same_but_for_rounding(trainings, tmp_path, capsys):
    """Sums of losses are kept in float32 whatever the weights are in."""
    run = tmp_path / "run"
    assert trainings.fit(run) == 0
    losses = []
    for name in ("32-true", "bf16-true"):
        words = trainings.words("validate", run, "--ckpt_path", str(run / "last.ckpt"))
        capsys.readouterr()
        assert main([*words, "--trainer.precision", name]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "val/loss " in line]
        losses.append(float(line.replace("│", " ").split()[-1]))
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nSee the documentation"),
        MemoryError("Unable to allocate 20 GiB for an array"),
    ],
    ids=["torch", "numpy"],
)
def test_a_batch_that_memory_does_not_hold_is_one_sentence(trainings, tmp_path, capsys, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(MagnetTransformer, "states", fail)
    assert trainings.fit(tmp_path / "run") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("magnet-train: error: memory does not suffice (")
    assert "20 GiB" in line
    assert "halve data.batch_size" in line


def test_a_training_goes_on_where_nothing_can_be_compiled(trainings, tmp_path, monkeypatch):
    def refuse(lm):
        raise UserError("torch cannot compile here; install a C++ compiler.")

    monkeypatch.setattr(MagnetTransformer, "compile_layers", refuse)
    with pytest.warns(UserWarning, match="model.compile has no effect: torch cannot compile here"):
        assert trainings.fit(tmp_path / "run", "--model.compile", "true") == 0
    assert len(losses_of(tmp_path / "run")) == 6


def test_metrics_and_predictions_are_reported_in_full(trainings, tmp_path, capsys, caplog, recwarn):
    """36 clips of 1.28 s to train on; the run validates on four."""
    run = tmp_path / "run"
    with caplog.at_level("INFO"):
        assert trainings.fit(run) == 0
    assert "36 to train on, at most 46.1 s in a pass" in caplog.text
    for command, prefix in (("validate", "val"), ("test", "test")):
        words = trainings.words(command, run, "--ckpt_path", str(run / "last.ckpt"))
        capsys.readouterr()
        assert main(words) == 0
        lines = dict(line.split() for line in capsys.readouterr().out.splitlines()[1:])
        assert len(lines[f"{prefix}/loss"]) <= 5  # four digits
        assert f"{prefix}/by_rate/perplexity_codebook_0_masked_75_100" in lines
        assert main([*words, "--verbose", "false"]) == 0
        assert "loss" not in capsys.readouterr().out
    with caplog.at_level("INFO"):
        assert main(trainings.words("predict", run, "--ckpt_path", str(run / "last.ckpt"))) == 0
    assert f"wrote tokens and sound of 4 clips to {run / 'predictions'}" in caplog.text
    assert not [warning for warning in recwarn if "batch indices" in str(warning.message)]


def test_fixed_prompts_become_audio_in_tensorboard_and_files(trainings, tmp_path):
    run = tmp_path / "run"
    prompts = ["--model.sample_prompts", '["a calm flute on c4"]']
    # The shards claim another codec's hash, so the decoder is named.
    overlay = tmp_path / "samples.yaml"
    overlay.write_text("trainer: {callbacks: [{class_path: magnet_train.training.callbacks.SampleAudio}]}\n")
    assert trainings.fit(run, "-c", "configs/logger/tensorboard.yaml", "-c", str(overlay), *prompts) == 0
    assert sorted(p.name for p in (run / "samples").iterdir()) == ["step_0000003", "step_0000006"]
    assert (run / "samples" / "step_0000006" / "0.wav").stat().st_size > 10_000
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"audio": 0}).Reload()
    assert events.Tags()["audio"] == ["samples/0 a calm flute on c4"]
    assert "train/loss" in events.Tags()["scalars"]


def test_wandb_offline_needs_no_account(trainings, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    prompts = ["--model.sample_prompts", '["a calm flute on c4"]']
    assert trainings.fit(tmp_path, "-c", "configs/logger/wandb_offline.yaml", *prompts) == 0
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/audio/*.wav"))


def test_a_resume_is_bit_exact(trainings, tmp_path):
    steps = ["--trainer.val_check_interval", "100", "--trainer.callbacks.every_n_train_steps", "3"]
    assert trainings.fit(tmp_path / "whole", *steps) == 0
    middle = tmp_path / "whole" / "step=0000003.ckpt"
    if not middle.exists():  # save_top_k keeps the newest: make the middle one by stopping there
        stop = ["--trainer.limit_train_batches", "3", "--trainer.max_epochs", "1"]
        assert trainings.fit(tmp_path / "half", *steps, *stop) == 0
        middle = tmp_path / "half" / "last.ckpt"
    assert trainings.fit(tmp_path / "rest", *steps, "--ckpt_path", str(middle)) == 0
    assert losses_of(tmp_path / "rest") == losses_of(tmp_path / "whole")[3:]
    whole = torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)
    rest = torch.load(tmp_path / "rest" / "last.ckpt", weights_only=True)
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(tensor, rest[key][name]) for name, tensor in whole[key].items())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_every_config_goes_through_the_real_parser(config, token_shards, capsys):
    overlay = [] if config.name == "base.yaml" else ["-c", str(config)]
    with pytest.raises(SystemExit) as exit_:
        main(
            [
                "fit",
                "-c",
                str(ROOT / "configs/base.yaml"),
                *overlay,
                "--data.shards",
                str(token_shards),
                "--print_config",
            ]
        )
    assert exit_.value.code in (0, None)
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["class_path"] == "magnet_train.training.module.MagnetModule"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_overlays_are_short_and_say_what_they_are(config):
    lines = config.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert config.name in ("base.yaml", "quickstart.yaml") or len(lines) <= 15


def test_configs_are_found_from_any_folder(token_shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "-c", "configs/base.yaml", "--data.shards", str(token_shards), "--print_config"])
    assert exit_.value.code in (0, None)


def test_bad_input_is_one_sentence(trainings, tmp_path, capsys):
    def message(*options: str) -> str:
        assert trainings.fit(tmp_path / "run", *options) == 1
        lines = [
            line for line in capsys.readouterr().err.splitlines() if line.startswith("magnet-train: error:")
        ]
        assert len(lines) == 1
        return lines[0]

    assert "nothing.yaml" in message("-c", "nothing.yaml")
    assert "nothing.ckpt" in message("--ckpt_path", "nothing.ckpt")
    assert "no_shards" in message("--data.shards", str(tmp_path / "no_shards"))
    assert "decoding_steps" in message("--model.decoding.decoding_steps", "[3, 2]")
    assert "shorter than one span" in message("--data.segment_duration", "0.04")
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_unknown_key_is_wrong_usage(trainings, tmp_path, capsys):
    overlay = tmp_path / "typo.yaml"
    overlay.write_text("model:\n  init_args:\n    warm_up: 3\n")
    with pytest.raises(SystemExit) as exit_:
        trainings.fit(tmp_path / "run", "-c", str(overlay))
    assert exit_.value.code == 2
    assert re.search("warm_up", capsys.readouterr().err)


def test_a_second_run_in_a_folder_keeps_the_metrics_of_the_first(trainings, tmp_path):
    assert trainings.fit(tmp_path) == 0
    before = losses_of(tmp_path)
    longer = ["--ckpt_path", str(tmp_path / "last.ckpt"), "--trainer.max_steps", "8"]
    assert trainings.fit(tmp_path, *longer) == 0
    (tmp_path / "metrics.csv").rename(tmp_path / "second.csv")
    (tmp_path / "metrics.1.csv").rename(tmp_path / "metrics.csv")
    assert losses_of(tmp_path) == before


@pytest.mark.parametrize("name", ["bf16-true", "bf16-mixed"])
def test_predictions_in_16_bits(trainings, tmp_path, name):
    """Sampling is in float32 whatever the weights are in, and Lightning's default type is."""
    run = tmp_path / "run"
    assert trainings.fit(run) == 0
    words = trainings.words("predict", run, "--ckpt_path", str(run / "last.ckpt"))
    assert main([*words, "--trainer.precision", name]) == 0
    assert len(list((run / "predictions").glob("*.npy"))) == 4


@pytest.mark.parametrize(
    ("gain", "dim", "given", "expected"),
    [
        (3.0, 256, None, "bf16-mixed"),
        (3.0, 64, None, "32-true"),
        (0.1, 256, None, "32-true"),
        (3.0, 256, "32-true", "32-true"),
    ],
)
def test_a_cpu_trains_in_what_it_multiplies_faster(
    trainings, tmp_path, monkeypatch, caplog, gain, dim, given, expected
):
    monkeypatch.setattr(precision, "_cpu_gain", lambda: gain)
    options = ["--model.lm.dim", str(dim), "--trainer.max_steps", "1"]
    options += [] if given is None else ["--trainer.precision", given]
    with caplog.at_level("INFO"):
        assert trainings.fit(tmp_path / "run", *options) == 0
    assert f"; precision {expected}\n" in caplog.text
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["trainer"]["precision"] == expected  # so that a resume elsewhere trains in the same
