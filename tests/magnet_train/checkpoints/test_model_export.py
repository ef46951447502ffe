"""Checkpoint to export to model: nothing changes on the way, and nothing goes missing in silence."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import Tensor

from magnet_train import Magnet
from magnet_train.errors import UserError

Change = Callable[[Callable[[dict[str, Any]], None]], Path]


def logits_of(magnet: Magnet) -> Tensor:
    """Logits of all codebooks, with texts, so that every weight has its say."""
    tokens = torch.randint(magnet.lm.card + 1, (2, 4, 24), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        hidden, mask = magnet.text(["a low bell", "a short high flute"])
        return torch.stack([magnet.lm(tokens, stage, hidden, mask) for stage in range(4)])


@pytest.fixture
def exported(checkpoint: Path, tmp_path: Path) -> Path:
    Magnet.from_pretrained(checkpoint).save_pretrained(tmp_path / "exported", licence="CC-BY-4.0")
    return tmp_path / "exported"


def test_export_gives_the_same_logits_as_the_checkpoint(checkpoint: Path, exported: Path) -> None:
    expected = logits_of(Magnet.from_pretrained(checkpoint))
    assert torch.equal(logits_of(Magnet.from_pretrained(exported)), expected)


def test_export_of_an_export_is_the_same(exported: Path, tmp_path: Path) -> None:
    Magnet.from_pretrained(exported).save_pretrained(tmp_path / "again", licence="CC-BY-4.0")
    assert (tmp_path / "again" / "config.json").read_text() == (exported / "config.json").read_text()
    first, second = (
        load_file(exported / "model.safetensors"),
        load_file(tmp_path / "again" / "model.safetensors"),
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("raw", "stored_as"), [(False, "state_dict"), (True, "current_model_state")])
def test_averaged_weights_unless_raw_ones_are_asked_for(checkpoint: Path, raw: bool, stored_as: str) -> None:
    content = torch.load(checkpoint, weights_only=True)
    assert not torch.equal(content["state_dict"]["lm.heads"], content["current_model_state"]["lm.heads"])
    magnet = Magnet.from_pretrained(checkpoint, raw=raw)
    for name, tensor in magnet.lm.state_dict().items():
        assert torch.equal(tensor, content[stored_as][f"lm.{name}"])
    for name, tensor in magnet.text.state_dict().items():
        assert torch.equal(tensor, content[stored_as][f"text.{name}"])


def test_settings_come_along(checkpoint: Path, exported: Path) -> None:
    magnet, again = Magnet.from_pretrained(checkpoint), Magnet.from_pretrained(exported)
    assert again.decoding == magnet.decoding
    assert again.decoding.decoding_steps == (3, 2, 2, 2)
    assert again.segment_duration == pytest.approx(0.48)
    assert again.lm.config == magnet.lm.config


def test_card_names_licence_codec_and_hash(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    config = json.loads((exported / "config.json").read_text())
    assert config["format"] == "magnet-train/1"
    assert config["licence"] == "CC-BY-4.0"
    for fact in ("license: cc-by-4.0", config["codec"]["sha256"], "quickstart", "from_pretrained", "32"):
        assert fact in card


def test_local_codec_travels_with_the_export(
    change_checkpoint: Change, checkpoint: Path, tmp_path: Path
) -> None:
    local = tmp_path / "my_codec"
    shutil.copytree(str(resources.files("magnet_train.apps.quickstart") / "codec"), local)
    changed = change_checkpoint(lambda content: content["magnet_train"]["codec"].update(id=str(local)))
    Magnet.from_pretrained(changed).save_pretrained(tmp_path / "exported")
    shutil.rmtree(local)
    moved = tmp_path / "moved"
    (tmp_path / "exported").rename(moved)
    assert str(tmp_path) not in (moved / "config.json").read_text()
    tokens = torch.zeros(1, 4, 24, dtype=torch.int64)
    expected = Magnet.from_pretrained(checkpoint).codec.decode(tokens)
    assert torch.equal(Magnet.from_pretrained(moved).codec.decode(tokens), expected)


def test_no_pickle_gets_into_an_export(change_checkpoint: Change, tmp_path: Path) -> None:
    """A local codec may have pickles beside its weights, or pickled weights only."""
    local = tmp_path / "my_codec"
    shutil.copytree(str(resources.files("magnet_train.apps.quickstart") / "codec"), local)
    torch.save({}, local / "optimizer.pt")
    changed = change_checkpoint(lambda content: content["magnet_train"]["codec"].update(id=str(local)))
    Magnet.from_pretrained(changed).save_pretrained(tmp_path / "exported")
    suffixes = {file.suffix for file in (tmp_path / "exported").rglob("*") if file.is_file()}
    assert suffixes <= {".json", ".safetensors", ".md"}

    torch.save(load_file(local / "model.safetensors"), local / "pytorch_model.bin")
    (local / "model.safetensors").unlink()
    sha256 = hashlib.sha256((local / "pytorch_model.bin").read_bytes()).hexdigest()
    changed = change_checkpoint(
        lambda content: content["magnet_train"]["codec"].update(id=str(local), sha256=sha256)
    )
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        Magnet.from_pretrained(changed).save_pretrained(tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_packaged_codec_travels_too(exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A later version's package may hold another one."""
    monkeypatch.setattr("magnet_train.codecs.packaged_codec", lambda: tmp_path / "gone")
    assert Magnet.from_pretrained(exported).codec.n_q == 4


