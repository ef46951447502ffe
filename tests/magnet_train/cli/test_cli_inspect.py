"""`inspect` through the real command line, on everything it can be pointed at."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from harness.shard_writer import ShardWriter
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
            writer.add(f"clip{number}", tokens, {"text": "a [red] drum " * number, "bpm": 90, "mood": None})
    return folder


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in text.splitlines()]


def test_shards(shards: Path, capsys: Any) -> None:
    assert main(["inspect", str(shards)]) == 0
    table_rows = rows(capsys.readouterr().out)
    assert ["clips", "10"] in table_rows
    assert ["audio", "20.0 s"] in table_rows
    assert ["0", "2 of 8", "6", "2"] in table_rows  # one bit is in even use
    assert ["1", "4 of 8", "4", "4"] in table_rows
    assert ["empty", "1"] in table_rows
    merged = "a [red] drum a [red] drum. bpm: 90"
    assert ["clip2", "2.00", "a [red] drum a [red] drum", merged] in table_rows
    lengths = [
        ("0", 1),
        ("1 to 4", 1),
        ("5 to 8", 1),
        ("9 to 16", 3),
        ("17 to 32", 4),
    ]  # of 0, 3, ... 27 words
    for words, clips in lengths:
        assert [words, str(clips), "█" * (10 * clips)] in table_rows
    assert ["1", "0    1    2    3    0    1    2    3    0    1"] in table_rows  # first tokens of codebook 1
    assert ["filled in", "bpm 10, text 9"] in table_rows


def test_some_clips_of_many(shards: Path, capsys: Any) -> None:
    assert main(["inspect", str(shards), "--clips", "4"]) == 0
    assert "4 of 10 clips" in capsys.readouterr().out


@pytest.fixture
def change(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that knows where in its data it is."""
    content = torch.load(checkpoint, weights_only=True)
    content["callbacks"]["DataPosition"] = {"slots": 960, "seed": 0}
    content["magnet_train"] |= {"licence": "CC-BY-NC-4.0", "data": {"clips": 1400, "hours": 0.5}}
    torch.save(content, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def facts_of(path: Path, capsys: Any) -> dict[str, str]:
    assert main(["inspect", str(path)]) == 0
    return {row[0]: row[1] for row in rows(capsys.readouterr().out) if len(row) == 2}


def test_checkpoint(change: Path, capsys: Any) -> None:
    assert main(["inspect", str(change)]) == 0
    output = capsys.readouterr().out
    facts = {row[0]: row[1] for row in rows(output) if len(row) == 2}
    assert facts["kind"] == "checkpoint of magnet-train, averaged weights with the raw ones beside them"
    assert facts["architecture"].startswith("1 layers, width 16, 2 heads, ")
    assert facts["training"] == "steps 3, clips seen 960, weights ema"
    assert facts["data"] == "clips 1,400, hours 0.5"
    assert facts["licence"] == "CC-BY-NC-4.0"
    assert facts["codec"].startswith("quickstart, 4 codebooks of 256, 50 frames/s")
    assert facts["text encoder"].startswith("T5 quickstart, trained along")
    assert facts["file last.ckpt"].endswith(hashlib.sha256(change.read_bytes()).hexdigest())
    stored = torch.load(change, weights_only=True)["state_dict"]
    heads = f"{stored['lm.heads'].numel():,}"
    total = f"{sum(tensor.numel() for tensor in stored.values()):,}"
    assert ["lm.heads", "1", heads, "float32"] in rows(output)
    assert ["all", str(len(stored)), total, "float32"] in rows(output)


def test_export(change: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["export", "--checkpoint", str(change), "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    facts = facts_of(tmp_path / "out", capsys)
    assert facts["kind"] == "export of magnet-train"
    assert facts["data"] == "clips 1,400, hours 0.5"
    assert "decoding_steps (3, 2, 2, 2)" in facts["decoding"]
    weights = hashlib.sha256((tmp_path / "out" / "model.safetensors").read_bytes()).hexdigest()
    assert facts["file out/model.safetensors"].endswith(weights)
    assert {"file out/codec/model.safetensors", "file out/text/tokenizer.json"} <= facts.keys()


@pytest.mark.parametrize("file", ["", "state_dict.bin"])
def test_model_of_audiocraft(file: str, capsys: Any) -> None:
    recorded = Path(__file__).parents[2] / "reference" / "data" / "lm_a"
    assert main(["inspect", str(recorded / file)]) == 0
    output = capsys.readouterr().out
    facts = {row[0]: row[1] for row in rows(output) if len(row) == 2}
    assert facts["kind"].startswith("model of audiocraft")
    assert facts["codec"].endswith("hash unknown")
    assert facts["text encoder"].startswith("T5 t5-base, frozen")
    assert facts["licence"] == "unspecified"
    assert any(row[0] == "all" and row[-1] == "float16" for row in rows(output))


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_malicious_checkpoint_does_nothing(tmp_path: Path, capsys: Any) -> None:
    torch.save({"state_dict": {}, "x": Bomb(tmp_path / "exploded")}, tmp_path / "evil.ckpt")
    assert main(["inspect", str(tmp_path / "evil.ckpt")]) == 1
    assert "could run code" in capsys.readouterr().err
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("files", "target", "message"),
    [
        ({}, "nowhere", "there is nothing at"),
        ({"x.ckpt": b"hello"}, "x.ckpt", "x.ckpt is not a checkpoint or a weights file of torch; check"),
        ({"a.wav": b"RIFF"}, "a.wav", "a.wav is not a checkpoint or a weights file of torch; check"),
        ({"x.ckpt": b""}, "x.ckpt", "x.ckpt is not a checkpoint or a weights file of torch; check"),
        ({"x.ckpt": b"PK\x03\x04 cut"}, "x.ckpt", "x.ckpt is cut short or damaged; copy or save it again.\n"),
        ({"x.ckpt": b"\x80\x02 cut"}, "x.ckpt", "x.ckpt is damaged or holds objects"),
        ({"config.json": b"{}"}, ".", "is not of format"),
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


def test_a_number_of_clips_below_none(shards: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["inspect", str(shards), "--clips", "-3"])
    assert "argument --clips: -3 is not at least 0" in capsys.readouterr().err


def test_an_export_of_somebody_else(tmp_path: Path, capsys: Any) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "encodec"}')
    assert main(["inspect", str(tmp_path)]) == 1
    assert "is not of format magnet-train/1" in capsys.readouterr().err


def test_a_checkpoint_without_weights(tmp_path: Path, capsys: Any) -> None:
    torch.save({"step": 1}, tmp_path / "x.ckpt")
    assert main(["inspect", str(tmp_path / "x.ckpt")]) == 1
    assert "not written by magnet-train" in capsys.readouterr().err
