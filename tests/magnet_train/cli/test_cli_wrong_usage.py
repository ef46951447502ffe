"""Wrong options and values: one sentence that names the key and the nearest valid ones, exit code 2."""

from __future__ import annotations

import pytest
import torch

from magnet_train.cli.fit.parser import one_sentence
from magnet_train.cli.main import main

BASE = ("-c", "configs/base.yaml", "-c", "configs/quickstart.yaml")


@pytest.mark.parametrize(
    ("overlay", "words"),
    [
        (
            "model: {init_args: {warm_up: 3}}",
            ["model has no option 'warm_up'", "MagnetModule", "warmup_steps"],
        ),
        ("modle: {init_args: {warmup_steps: 3}}", ["'modle.init_args.warmup_steps'", "the nearest is model"]),
        ("trainer: {max_step: 3}", ["'trainer.max_step'", "trainer.max_steps"]),
        ("data: {init_args: {batchsize: 3}}", ["data has no option 'batchsize'", "batch_size"]),
        ("model: {init_args: {lm: {init_args: {dims: 3}}}}", ["model.lm has no option 'dims'", "dim"]),
        (
            "model: {init_args: {optimizer: {init_args: {rate: 3}}}}",
            ["model.optimizer has no option 'rate'", "lr"],
        ),
        (
            "trainer: {logger: {init_args: {flush: 3}}}",
            ["trainer.logger has no option 'flush'", "flush_logs_every_n_steps"],
        ),
        (
            "trainer: {callbacks: [{class_path: nowhere.X}]}",
            ["trainer.callbacks: no module named 'nowhere'", "nowhere.X"],
        ),
        ("data: {init_args: {batch_size: many}}", ["data.batch_size: expected int (given 'many')"]),
        ("resume: always", ["resume: expected one of 'never', 'auto', 'required' (given 'always')"]),
        (
            "model: {init_args: {schedule: {class_path: torch.optim.lr_scheduler.OneCycleLR}}}",
            ["model.schedule: expected 'torch.optim.lr_scheduler.OneCycleLR' to be a subclass of LambdaLR."],
        ),
        (
            "model: {init_args: {optimizer: torch.nn.functional.relu}}",
            [
                "model.optimizer: expected 'torch.nn.functional.relu' to be a function that returns Optimizer (given"
            ],
        ),
        ("rank_timeout: -1", ["rank_timeout: expected a number v>0", "(given '-1')"]),
        (
            "trainer: {precision: fp16}",
            ["trainer.precision: expected int or one of ", "'bf16-mixed'", "(given 'fp16')"],
        ),
        (
            "trainer: {logger: Foo}",
            ["trainer.logger: expected a dot import path string: Foo or", "null (given 'Foo')."],
        ),
        (
            "model: {init_args: {text: {class_path: magnet_train.text.ClassLabels}}}",
            ["model.text (magnet_train.text.ClassLabels) needs labels; set model.text.labels."],
        ),
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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "the configuration is incomplete"),
        (["--data.shards", "shards"], "the configuration is incomplete"),
        (["--run", "x"], "the configuration is incomplete"),
        (["--model.cfg_dropout", "0.1"], "the configuration is incomplete"),
        (["-c", "configs/trainer/cpu.yaml"], "the configuration is incomplete: it sets no data or no model"),
    ],
)
def test_no_configuration(options, words, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *options])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert "-c configs/base.yaml" in line


def test_the_model_s_help_lists_text_encoders_and_no_other_modules(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--model.help"])
    told = capsys.readouterr().out
    assert "magnet_train.text.WordText" in told
    assert "torch.nn." not in told


@pytest.mark.parametrize("option", ["--optimizer", "--lr_scheduler", "--weights_only"])
def test_removed_options_of_lightning(option, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *BASE, "--run", str(tmp_path / "run"), option, "false"])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"there is no option '{option}'; " in line
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = capsys.readouterr().out
    assert option not in text
    assert "special keywords" not in text  # of Lightning's --ckpt_path; we take files only


def test_dashes_in_options_are_underscores(capsys):
    options = ["--rank-timeout", "3", "--data.batch-size=5", "--print-config"]
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *BASE, *options])
    assert exit_.value.code in (0, None)
    printed = capsys.readouterr().out
    assert "rank_timeout: 3.0\n" in printed
    assert "batch_size: 5\n" in printed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--trainer.max_steps", "-3"], "trainer.max_steps is -3"),
        (["--trainer.max_steps", "0"], "trainer.max_steps is 0"),
        (["--trainer.val_check_interval", "0"], "--trainer.limit_val_batches 0"),
        (["--trainer.accumulate_grad_batches", "0"], "trainer.accumulate_grad_batches is 0"),
        (
            ["--trainer.precision", "bf16-true"],
            "trainer.precision bf16-true keeps the weights themselves in 16",
        ),
        (["--trainer.strategy", "ddpp"], "no trainer.strategy 'ddpp'; give ddp"),
        (["--trainer.devices", "0"], "(Trainer(devices='0') value is not a valid input"),
        (["--trainer.devices", "-4"], "should be an int > 0"),
        (["--trainer.num_nodes", "0"], "num_nodes must be a positive integer"),
    ],
)
def test_options_that_the_trainer_refuses(trainings, tmp_path, capsys, options, words):
    assert trainings.fit(tmp_path / "run", *options) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "magnet-train" in line]
    assert words in line
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="has a GPU")
def test_the_configuration_for_a_gpu_without_one(trainings, tmp_path, capsys):
    assert trainings.fit(tmp_path / "run", "-c", "configs/trainer/one_gpu.yaml") == 1
    assert "torch finds no GPU here; add -c configs/trainer/cpu.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("options", [("--model.lm.num_heads", "3"), ("--model.lm.span_len", "0")])
def test_sizes_of_the_model_that_do_not_fit(trainings, tmp_path, capsys, options):
    assert trainings.fit(tmp_path / "run", *options) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("magnet-train: error: model.lm.")
    assert options[0].rpartition(".")[2] in line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("configs/model_scale/smal.yaml", "is configs/model_scale/small.yaml, in "),
        ("smal.yaml", "is configs/model_scale/small.yaml, in "),
        ("nothing.yaml", "the shipped configurations are in "),
        ("/proc/self/mem", "/proc/self/mem cannot be read ("),  # for root, too
    ],
)
def test_a_config_that_cannot_be_read(name, words, capsys):
    assert main(["fit", *BASE, "-c", name]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line
    assert words in line


@pytest.mark.parametrize(
    ("text", "words"), [("just text\n", "holds only the value 'just text'"), ("", "is empty")]
)
def test_a_config_without_settings(text, words, tmp_path, capsys):
    (tmp_path / "text.yaml").write_text(text)
    assert main(["fit", *BASE, f"--config={tmp_path / 'text.yaml'}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'text.yaml'}" in line
    assert words in line


def test_a_broken_file_is_named(tmp_path, capsys):
    (tmp_path / "broken.yaml").write_text("data: {init_args: [1\n")
    assert main(["fit", *BASE, "-c", str(tmp_path / "broken.yaml")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "broken.yaml is not valid YAML" in line
    assert "line 1" in line


def test_an_unknown_message_stays_readable():
    assert one_sentence("a\n  b\n" + "c" * 1000) == "a b " + "c" * 396 + "..."
