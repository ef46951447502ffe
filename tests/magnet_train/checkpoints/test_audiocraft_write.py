"""There and back again: nothing changes between the reference's format and ours."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from magnet_train import Magnet
from magnet_train.checkpoints.audiocraft import read_audiocraft
from magnet_train.checkpoints.audiocraft_export import save_audiocraft
from magnet_train.checkpoints.load import read_model
from magnet_train.cli.main import main
from magnet_train.codecs import load_codec, packaged_codec
from magnet_train.errors import UserError

Change = Callable[[Callable[[dict[str, Any]], None]], Path]
RECORDED = Path(__file__).parents[2] / "reference" / "data"
MODELS = ["lm_a", "lm_b", "lm_c"]
PARTS = ("lm", "text", "codec", "decoding", "segment_duration", "licence", "training", "data", "base")


def test_the_configuration_has_all_that_the_references_builders_ask_for(tmp_path: Path) -> None:
    """Compared with the recorded one: every setting of these sections is there, with a value as good."""
    Magnet.from_pretrained(RECORDED / "lm_a").save_pretrained(tmp_path / "out", format="audiocraft")
    recorded = _config(RECORDED / "lm_a")
    written = _config(tmp_path / "out")
    for section in (
        "transformer_lm",
        "fuser",
        "masking",
        "classifier_free_guidance",
        "attribute_dropout",
        "interleave_stereo_codebooks",
        "tokens",
    ):
        assert written[section].keys() == recorded[section].keys(), section
    for name in (
        "lm_model",
        "sample_rate",
        "channels",
        "compression_model_checkpoint",
        "compression_model_n_q",
        "efficient_attention_backend",
        "dtype",
        "device",
        "autocast",
        "autocast_dtype",
        "solver",
        "fuser",
    ):
        assert written[name] == recorded[name], name
    assert written["dataset"]["segment_duration"] == recorded["dataset"]["segment_duration"]
    assert written["codebooks_pattern"]["modeling"] == "parallel"
    assert written["codebooks_pattern"]["parallel"] == recorded["codebooks_pattern"]["parallel"]
    theirs, ours = (config["conditioners"]["description"] for config in (recorded, written))
    assert theirs["model"] == ours["model"]
    assert theirs["t5"].keys() == ours["t5"].keys()
    placeholders = {
        "segment_duration",
        "span_len",
    }  # the recorded file leaves them open; the loader fills them in
    for name in written["transformer_lm"].keys() - placeholders:
        assert written["transformer_lm"][name] == recorded["transformer_lm"][name], name


@pytest.mark.parametrize("model", MODELS)
def test_audiocraft_to_ours_and_back(model: str, tmp_path: Path) -> None:
    named = _config(RECORDED / model)["compression_model_checkpoint"]
    Magnet.from_pretrained(RECORDED / model).save_pretrained(tmp_path / "ours")
    Magnet.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "back", format="audiocraft")
    theirs, back = _package(RECORDED / model)["best_state"], _package(tmp_path / "back")["best_state"]
    assert theirs.keys() == back.keys()
    for name, tensor in theirs.items():
        assert tensor.dtype == back[name].dtype
        assert torch.equal(tensor, back[name]), name
    first, second = read_model(RECORDED / model), read_model(tmp_path / "back")
    for part in PARTS:
        assert getattr(first, part) == getattr(second, part), part
    assert _config(tmp_path / "back")["compression_model_checkpoint"] == named
    pointer = tmp_path / "back" / "compression_state_dict.bin"
    if named.startswith("//pretrained/"):
        assert torch.load(pointer, weights_only=True)["pretrained"] == named.removeprefix("//pretrained/")
    else:  # in a store of the authors: nothing came along, so nothing goes back
        assert not pointer.exists()
        assert "compression_state_dict.bin" in (tmp_path / "back" / "README.md").read_text()


def test_ours_to_audiocraft_and_back(change_checkpoint: Change, tmp_path: Path) -> None:
    """A model of ours with a hub codec and a hub text encoder; its padded text is hidden, unlike the reference's."""

    def on_the_hub(content: dict[str, Any]) -> None:
        stored = content["magnet_train"]
        stored["text"] = {"kind": "t5", "name": "t5-small", "trainable": False, "max_length": 77}
        stored["codec"]["id"] = "me/tiny_codec"
        stored["licence"] = "CC-BY-4.0"
        for state in ("state_dict", "current_model_state"):
            content[state] = {n: t for n, t in content[state].items() if not n.startswith("text.")}

    checkpoint = change_checkpoint(on_the_hub)
    Magnet.from_pretrained(checkpoint).save_pretrained(tmp_path / "ours")
    Magnet.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs", format="audiocraft")
    Magnet.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "back")
    for file in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "back" / file).read_bytes()
    assert "one caption" in (tmp_path / "theirs" / "README.md").read_text()
    expected = torch.load(checkpoint, weights_only=True)["state_dict"]
    written = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(written[name], expected[name]) for name in expected)


