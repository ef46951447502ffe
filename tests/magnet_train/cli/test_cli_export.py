"""`export` through the real command line, and back in through `generate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from magnet_train.cli.main import main
from magnet_train.models.transformer import count_parameters
from magnet_train.pipeline.magnet import Magnet


def export(checkpoint: Path, out: Path, *options: str) -> int:
    return main(["export", "--checkpoint", str(checkpoint), "--out", str(out), *options])


@pytest.mark.parametrize(("options", "stored_as"), [([], "state_dict"), (["--raw"], "current_model_state")])
def test_writes_exactly_the_weights_of_the_checkpoint(
    checkpoint: Path, tmp_path: Path, options: list[str], stored_as: str
) -> None:
    assert export(checkpoint, tmp_path / "out", *options) == 0
    expected = torch.load(checkpoint, weights_only=True)[stored_as]
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in written)


def test_prints_what_it_wrote(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(checkpoint, tmp_path / "out", "--licence", "CC0-1.0") == 0
    printed = capsys.readouterr().out
    magnet = Magnet.from_pretrained(checkpoint)
    lm, text = count_parameters(magnet.lm), sum(p.numel() for p in magnet.text.parameters())
    assert f"wrote {tmp_path / 'out'}: a transformer of {lm:,} parameters, averaged" in printed
    assert (
        f"{lm:,} parameters and {text:,} of the text encoder" in (tmp_path / "out" / "README.md").read_text()
    )
    assert json.loads((tmp_path / "out" / "config.json").read_text())["licence"] == "CC0-1.0"
    assert {"README.md", "config.json", "model.safetensors"} <= {f.name for f in (tmp_path / "out").iterdir()}
    assert [folder.name for folder in tmp_path.iterdir()] == ["out"]


def test_export_and_checkpoint_make_the_same_audio(checkpoint: Path, tmp_path: Path) -> None:
    assert export(checkpoint, tmp_path / "out") == 0
    for model, clips in ((checkpoint, "a"), (tmp_path / "out", "b")):
        options = ["--text", "a low bell", "--seed", "4", "--out", str(tmp_path / clips)]
        assert main(["generate", "--model", str(model), *options]) == 0
    first, second = (next((tmp_path / clips).glob("*.wav")) for clips in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_refuses_a_folder_in_use(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert export(checkpoint, tmp_path) == 1
    assert "choose another" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_unreadable_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.ckpt").write_bytes(b"PK\x03\x04 cut")
    assert export(tmp_path / "bad.ckpt", tmp_path / "out") == 1
    assert "bad.ckpt" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unknown_format_exits_2(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        export(checkpoint, tmp_path / "out", "--format", "onnx")
    assert caught.value.code == 2


def test_a_strength_without_an_adapter(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(checkpoint, tmp_path / "out", "--adapter-strength", "2") == 1
    assert "needs --adapter CKPT" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
