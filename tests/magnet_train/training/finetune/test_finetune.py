"""Fine-tuning through the real command line: what begins where, what moves, what is kept, what comes out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from magnet_train import Magnet
from magnet_train.checkpoints.adapter import merge_adapter
from magnet_train.checkpoints.load import read_bundle, read_model
from magnet_train.cli.main import main
from magnet_train.codecs import load_codec
from magnet_train.errors import UserError
from magnet_train.models import MagnetTransformer
from magnet_train.text import KINDS, NoText
from magnet_train.training.finetune import LoRA, start
from magnet_train.training.module import MagnetModule

ROOT = Path(__file__).parents[4]
RECORDED = ROOT / "tests" / "reference" / "data"
STEPS = 4
OPTIONS = [
    *("-c", "configs/base.yaml", "-c", "configs/quickstart.yaml", "-c", "configs/trainer/cpu.yaml"),
    *("--data.batch_size", "4", "--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false"),
]
SHORT = ["--trainer.max_steps", str(STEPS), "--trainer.val_check_interval", "2", "--model.warmup_steps", "1"]
LORA = ["-c", "configs/finetune/lora.yaml", "--model.optimizer.lr", "1e-2"]


@pytest.fixture(scope="module")
def shards(write_clips: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("data") / "shards"
    return write_clips(folder, codec=load_codec("quickstart").info)


def fit(shards: Path, run: Path, *options: str) -> int:
    return main(["fit", *OPTIONS, "--data.shards", str(shards), "--run", str(run), *options])


class OwnText(NoText):
    """A text encoder from outside the package."""

    kind = "own"


def test_a_text_encoder_of_ones_own_goes_on_from_a_model(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "own", OwnText)
    sizes = ["--model.lm.dim", "32", "--model.lm.num_layers", "1"]
    first, second = tmp_path / "first", tmp_path / "second"
    text = ["--model.text", f"{__name__}.OwnText"]
    assert fit(shards, first, *SHORT, *sizes, *text) == 0
    assert fit(shards, second, *SHORT, "--init_from", str(first / "last.ckpt")) == 0
    assert read_bundle(second / "last.ckpt").text == {"kind": "own", "dim": 8}


@pytest.fixture(scope="module")
def base(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model that a licence binds."""
    folder = tmp_path_factory.mktemp("base")
    sizes = ["--model.lm.dim", "32", "--model.lm.num_layers", "2", "--model.lm.subcodes_context", "7"]
    assert fit(shards, folder / "run", *SHORT, *sizes) == 0
    Magnet.from_pretrained(folder / "run" / "last.ckpt").save_pretrained(
        folder / "model", licence="CC-BY-NC-4.0"
    )
    return folder / "model"