def test_command_line(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    options = ["--checkpoint", str(RECORDED / "lm_a"), "--out", str(out), "--format", "audiocraft"]
    assert main(["export", *options, "--licence", "CC-BY-NC-4.0"]) == 0
    assert {file.name for file in out.iterdir()} == {
        "state_dict.bin",
        "compression_state_dict.bin",
        "README.md",
    }
    assert "license: cc-by-nc-4.0" in (out / "README.md").read_text()
    assert "Not for commercial use" in (out / "README.md").read_text()
    assert "get_pretrained" in capsys.readouterr().out
    assert [folder.name for folder in tmp_path.iterdir()] == ["out"]


def test_what_the_reference_could_not_read_is_refused(
    checkpoint: Path, change_checkpoint: Change, tmp_path: Path
) -> None:
    """The packaged codec and a text encoder that was trained along are not to be had there."""
    with pytest.raises(UserError, match="text encoder"):
        Magnet.from_pretrained(checkpoint).save_pretrained(tmp_path / "out", format="audiocraft")
    stored = read_audiocraft(RECORDED / "lm_a")
    shutil.copytree(packaged_codec(), tmp_path / "codec")
    for codec in ("quickstart", "encodec_24khz", str(tmp_path / "codec")):
        local = replace(stored, codec=replace(load_codec("quickstart").info, id=codec, n_q=4, card=32))
        with pytest.raises(UserError, match="cannot read codec"):
            save_audiocraft(local, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_failure_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    magnet = Magnet.from_pretrained(RECORDED / "lm_a")
    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UserError, match="No space left"):
        magnet.save_pretrained(tmp_path / "out", format="audiocraft")
    assert list(tmp_path.iterdir()) == []


def test_changed_weights_are_not_squeezed_into_fp16(tmp_path: Path) -> None:
    magnet = Magnet.from_pretrained(RECORDED / "lm_a")
    with torch.no_grad():
        magnet.lm.out_norm.bias += 1e-5
    magnet.save_pretrained(tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["lm.out_norm.bias"], magnet.lm.out_norm.bias)
    assert written["lm.heads"].dtype == torch.float16


def test_dry_run_of_an_upload_lists_the_files_and_needs_no_network() -> None:
    magnet = Magnet.from_pretrained(RECORDED / "lm_a")
    files = magnet.push_to_hub("me/model", dry_run=True)
    assert files == ["README.md", "config.json", "model.safetensors"]
    files = magnet.push_to_hub("me/model", format="audiocraft", dry_run=True)
    assert files == ["README.md", "compression_state_dict.bin", "state_dict.bin"]
    with pytest.raises(UserError, match="cannot be the name"):
        magnet.push_to_hub("not/a/name", dry_run=True)


def test_upload_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="could not be uploaded") as caught:
        Magnet.from_pretrained(RECORDED / "lm_a").push_to_hub("me/model")
    assert "\n" not in str(caught.value)


def _package(folder: Path) -> dict[str, Any]:
    package: dict[str, Any] = torch.load(folder / "state_dict.bin", weights_only=True)
    return package


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(_package(folder)["xp.cfg"])
    return config
