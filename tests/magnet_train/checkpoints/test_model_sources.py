"""Whatever is named instead of a model gets one sentence, and none of its code runs."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch

from magnet_train import Magnet
from magnet_train.errors import UserError

Change = Callable[[Callable[[dict[str, Any]], None]], Path]


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def refusal(source: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        Magnet.from_pretrained(source)
    message = str(caught.value)
    assert "\n" not in message
    assert str(source) in message
    return message


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_pickle_that_would_run_code_is_refused(tmp_path: Path, save: Callable[[Any, Path], None]) -> None:
    mark, path = tmp_path / "ran", tmp_path / "evil.ckpt"
    save({"state_dict": {}, "magnet_train": Trap(mark)}, path)
    assert "could run code" in refusal(path)
    assert not mark.exists()


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_truncated_checkpoint(checkpoint: Path, tmp_path: Path, share: float) -> None:
    content = checkpoint.read_bytes()
    path = tmp_path / "cut.ckpt"
    path.write_bytes(content[: int(len(content) * share)])
    refusal(path)


def test_checkpoint_of_another_project(tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "other.ckpt")
    assert "not written by magnet-train" in refusal(tmp_path / "other.ckpt")


def test_file_that_is_no_dict(tmp_path: Path) -> None:
    torch.save(torch.zeros(2), tmp_path / "tensor.ckpt")
    refusal(tmp_path / "tensor.ckpt")


def test_missing_path(tmp_path: Path) -> None:
    refusal(tmp_path / "nowhere" / "last.ckpt")


def test_checkpoint_of_a_later_format(change_checkpoint: Change) -> None:
    path = change_checkpoint(lambda content: content["magnet_train"].update(format=2))
    assert "update" in refusal(path)


def test_checkpoint_with_missing_and_misshapen_weights(change_checkpoint: Change) -> None:
    def damage(content: dict[str, Any]) -> None:
        del content["state_dict"]["lm.text_proj.bias"]
        content["state_dict"]["lm.heads"] = torch.zeros(3, 2, 1)

    message = refusal(change_checkpoint(damage))
    assert "text_proj.bias" in message
    assert "[3, 2, 1]" in message


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model"])
def test_hub_id_without_network(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert "network" in refusal(name)


@pytest.mark.parametrize("missing", ["lm", "text", "codec", "decoding", "segment_duration"])
def test_checkpoint_that_lacks_a_setting(change_checkpoint: Change, missing: str) -> None:
    assert missing in refusal(change_checkpoint(lambda content: content["magnet_train"].pop(missing)))


def test_checkpoint_of_sizes_that_cannot_be(change_checkpoint: Change) -> None:
    path = change_checkpoint(lambda content: content["magnet_train"]["lm"].update(num_heads=7))
    assert "a model that cannot be built" in refusal(path)


def test_checkpoint_without_weights(change_checkpoint: Change) -> None:
    refusal(change_checkpoint(lambda content: content.pop("state_dict")))


def test_average_that_was_never_updated_gives_way_to_the_raw_weights(change_checkpoint: Change) -> None:
    path = change_checkpoint(lambda content: content["averaging_state"]["n_averaged"].zero_())
    raw = torch.load(path, weights_only=True)["current_model_state"]
    assert torch.equal(Magnet.from_pretrained(path).lm.heads, raw["lm.heads"])