@pytest.fixture(scope="module")
def lora(shards: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("lora") / "run"
    assert fit(shards, run, *LORA, *SHORT, "--init_from", str(base)) == 0
    return run / "last.ckpt"


def logits_of(magnet: Magnet) -> Tensor:
    tokens = torch.randint(magnet.lm.card + 1, (2, 4, 24), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        hidden, mask = magnet.text(["a calm flute", "a fast flute on c4"])
        return torch.stack([magnet.lm(tokens, stage, hidden, mask) for stage in range(4)])


def test_sizes_and_weights_are_those_of_the_base(
    shards: Path, base: Path, tmp_path: Path, caplog: Any
) -> None:
    frozen = ["--model.optimizer.lr", "0", "--trainer.callbacks.every_n_train_steps", str(STEPS)]
    others = ["--model.lm.positions", "rotary"]  # of which the weights would say nothing
    assert fit(shards, tmp_path / "run", *SHORT, *frozen, *others, "--init_from", str(base)) == 0
    assert "licence CC-BY-NC-4.0. Not for commercial use" in caplog.text
    before, after = read_model(base), read_model(tmp_path / "run" / "last.ckpt", raw=True)
    assert before.lm == after.lm
    assert all(torch.equal(before.weights[name], after.weights[name]) for name in before.weights)
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["model"]["init_args"]["lm"]["init_args"]["subcodes_context"] == 7


def test_licence_base_and_data_come_along_to_the_card(
    shards: Path, base: Path, tmp_path: Path, capsys: Any
) -> None:
    assert fit(shards, tmp_path / "run", *SHORT, "--init_from", str(base)) == 0
    out = tmp_path / "out"
    capsys.readouterr()
    assert main(["export", "--checkpoint", str(tmp_path / "run" / "last.ckpt"), "--out", str(out)]) == 0
    assert "Not for commercial use" in capsys.readouterr().out
    card = (out / "README.md").read_text()
    for fact in (
        "license: cc-by-nc-4.0",
        "Not for commercial use",
        "clips 40",
        "made from",
        f"steps {STEPS}",
    ):
        assert fact in card
    assert str(tmp_path.parent) not in card + (out / "config.json").read_text()
    assert json.loads((out / "config.json").read_text())["data"]["clips"] == 40
    options = ["--checkpoint", str(out), "--out", str(tmp_path / "freed"), "--licence", "CC0-1.0"]
    assert main(["export", *options]) == 0  # a word alone does not lift what binds the base
    assert "Not for commercial use" in capsys.readouterr().out
    assert "Not for commercial use" in (tmp_path / "freed" / "README.md").read_text()


def test_every_format_can_begin_a_training(shards: Path, base: Path, tmp_path: Path) -> None:
    """A release of the reference: its T5 is on the hub, so that this stops only there, with its sizes read."""
    assert fit(shards, tmp_path / "a", *SHORT, "--init_from", str(base.parent / "run" / "last.ckpt")) == 0
    module = MagnetModule(
        codec=read_model(RECORDED / "lm_a").codec,
        lm=lambda n_q, card, _: MagnetTransformer(**read_model(RECORDED / "lm_a").lm),
        text=NoText(),
        segment_duration=1.0,
    )
    stored = read_model(RECORDED / "lm_a")
    start(module, stored, None, {})
    assert torch.equal(module.lm.heads, stored.weights["lm.heads"].float())


def test_frozen_parts_do_not_move_by_a_bit(shards: Path, base: Path, tmp_path: Path) -> None:
    options = ["-c", "configs/finetune/full.yaml", "-c", "configs/finetune/freeze.yaml", *SHORT]
    assert (
        fit(shards, tmp_path / "run", *options, "--init_from", str(base), "--model.optimizer.lr", "1e-2") == 0
    )
    before = read_model(base).weights
    for raw in (False, True):
        after = read_model(tmp_path / "run" / "last.ckpt", raw=raw).weights
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        still = {name for name in before if name.startswith("lm.embeddings") or name == "lm.heads"}
        assert not moved & still
        assert {"lm.layers.0.linear_in.weight", "lm.text_proj.bias"} <= moved


def test_adapter_alone_is_in_the_checkpoint(lora: Path, base: Path) -> None:
    checkpoint = torch.load(lora, weights_only=True)
    for state in ("state_dict", "current_model_state"):
        names = set(checkpoint[state])
        assert (
            len(names) == 2 * 2 * 10
        )  # A and B, two layers, four maps in each attention and two behind them
        assert all(".lora_" in name for name in names)
    assert lora.stat().st_size < 0.5 * (base / "model.safetensors").stat().st_size + 200_000
    stored = read_bundle(lora)
    assert stored.adapter["rank"] == 16
    assert stored.base["source"] == str(base)


def test_inspect_tells_an_adapter_without_its_base(lora: Path, tmp_path: Path, capsys: Any) -> None:
    content = torch.load(lora, weights_only=True)
    content["magnet_train"]["base"]["source"] = "/nowhere/model"
    torch.save(content, tmp_path / "lora.ckpt")
    assert main(["inspect", str(tmp_path / "lora.ckpt")]) == 0
    shown = capsys.readouterr().out
    for fact in ("LoRA adapter", "rank 16", "/nowhere/model", "CC-BY-NC-4.0"):
        assert fact in shown


def test_merged_model_is_base_and_adapter(lora: Path, base: Path, tmp_path: Path) -> None:
    """Expected: peft's own forward pass with the weights of the checkpoint."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    magnet = Magnet.from_pretrained(base)
    before = logits_of(magnet)
    stored = read_bundle(lora)
    settings = LoraConfig(r=16, lora_alpha=16, target_modules=stored.adapter["targets"])
    inject_adapter_in_model(settings, magnet.lm)
    weights = {
        name.removeprefix("lm.").replace(".default.weight", ".weight"): tensor
        for name, tensor in stored.weights.items()
    }
    assert not set_peft_model_state_dict(magnet.lm, weights).unexpected_keys
    expected = logits_of(magnet)
    assert (expected - before).abs().max() > 1e-2

    merged = Magnet.from_pretrained(lora)
    torch.testing.assert_close(logits_of(merged), expected, atol=1e-5, rtol=1e-5)
    assert main(["export", "--checkpoint", str(lora), "--out", str(tmp_path / "out")]) == 0
    assert torch.equal(logits_of(Magnet.from_pretrained(tmp_path / "out")), logits_of(merged))


def test_strength_goes_from_the_base_to_the_adapter_and_beyond(lora: Path, base: Path) -> None:
    whole = Magnet.from_pretrained(lora).lm.state_dict()
    own = Magnet.from_pretrained(base).lm.state_dict()
    name = "layers.1.self_attention.v_proj.weight"
    for strength in (0.0, 0.5, 1.0, 1.5):
        magnet = Magnet.from_pretrained(base)
        magnet.load_adapter(lora, strength=strength)
        expected = own[name] + strength * (whole[name] - own[name])
        torch.testing.assert_close(magnet.lm.state_dict()[name], expected, atol=1e-6, rtol=1e-5)
    magnet.load_adapter(lora, strength=-1.5)  # one after the other: they add up
    torch.testing.assert_close(magnet.lm.state_dict()[name], own[name], atol=1e-6, rtol=1e-5)


def test_generate_with_an_adapter(lora: Path, base: Path, tmp_path: Path) -> None:
    def make(out: str, *options: str) -> bytes:
        words = ["--text", "a calm flute", "--seed", "4", "--out", str(tmp_path / out)]
        assert main(["generate", *options, *words]) == 0
        return next((tmp_path / out).glob("*.wav")).read_bytes()

    adapter = ["--model", str(base), "--adapter", str(lora)]
    merged = make("a", "--model", str(lora))
    assert make("b", *adapter) == merged
    assert make("c", *adapter, "--adapter-strength", "0") == make("d", "--model", str(base)) != merged


def test_adapter_is_merged_into_a_base_that_has_moved(lora: Path, base: Path, tmp_path: Path) -> None:
    content = torch.load(lora, weights_only=True)
    content["magnet_train"]["base"]["source"] = "/nowhere/model"
    torch.save(content, tmp_path / "lora.ckpt")
    options = [
        "--checkpoint",
        str(base),
        "--adapter",
        str(tmp_path / "lora.ckpt"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(["export", *options]) == 0
    expected = Magnet.from_pretrained(lora).lm.state_dict()
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[f"lm.{name}"], tensor) for name, tensor in expected.items())
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"steps {STEPS}" in card
    assert "license: cc-by-nc-4.0" in card


def test_adapter_resumes_bit_for_bit(shards: Path, base: Path, lora: Path, tmp_path: Path) -> None:
    options = [*LORA, *SHORT, "--init_from", str(base), "--trainer.val_check_interval", "100"]
    options += ["--trainer.callbacks.every_n_train_steps", "2"]
    assert fit(shards, tmp_path / "whole", *options) == 0
    half = ["--trainer.limit_train_batches", "2", "--trainer.max_epochs", "1"]
    assert fit(shards, tmp_path / "half", *options, *half) == 0
    middle = tmp_path / "half" / "last.ckpt"
    assert torch.load(middle, weights_only=True)["global_step"] == 2
    assert fit(shards, tmp_path / "rest", *options, "--ckpt_path", str(middle)) == 0
    whole, rest = (read_bundle(tmp_path / run / "last.ckpt", raw=True).weights for run in ("whole", "rest"))
    assert all(torch.equal(whole[name], rest[name]) for name in whole)


def test_start_says_what_trains(shards: Path, base: Path, tmp_path: Path, caplog: Any) -> None:
    assert fit(shards, tmp_path / "run", *LORA, *SHORT, "--init_from", str(base)) == 0
    assert caplog.text.count("LoRA trains") == 1
    assert " train, " not in caplog.text  # the same numbers are not given twice
    assert "frozen: parts of the model" in caplog.text


def test_validation_of_an_adapter(shards: Path, base: Path, lora: Path, tmp_path: Path) -> None:
    options = [
        *OPTIONS,
        *LORA,
        "--data.shards",
        str(shards),
        "--run",
        str(tmp_path),
        "--init_from",
        str(base),
    ]
    assert main(["validate", *options, "--ckpt_path", str(lora)]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--init_from", "nowhere.ckpt"], "nowhere.ckpt does not exist"),
        (LORA, "--init_from"),
        (
            ["--tuning", "magnet_train.training.finetune.Freeze", "--tuning.parts", '["lm.nothing.*"]'],
            "lm.nothing",
        ),
        (["--tuning", "magnet_train.training.finetune.Freeze", "--tuning.parts", '["*"]'], "leave some"),
        (["--tuning", "magnet_train.training.finetune.LoRA", "--tuning.rank", "0"], "rank 0"),
        (["--tuning", "magnet_train.training.finetune.LoRA", "--tuning.targets", '["heads"]'], "heads"),
    ],
)
def test_bad_input_is_one_sentence(
    shards: Path, tmp_path: Path, capsys: Any, options: list[str], message: str
) -> None:
    assert fit(shards, tmp_path / "run", *SHORT, *options) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_base_with_another_codec(shards: Path, base: Path, tmp_path: Path, capsys: Any) -> None:
    config = json.loads((base / "config.json").read_text())
    config["codec"]["sha256"] = "0" * 64
    other = tmp_path / "other"
    other.mkdir()
    for file in base.iterdir():
        (other / file.name).symlink_to(file)
    (other / "config.json").unlink()
    (other / "config.json").write_text(json.dumps(config))
    assert fit(shards, tmp_path / "run", *SHORT, "--init_from", str(other)) == 1
    assert "sha256" in capsys.readouterr().err


def test_adapter_whose_base_is_gone_or_changed(lora: Path, base: Path, tmp_path: Path) -> None:
    for source, message in (("/nowhere/model", "cannot be read"), (str(base), "changed since")):
        content = torch.load(lora, weights_only=True)
        content["magnet_train"]["base"].update(source=source, weights_sha256="0")
        torch.save(content, tmp_path / "changed.ckpt")
        with pytest.raises(UserError, match=message) as caught:
            Magnet.from_pretrained(tmp_path / "changed.ckpt")
        assert "--adapter" in str(caught.value)
    magnet = Magnet.from_pretrained(base)
    with pytest.warns(UserWarning, match="other weights"):
        magnet.load_adapter(tmp_path / "changed.ckpt")


def test_adapter_that_is_none(lora: Path, base: Path) -> None:
    with pytest.raises(UserError, match="instead of an adapter"):
        Magnet.from_pretrained(base).load_adapter(base)
    with pytest.raises(UserError, match="another card, text_dim, dim"):
        Magnet.from_pretrained(RECORDED / "lm_a").load_adapter(lora)


@pytest.mark.parametrize("rotary", [0, 1])
def test_adapter_of_a_model_with_other_positions(lora: Path, base: Path, rotary: int) -> None:
    models = [read_model(base), read_bundle(lora)]
    models[rotary].lm["positions"] = "rotary"
    with pytest.raises(UserError, match="a model with another positions than"):
        merge_adapter(*models)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": -1.0}, {"dropout": 1.0}, {"targets": ()}])
def test_lora_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="tuning"):
        LoRA(**wrong)


@pytest.mark.slow
def test_two_processes_train_the_adapter_of_one(shards: Path, base: Path, tmp_path: Path) -> None:
    options = [*OPTIONS, *LORA, *SHORT, "--init_from", str(base), "--data.shards", str(shards)]
    command = [sys.executable, "-m", "magnet_train", "fit", *options]
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for run, more in (("one", []), ("two", two)):
        subprocess.run(
            [*command, "--run", str(tmp_path / run), *more],
            check=True,
            cwd=ROOT,
            env=environment,
            timeout=300,
        )
    one, both = (read_bundle(tmp_path / run / "last.ckpt", raw=True).weights for run in ("one", "two"))
    assert one.keys() == both.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(both[name], tensor, atol=2e-5, rtol=1e-3)
    assert load_file(base / "model.safetensors")  # untouched
