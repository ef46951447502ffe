"""`export --profile` and `--quality` through the real command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.shards.reading import ShardReader
from magnet_train.cli.main import main
from magnet_train.codecs import load_codec
from magnet_train.decoding import StepProfile
from magnet_train.decoding.step_profile import PASSES
from magnet_train.errors import UserError
from magnet_train.models import precision
from magnet_train.pipeline.magnet import Magnet

Shards = Callable[..., Path]


def export(model: Path, out: Path, *options: str) -> int:
    return main(["export", "--checkpoint", str(model), "--out", str(out), *options])


def generate(model: Path, out: Path, *options: str) -> int:
    return main(["generate", "--model", str(model), "--text", "a flute", "--out", str(out), *options])


def steps_of(out: Path) -> list[int]:
    return list(json.loads((out / "results.jsonl").read_text())["decoding"]["decoding_steps"])


def rewrite(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((model / "config.json").read_text())
    change(config)
    (model / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def shards(write_clips: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held_out") / "shards"
    return write_clips(folder, clips=3, codec=load_codec("quickstart").info)


@pytest.fixture(scope="module")
def measured(checkpoint: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with a profile, whose first codebook is then said to need 8 passes for "normal"."""
    out = tmp_path_factory.mktemp("measured") / "model"
    assert export(checkpoint, out, "--profile", str(shards)) == 0

    def need_more(config: dict[str, Any]) -> None:
        record = config["training"]["steps_profile"]
        record["nats"] = [[5.0, 4.0, 3.04, 3.0, 3.0, 2.995], *[[1.0] * 6] * 3]
        record["std_error"] = [[0.0] * 6] * 4

    rewrite(out, need_more)
    return out


def test_the_profile_is_of_the_clips_and_weights(checkpoint: Path, shards: Path, tmp_path: Path) -> None:
    assert export(checkpoint, tmp_path / "out", "--profile", str(shards)) == 0
    record = json.loads((tmp_path / "out" / "config.json").read_text())["training"]["steps_profile"]
    magnet, reader = Magnet.from_pretrained(checkpoint), ShardReader(shards)
    clips = [
        (reader[number].metadata["text"], torch.from_numpy(reader[number].tokens.astype("int64")))
        for number in range(3)
    ]
    profile = magnet.measure_passes(clips)
    assert StepProfile.from_record(record, 4, "out") == profile
    assert (profile.passes, profile.clips) == (PASSES, 3)
    assert magnet.decoding_for("best").decoding_steps == profile.choose("best")
    assert Magnet.from_pretrained(tmp_path / "out").training["steps_profile"] == record


@pytest.mark.parametrize(
    ("quality", "steps"), [("draft", [4, 1, 1, 1]), ("normal", [8, 1, 1, 1]), ("best", [32, 1, 1, 1])]
)
def test_quality_chooses_the_passes(measured: Path, tmp_path: Path, quality: str, steps: list[int]) -> None:
    assert generate(measured, tmp_path / "clips", "--quality", quality) == 0
    assert steps_of(tmp_path / "clips") == steps


def test_without_it_the_steps_are_the_models_own(measured: Path, tmp_path: Path) -> None:
    assert generate(measured, tmp_path / "clips") == 0
    assert steps_of(tmp_path / "clips") == [3, 2, 2, 2]


def test_an_export_with_a_quality_keeps_its_steps(measured: Path, tmp_path: Path) -> None:
    assert export(measured, tmp_path / "fast", "--quality", "draft") == 0
    assert Magnet.from_pretrained(tmp_path / "fast").decoding.decoding_steps == (4, 1, 1, 1)
    assert generate(tmp_path / "fast", tmp_path / "clips", "--quality", "best") == 0
    assert steps_of(tmp_path / "clips") == [32, 1, 1, 1]


def test_card_and_inspect_show_the_passes(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(measured)]) == 0
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "draft 4 1 1 1, normal 8 1 1 1, best 32 1 1 1, measured on 3 clips" in printed
    card = (measured / "README.md").read_text()
    assert "measured on 3 clips" in card
    assert "steps_profile" not in printed + card


