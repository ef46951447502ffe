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
from magnet_train.checkpoints.audiocraft.names import TEXT_WEIGHT
from magnet_train.checkpoints.audiocraft.read import read_audiocraft
from magnet_train.checkpoints.audiocraft.write import T5_WIDTHS, save_audiocraft
from magnet_train.checkpoints.load import read_model
from magnet_train.cli.main import main
from magnet_train.codecs import load_codec, packaged_codec
from magnet_train.errors import UserError

Change = Callable[[Callable[[dict[str, Any]], None]], Path]
RECORDED = Path(__file__).parents[2] / "reference" / "data"
MODELS = ["lm_a", "lm_b", "lm_c"]
# What `get_lm_model` and `get_pretrained` look up; of PLACEHOLDERS the types count alone, since the loader fills them in
# or they are about training.
BUILDERS_READ = (
    "transformer_lm.",
    "fuser.",
    "masking.",
    "classifier_free_guidance.",
    "attribute_dropout",
    "interleave_stereo_codebooks.",
    "tokens.",
    "conditioners.",
    "codebooks_pattern.modeling",
    "codebooks_pattern.parallel.",
    "dataset.segment_duration",
    *("lm_model", "sample_rate", "channels", "compression_model_checkpoint", "compression_model_n_q"),
    *("efficient_attention_backend", "dtype", "device", "autocast", "autocast_dtype", "solver"),
)
PLACEHOLDERS = (
    "solver",  # the reference has one for music and one for sounds, which no loader tells apart
    "efficient_attention_backend",  # of one that was recorded; released models and ours have xformers
    "transformer_lm.segment_duration",
    "transformer_lm.span_len",
    "conditioners.description.t5.word_dropout",
    "classifier_free_guidance.training_dropout",
)
PARTS = ("lm", "text", "codec", "decoding", "segment_duration", "licence", "training", "data", "base")


@pytest.fixture
def release(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that gives a recorded release text states as wide as its T5's; the recorded ones are cut."""

    def write(model: str) -> Path:
        package, config = _package(RECORDED / model), _config(RECORDED / model)
        width = T5_WIDTHS[config["conditioners"]["description"]["t5"]["name"]]
        narrow = package["best_state"][TEXT_WEIGHT]
        package["best_state"][TEXT_WEIGHT] = narrow.repeat(1, 20)[:, :width].contiguous()
        folder = tmp_path / f"release_{model}"
        folder.mkdir()
        torch.save(package, folder / "state_dict.bin")
        return folder

    return write


@pytest.mark.parametrize("model", MODELS)
def test_the_configuration_is_one_that_the_references_builders_take(
    release: Callable[[str], Path], model: str, tmp_path: Path
) -> None:
    """Each entry has the recorded one's name and type; the reference multiplies, slices and compares with them."""
    Magnet.from_pretrained(release(model)).save_pretrained(tmp_path / "out", format="audiocraft")
    recorded, written = _leaves(_config(RECORDED / model)), _leaves(_config(tmp_path / "out"))
    assert {name for name in written if not name.startswith("magnet_train.")} <= recorded.keys()
    for name, value in recorded.items():
        if name.startswith(BUILDERS_READ):
            assert type(written[name]) is type(value), name
            if name not in PLACEHOLDERS:
                assert written[name] == value, name
    duration = _config(tmp_path / "out")["dataset"]["segment_duration"]
    assert duration == written["transformer_lm.segment_duration"]
    assert type(duration) is int


@pytest.mark.parametrize("model", MODELS)
def test_audiocraft_to_ours_and_back(release: Callable[[str], Path], model: str, tmp_path: Path) -> None:
    theirs_folder = release(model)
    named = _config(theirs_folder)["compression_model_checkpoint"]
    Magnet.from_pretrained(theirs_folder).save_pretrained(tmp_path / "ours")
    Magnet.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "back", format="audiocraft")
    theirs, back = _package(theirs_folder)["best_state"], _package(tmp_path / "back")["best_state"]
    assert theirs.keys() == back.keys()
    for name, tensor in theirs.items():
        assert tensor.dtype == back[name].dtype
        assert torch.equal(tensor, back[name]), name
    first, second = read_model(theirs_folder), read_model(tmp_path / "back")
    for part in PARTS:
        assert getattr(first, part) == getattr(second, part), part
    assert _config(tmp_path / "back")["compression_model_checkpoint"] == named
    pointer = tmp_path / "back" / "compression_state_dict.bin"
    if named.startswith("//pretrained/"):
        assert torch.load(pointer, weights_only=True)["pretrained"] == named.removeprefix("//pretrained/")
    else:  # in a store of the authors: nothing came along, so nothing goes back
        assert not pointer.exists()
        assert "compression_state_dict.bin" in (tmp_path / "back" / "README.md").read_text()


def test_rotary_positions_there_and_back(release: Callable[[str], Path], tmp_path: Path) -> None:
    model = read_model(release("lm_a"))
    model.lm["positions"] = "rotary"
    save_audiocraft(model, tmp_path / "theirs")
    assert _config(tmp_path / "theirs")["transformer_lm"]["positional_embedding"] == "rope"
    again = Magnet.from_pretrained(tmp_path / "theirs")
    assert again.lm.positions == "rotary"
    again.save_pretrained(tmp_path / "ours")
    assert read_model(tmp_path / "ours").lm == model.lm
    assert "rotary positions" in (tmp_path / "ours" / "README.md").read_text()


