"""`inspect` through the real command line, on everything it can be pointed at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from datamodules.writer import ShardWriter
from magnet_train.cli.main import main
from magnet_train.tokens import CodecInfo

CODEC = CodecInfo(id="tiny", sha256="ab" * 32, sample_rate=16000, channels=1, frame_rate=50.0, n_q=2, card=8)


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    with ShardWriter(folder, CODEC) as writer:
        for number in range(10):
            tokens = np.array([[number % 2] * 100, list(range(4)) * 25])
            writer.add(f"clip{number}", tokens, {"text": "a [red] drum " * number, "bpm": 90})
    return folder


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in text.splitlines()]


def test_shards(shards: Path, capsys: Any) -> None:
    assert main(["inspect", str(shards)]) == 0
    shown = rows(capsys.readouterr().out)
    assert ["clips", "10"] in shown
    assert ["audio", "0.01 h"] in shown
    assert ["0", "2 of 8", "6", "2"] in shown  # one bit is in even use
    assert ["1", "4 of 8", "4", "4"] in shown
    assert ["empty", "1"] in shown
    assert ["clip2", "2.00", "a [red] drum a [red] drum"] in shown
    assert ["fields", "text 10, bpm 10"] in shown


def test_some_clips_of_many(shards: Path, capsys: Any) -> None:
    assert main(["inspect", str(shards), "--clips", "4"]) == 0
    assert "4 of 10 clips" in capsys.readouterr().out


def test_checkpoint(tmp_path: Path, capsys: Any) -> None:
    state = {
        "lm.layers.0.weight": torch.zeros(3, 5),
        "lm.layers.1.weight": torch.zeros(5),
        "text.w": torch.zeros(2),
    }
    checkpoint = {
        "state_dict": state,
        "current_model_state": state,
        "global_step": 120,
        "callbacks": {"DataPosition": {"slots": 960, "seed": 0}},
        "magnet_train": {"format": 1, "lm": {"dim": 48}, "codec": CODEC.to_dict(), "segment_duration": 10.0},
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert main(["inspect", str(tmp_path / "last.ckpt")]) == 0
    shown = rows(capsys.readouterr().out)
    for row in (
        ["lm.dim", "48"],
        ["codec.id", "tiny"],
        ["global_step", "120"],
        ["data position.slots", "960"],
        ["lm.layers", "2", "20"],
        ["all", "3", "22"],
    ):
        assert row in shown


def test_export(tmp_path: Path, capsys: Any) -> None:
    save_file({"lm.emb.weight": torch.zeros(4, 2)}, tmp_path / "model.safetensors")
    config = {"format": "magnet-train/1", "lm": {"n_q": 4}, "decoding": {"decoding_steps": [20, 10, 10, 10]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["inspect", str(tmp_path)]) == 0
    shown = rows(capsys.readouterr().out)
    assert ["decoding.decoding_steps", "[20, 10, 10, 10]"] in shown
    assert ["lm.emb", "1", "8"] in shown


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_malicious_checkpoint_does_nothing(tmp_path: Path, capsys: Any) -> None:
    torch.save({"state_dict": {}, "x": Bomb(tmp_path / "exploded")}, tmp_path / "evil.ckpt")
    assert main(["inspect", str(tmp_path / "evil.ckpt")]) == 1
    assert "not a readable checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("files", "target", "message"),
    [
        ({}, "nowhere", "there is nothing at"),
        ({"x.ckpt": b"hello"}, "x.ckpt", "not a readable checkpoint"),
        ({"config.json": b"{}"}, ".", "not a readable export"),
        ({}, ".", "holds no shards"),
    ],
)
def test_what_cannot_be_inspected(
    tmp_path: Path, capsys: Any, files: dict[str, bytes], target: str, message: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert main(["inspect", str(tmp_path / target)]) == 1
    assert message in capsys.readouterr().err


def test_an_export_of_somebody_else(tmp_path: Path, capsys: Any) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "encodec"}')
    assert main(["inspect", str(tmp_path)]) == 1
    assert "not of magnet-train" in capsys.readouterr().err


def test_a_checkpoint_without_weights(tmp_path: Path, capsys: Any) -> None:
    torch.save({"step": 1}, tmp_path / "x.ckpt")
    assert main(["inspect", str(tmp_path / "x.ckpt")]) == 1
    assert "holds no state_dict" in capsys.readouterr().err