def test_the_command_says_what_it_measured(
    checkpoint: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(checkpoint, tmp_path / "out", "--profile", str(shards)) == 0
    printed = capsys.readouterr()
    assert "--quality draft: " in printed.out
    assert "756/756 passes" in printed.err  # 3 clips of 4 codebooks, each 1 + 2 + 4 + 8 + 16 + 32


def test_a_profile_is_measured_in_what_the_device_is_faster_in(
    checkpoint: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Only the products are rounded: the stored weights are those of the checkpoint."""
    products: set[torch.dtype] = set()
    forward = torch.nn.functional.gelu
    monkeypatch.setattr(torch.nn.functional, "gelu", lambda x: products.add(x.dtype) or forward(x))
    folders = [tmp_path / "float32", tmp_path / "bfloat16"]
    for folder, gain in zip(folders, (1.0, 3.0), strict=True):
        products.clear()
        monkeypatch.setattr(precision, "_cpu_gain", lambda gain=gain: gain)
        monkeypatch.setattr(precision, "LEAST_DIM", 8)
        assert export(checkpoint, folder, "--profile", str(shards)) == 0
        assert f"measured on 3 clips in {folder.name}\n" in capsys.readouterr().out
        assert products == {getattr(torch, folder.name)}
    configs = [json.loads((folder / "config.json").read_text()) for folder in folders]
    curves = [config["training"]["steps_profile"]["nats"] for config in configs]
    torch.testing.assert_close(torch.tensor(curves[1]), torch.tensor(curves[0]), rtol=0.02, atol=0.0)
    assert curves[1] != curves[0]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]


def test_a_model_in_16_bits_keeps_its_profile(measured: Path, tmp_path: Path) -> None:
    options = ["--quality", "normal", "--precision", "bfloat16"]
    assert generate(measured, tmp_path / "clips", *options) == 0
    assert steps_of(tmp_path / "clips") == [8, 1, 1, 1]


def test_a_model_without_a_profile(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(checkpoint, tmp_path / "clips", "--quality", "draft") == 1
    error = capsys.readouterr().err
    assert "last.ckpt has no measured step profile; give --steps, or measure it with" in error
    assert "Traceback" not in error
    assert not (tmp_path / "clips").exists()


def test_a_profile_of_other_weights(measured: Path, tmp_path: Path) -> None:
    magnet = Magnet.from_pretrained(measured)
    with torch.no_grad():
        next(magnet.lm.parameters()).add_(1e-3)
    magnet.save_pretrained(tmp_path / "changed")
    with pytest.raises(UserError, match="measured on other weights"):
        Magnet.from_pretrained(tmp_path / "changed").decoding_for("draft")


def test_a_strangers_profile_is_refused_on_loading(
    checkpoint: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    assert export(checkpoint, model, "--profile", str(shards)) == 0
    rewrite(model, lambda config: config["training"]["steps_profile"].update(passes=[10**9]))
    assert generate(model, tmp_path / "clips") == 1
    assert "config.json has a steps_profile that is not one of 4 codebooks" in capsys.readouterr().err


def test_steps_and_quality_exclude_each_other(measured: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        generate(measured, tmp_path / "clips", "--quality", "draft", "--steps", "2,1,1,1")
    assert caught.value.code == 2


def test_shards_of_another_codec(
    checkpoint: Path, write_clips: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = replace(load_codec("quickstart").info, id="other/codec", sha256="1" * 64)
    shards = write_clips(tmp_path / "shards", clips=3, codec=other)
    assert export(checkpoint, tmp_path / "out", "--profile", str(shards)) == 1
    assert "give shards of codec quickstart" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_single_clip_is_not_enough(
    checkpoint: Path, write_clips: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = write_clips(tmp_path / "shards", clips=1, codec=load_codec("quickstart").info)
    assert export(checkpoint, tmp_path / "out", "--profile", str(shards)) == 1
    assert "needs 2 clips or more, not 1" in capsys.readouterr().err


def test_a_folder_that_holds_no_shards(checkpoint: Path, tmp_path: Path) -> None:
    assert export(checkpoint, tmp_path / "out", "--profile", str(tmp_path / "none")) == 1
    assert not (tmp_path / "out").exists()
