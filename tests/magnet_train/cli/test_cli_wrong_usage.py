"""Wrong options and values: one sentence that names the key and the nearest valid ones, exit code 2."""

from __future__ import annotations

import pytest

from magnet_train.cli.main import main
from magnet_train.cli.wrong_usage import one_sentence

BASE = ("-c", "configs/base.yaml", "-c", "configs/quickstart.yaml")


@pytest.mark.parametrize(
    ("overlay", "words"),
    [
        ("model: {init_args: {warm_up: 3}}", ["model takes no 'warm_up'", "MagnetModule", "warmup_steps"]),
        ("modle: {init_args: {warmup_steps: 3}}", ["'modle.init_args.warmup_steps'", "the nearest is model"]),
        ("trainer: {max_step: 3}", ["'trainer.max_step'", "trainer.max_steps"]),
        ("data: {init_args: {batchsize: 3}}", ["data takes no 'batchsize'", "batch_size"]),
        ("model: {init_args: {lm: {init_args: {dims: 3}}}}", ["model.lm takes no 'dims'", "dim"]),
        (
            "model: {init_args: {optimizer: {init_args: {rate: 3}}}}",
            ["model.optimizer takes no 'rate'", "lr"],
        ),
        (
            "trainer: {logger: {init_args: {flush: 3}}}",
            ["trainer.logger takes no 'flush'", "flush_logs_every_n_steps"],
        ),
        ("trainer: {callbacks: [{class_path: nowhere.X}]}", ["trainer.callbacks", "nowhere.X", "No module"]),
        ("data: {init_args: {batch_size: many}}", ["data.batch_size is 'many'", "expected int"]),
        ("resume: always", ["resume is 'always'", "'never', 'auto', 'required'"]),
    ],
)
def test_a_wrong_key_or_value_in_yaml(overlay, words, tmp_path, capsys):
    (tmp_path / "wrong.yaml").write_text(overlay + "\n")
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *BASE, "-c", str(tmp_path / "wrong.yaml")])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("magnet-train: error: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_wrong_option(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, *BASE, "--data.batchsize", "3"])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "batch_size" in line
    with pytest.raises(SystemExit) as exit_:
        main([command, *BASE, "--ckpt_pth", "x"])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'--ckpt_pth'; the nearest is ckpt_path" in line


def test_a_broken_file_is_named(tmp_path, capsys):
    (tmp_path / "broken.yaml").write_text("data: {init_args: [1\n")
    assert main(["fit", *BASE, "-c", str(tmp_path / "broken.yaml")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "broken.yaml is not valid YAML" in line
    assert "line 1" in line


def test_an_unknown_message_stays_readable():
    assert one_sentence("a\n  b\n" + "c" * 1000) == "a b " + "c" * 396 + "..."
