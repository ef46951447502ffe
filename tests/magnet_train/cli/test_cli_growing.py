"""`tokenize` given again after its folder changed, through the real command line and the packaged codec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from datamodules.shards.reading import ShardReader
from datamodules.shards.verify import verify_shards
from magnet_train.cli.main import main


def write_clip(audio: Path, number: int, text: str | None = None, seconds: float = 0.1) -> None:
    audio.mkdir(exist_ok=True)
    sound = 0.1 * np.random.default_rng(number).standard_normal(round(seconds * 8000))
    soundfile.write(audio / f"clip{number:04d}.wav", sound, 8000)
    (audio / f"clip{number:04d}.txt").write_text(text or f"noise {number}")


def tokenize(audio: Path, out: Path, *words: object) -> int:
    command = ["tokenize", "--audio", audio, "--out", out, "--codec", "quickstart", "--device", "cpu", *words]
    return main([str(word) for word in command])


def states(out: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.glob("*.tar")}


def captions(out: Path) -> dict[str, str]:
    assert verify_shards(out) == []
    reader = ShardReader(out)
    return {
        sample.key: sample.metadata["text"] for sample in (reader[number] for number in range(len(reader)))
    }


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    for number in range(10):
        write_clip(tmp_path / "audio", number)
    return tmp_path / "audio"


def test_everything_at_once(audio: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "shards"
    words = ("--files-per-shard", 4)
    assert tokenize(audio, out, *words) == 0
    before = states(out)
    capsys.readouterr()
    write_clip(audio, 20)
    write_clip(audio, 21)
    (audio / "clip0009.wav").unlink()
    (audio / "clip0005.txt").write_text("another caption")
    soundfile.write(audio / "copy.wav", *soundfile.read(audio / "clip0001.wav"))
    (audio / "copy.txt").write_text("a copy")
    assert tokenize(audio, out, *words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"reading {audio} as audio files: 12 clips"
    printed = printed[printed.index(f"{out}: 3 new, 1 removed, 1 caption changed, 8 kept") :]
    assert printed[1].startswith(f"{out} now has 11 clips")
    assert printed[2] == f"left out 2 files (1 duplicate, 1 removed); reasons in {out / 'report.jsonl'}"
    after = states(out)
    assert after["shard-000000.tar"] == before["shard-000000.tar"]
    assert after.keys() == {
        "shard-000000.tar",
        "shard-000001-1.tar",
        "shard-000002-1.tar",
        "shard-000003.tar",
    }
    expected = {f"clip{number:04d}": f"noise {number}" for number in (*range(9), 20, 21)}
    assert captions(out) == {**expected, "clip0005": "another caption"}
    assert tokenize(audio, out, *words) == 0
    assert capsys.readouterr().out.startswith(f"{out} was finished before: 11 clips")
    assert states(out) == after


def test_captions_alone_touch_no_audio(
    audio: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "shards"
    assert tokenize(audio, out) == 0
    tokens = [sample.tokens.tolist() for sample in map(ShardReader(out).__getitem__, range(10))]

    def refuse(*_: Any) -> Any:
        raise AssertionError("audio was read")

    monkeypatch.setattr("magnet_train.codecs.chunked.encode_blocks", refuse)
    monkeypatch.setattr("magnet_train.cli.clip_reading.MeasuredStream.__init__", refuse)
    for number in range(3):
        (audio / f"clip{number:04d}.txt").unlink()
        record = {"text": f"a caption {number}", "bpm": 90}
        (audio / f"clip{number:04d}.json").write_text(json.dumps(record))
    assert tokenize(audio, out) == 0
    assert f"{out}: 0 new, 0 removed, 3 captions changed, 7 kept" in capsys.readouterr().out
    reader = ShardReader(out)
    assert [reader[number].tokens.tolist() for number in range(10)] == tokens
    assert reader[1].metadata == {"text": "a caption 1", "source": "clip0001.wav", "bpm": "90"}
    assert captions(out)["clip0003"] == "noise 3"


def test_strict_and_a_caption_that_is_gone(audio: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "shards"
    assert tokenize(audio, out) == 0
    before = states(out)
    (audio / "clip0003.txt").unlink()
    assert tokenize(audio, out, "--strict") == 1
    assert "clip0003.wav cannot be used (no caption" in capsys.readouterr().err
    assert states(out) == before
    assert tokenize(audio, out) == 0
    assert len(captions(out)) == 9


@pytest.mark.slow
def test_ten_more_files_than_a_thousand(tmp_path: Path) -> None:
    """The shards of the thousand keep every byte, and their time."""
    audio, out = tmp_path / "audio", tmp_path / "shards"
    for number in range(1000):
        write_clip(audio, number, seconds=0.03)
    assert tokenize(audio, out) == 0
    before = states(out)
    assert len(before) == 4
    for number in range(1000, 1010):
        write_clip(audio, number, seconds=0.03)
    assert tokenize(audio, out) == 0
    after = states(out)
    assert after.keys() - before.keys() == {"shard-000004.tar"}
    assert {name: after[name] for name in before} == before
    assert len(captions(out)) == 1010