def test_ours_to_audiocraft_and_back(change_checkpoint: Change, tmp_path: Path) -> None:
    """A model of ours with a hub codec and a hub text encoder; its padded text is hidden, unlike the reference's."""

    def on_the_hub(content: dict[str, Any]) -> None:
        stored = content["magnet_train"]
        stored["text"] = {"kind": "t5", "name": "t5-small", "trainable": False, "max_length": 77}
        stored["codec"]["id"] = "me/tiny_codec"
        stored["licence"] = "CC-BY-4.0"
        stored["segment_duration"] = 2.0
        stored["lm"]["text_dim"] = 512
        for state in ("state_dict", "current_model_state"):
            content[state] = {n: t for n, t in content[state].items() if not n.startswith("text.")}
            content[state]["lm.text_proj.weight"] = torch.ones(stored["lm"]["dim"], 512)

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


def test_command_line(release: Callable[[str], Path], tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    options = ["--checkpoint", str(release("lm_a")), "--out", str(out), "--format", "audiocraft"]
    assert main(["export", *options, "--licence", "CC-BY-NC-4.0"]) == 0
    assert {file.name for file in out.iterdir()} == {
        "state_dict.bin",
        "compression_state_dict.bin",
        "README.md",
    }
    assert "license: cc-by-nc-4.0" in (out / "README.md").read_text()
    assert "Not for commercial use" in (out / "README.md").read_text()
    assert "get_pretrained" in capsys.readouterr().out
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["out", "release_lm_a"]


def test_what_the_reference_could_not_read_is_refused(
    checkpoint: Path, change_checkpoint: Change, tmp_path: Path
) -> None:
    """The packaged codec and a text encoder that was trained along are not to be had there."""
    with pytest.raises(UserError, match="text encoder"):
        Magnet.from_pretrained(checkpoint).save_pretrained(tmp_path / "out", format="audiocraft")
    stored = read_audiocraft(RECORDED / "lm_b")
    shutil.copytree(packaged_codec(), tmp_path / "codec")
    for codec in ("quickstart", "encodec_24khz", str(tmp_path / "codec")):
        local = replace(stored, codec=replace(load_codec("quickstart").info, id=codec, n_q=4, card=32))
        with pytest.raises(UserError, match=r"cannot read .*: its codec is"):
            save_audiocraft(local, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segment_duration": 1.28}, "whole seconds"),
        ({"frame_rate": 86.1328}, "frame_rate of the codec is 86.1328"),
        ({"t5": "google/flan-t5-xl"}, "google/flan-t5-xl"),
        ({"t5": "t5-large"}, "text states of width 512, and audiocraft's t5-large gives 1024"),
        ({"t5": "t5-v1_1-small"}, "t5-v1_1-small"),
    ],
)
def test_what_the_reference_would_stumble_over_is_refused_with_the_remedy(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    stored = read_audiocraft(RECORDED / "lm_b")
    stored = replace(
        stored,
        segment_duration=change.get("segment_duration", stored.segment_duration),
        codec=replace(stored.codec, frame_rate=change.get("frame_rate", stored.codec.frame_rate)),
        text=stored.text | {"name": change.get("t5", stored.text["name"])},
    )
    with pytest.raises(UserError, match=message) as caught:
        save_audiocraft(stored, tmp_path / "out")
    assert "--format magnet" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_sampler_settings_that_the_reference_has_no_name_for(tmp_path: Path) -> None:
    """They come back in ours, and the reference's part of the configuration does not mention them."""
    stored = read_audiocraft(RECORDED / "lm_b")
    decoding = replace(stored.decoding, span_arrangement="spread", rescorer_weight=0.25, parity=False)
    save_audiocraft(replace(stored, decoding=decoding), tmp_path / "out")
    assert "span_arrangement" not in _config(tmp_path / "out")["generate"]["lm"]
    assert read_model(tmp_path / "out").decoding == decoding


def test_failure_in_the_middle_leaves_nothing(
    release: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    magnet = Magnet.from_pretrained(release("lm_a"))
    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UserError, match="No space left"):
        magnet.save_pretrained(tmp_path / "out", format="audiocraft")
    assert [folder.name for folder in tmp_path.iterdir()] == ["release_lm_a"]


def test_changed_weights_are_not_squeezed_into_fp16(tmp_path: Path) -> None:
    magnet = Magnet.from_pretrained(RECORDED / "lm_a")
    with torch.no_grad():
        magnet.lm.out_norm.bias += 1e-5
    magnet.save_pretrained(tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["lm.out_norm.bias"], magnet.lm.out_norm.bias)
    assert written["lm.heads"].dtype == torch.float16


def test_dry_run_of_an_upload_lists_the_files_and_needs_no_network(release: Callable[[str], Path]) -> None:
    magnet = Magnet.from_pretrained(release("lm_a"))
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


def _leaves(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Give each entry its full name; an empty section is an entry."""
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        leaves |= (
            _leaves(value, f"{prefix}{name}.")
            if isinstance(value, dict) and value
            else {prefix + name: value}
        )
    return leaves