@pytest.mark.parametrize(
    ("licence", "lines"),
    [
        ("MIT", "license: mit\n"),
        ("unspecified", "license: other\nlicense_name: unspecified\n"),
        ("ours: ask", "license: other\nlicense_name: 'ours: ask'\n"),
    ],
)
def test_card_is_one_that_the_hub_accepts(checkpoint: Path, tmp_path: Path, licence: str, lines: str) -> None:
    """The hub knows licences by lower-case names, and wants `other` for the rest."""
    Magnet.from_pretrained(checkpoint).save_pretrained(tmp_path / "out", licence=licence)
    assert f"---\n{lines}" in (tmp_path / "out" / "README.md").read_text()
    assert Magnet.from_pretrained(tmp_path / "out").licence == licence
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "magnet-train"


def test_others_may_read_an_export(exported: Path) -> None:
    assert all(path.stat().st_mode & 0o004 for path in [exported, *exported.rglob("*")])


def test_refuses_a_folder_in_use_and_leaves_it_alone(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="full"):
        Magnet.from_pretrained(checkpoint).save_pretrained(tmp_path / "full")
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_failure_in_the_middle_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    magnet = Magnet.from_pretrained(checkpoint)

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(UserError, match="No space left"):
        magnet.save_pretrained(tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []


def test_every_key_that_does_not_fit_is_named(exported: Path) -> None:
    weights = load_file(exported / "model.safetensors")
    del weights["lm.heads"]
    del weights["lm.text_proj.bias"]
    weights["lm.surplus"] = torch.zeros(1)
    weights["lm.out_norm.weight"] = torch.zeros(7)
    save_file(weights, exported / "model.safetensors")
    with pytest.raises(UserError) as caught:
        Magnet.from_pretrained(exported)
    for name in ("heads", "text_proj.bias", "surplus", "out_norm.weight", "[7]", "[16]"):
        assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_export_is_one_sentence(exported: Path, name: str, damage: str) -> None:
    file = exported / name
    content = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=name) as caught:
        Magnet.from_pretrained(exported)
    assert "\n" not in str(caught.value)


def test_empty_folder_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model"):
        Magnet.from_pretrained(tmp_path)


def test_folder_of_a_run_names_its_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(UserError, match=r"is the folder of a run; name its checkpoint, .*last\.ckpt\."):
        Magnet.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("lm", {"lm": {"n_q": 4, "surplus": 1}}),
        ("lm", {"lm": 3}),
        ("codec", {"codec": None}),
        ("segment_duration", {"segment_duration": "long"}),
        ("decoding", {"decoding": {"decoding_steps": [1], "surplus": 1}}),
    ],
)
def test_config_that_makes_no_sense_is_one_sentence(
    exported: Path, part: str, change: dict[str, Any]
) -> None:
    config = json.loads((exported / "config.json").read_text())
    (exported / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match="export it again"):
        Magnet.from_pretrained(exported)


def test_codec_of_another_size_than_the_model(exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    config["codec"]["card"] = 9
    (exported / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="of 9"):
        Magnet.from_pretrained(exported)


def test_keys_of_no_part_are_unexpected_too(exported: Path) -> None:
    weights = load_file(exported / "model.safetensors")
    save_file(weights | {"stray.weight": torch.zeros(1)}, exported / "model.safetensors")
    with pytest.raises(UserError, match=r"unexpected stray\.weight"):
        Magnet.from_pretrained(exported)


def test_trained_text_encoder_brings_its_vocabulary(exported: Path) -> None:
    assert json.loads((exported / "config.json").read_text())["text"]["name"] == "quickstart"
    assert (exported / "text" / "tokenizer.json").is_file()


def test_local_codec_that_is_gone_is_no_silent_loss(change_checkpoint: Change, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    magnet = Magnet.from_pretrained(
        change_checkpoint(lambda content: content["magnet_train"]["codec"].update(id=gone))
    )
    with pytest.raises(UserError, match="gone"):
        magnet.save_pretrained(tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_local_text_encoder_that_is_gone_is_no_silent_loss(change_checkpoint: Change, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")

    def freeze_text(content: dict[str, Any]) -> None:
        content["magnet_train"]["text"] = {"kind": "t5", "name": gone, "trainable": False, "max_length": 64}
        for name in ("state_dict", "current_model_state"):
            weights = content.get(name, {})
            for key in [key for key in weights if key.removeprefix("module.").startswith("text.")]:
                del weights[key]

    magnet = Magnet.from_pretrained(change_checkpoint(freeze_text))
    with pytest.raises(UserError, match="gone"):
        magnet.save_pretrained(tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
