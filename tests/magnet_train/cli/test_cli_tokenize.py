"""`tokenize` through the real command line and the packaged codec, on real audio files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from datamodules.reading import ShardReader
from datamodules.verify import verify_shards
from magnet_train.audio import read_audio
from magnet_train.cli.main import main
from magnet_train.codecs import load_codec


def write_tone(
    path: Path, seconds: float = 1.0, rate: int = 16_000, channels: int = 1, pitch: float = 440.0
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    tone = 0.3 * np.sin(2 * np.pi * pitch * time) * np.exp(-time)
    soundfile.write(path, np.repeat(tone[:, None], channels, axis=1), rate)


def write_caption(audio: Path, text: str) -> None:
    audio.with_suffix(".json").write_text(json.dumps({"text": text, "bpm": 90}))


def tokenize(*words: object) -> int:
    return main(["tokenize", *map(str, words), "--codec", "quickstart", "--device", "cpu"])


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Five usable files of several formats, rates and lengths, and one for each way of being useless."""
    folder = tmp_path / "audio"
    write_tone(folder / "mono.wav", 1.0, 16_000)
    write_tone(folder / "deep" / "stereo.wav", 2.0, 44_100, 2)
    write_tone(folder / "lossless.flac", 1.5, 48_000)
    write_tone(folder / "vorbis.ogg", 0.7, 22_050)
    write_tone(folder / "layer three.mp3", 1.2, 44_100, 2)
    for path in list(folder.rglob("*.*")):
        write_caption(path, f"a tone called {path.stem}")
    (folder / "broken.wav").write_bytes(b"RIFF, they said")
    soundfile.write(folder / "silent.wav", np.zeros(16_000), 16_000)
    soundfile.write(folder / "blip.wav", np.full(20, 0.5), 16_000)  # 10 samples at the codec's 8 kHz
    for name in ("broken", "silent", "blip"):
        write_caption(folder / f"{name}.wav", "useless")
    write_tone(folder / "mute about itself.wav")
    return folder


def test_a_mixed_folder(mixed: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "shards"
    assert tokenize("--audio", mixed, "--out", out) == 0
    reader = ShardReader(out)
    codec = load_codec("quickstart")
    assert reader.manifest.codec == codec.info
    lengths = {"deep__stereo": 2.0, "layer_three": 1.2, "lossless": 1.5, "mono": 1.0, "vorbis": 0.7}
    samples = [reader[number] for number in range(len(reader))]
    assert [sample.key for sample in samples] == list(lengths)
    for sample in samples:
        assert sample.tokens.shape[0] == codec.n_q
        assert abs(sample.tokens.shape[1] - lengths[sample.key] * codec.frame_rate) <= 6  # mp3 pads its ends
    assert samples[0].metadata == {"text": "a tone called stereo", "bpm": 90, "source": "deep/stereo.wav"}
    assert verify_shards(out) == []
    report = [json.loads(line) for line in (out / "report.jsonl").read_text().splitlines()]
    reasons = {Path(line["path"]).name: line["reason"] for line in report}
    assert set(reasons) == {"broken.wav", "silent.wav", "blip.wav", "mute about itself.wav"}
    assert reasons["broken.wav"].startswith("unreadable")
    assert reasons["silent.wav"] == "silent"
    assert reasons["blip.wav"].startswith("too short: 10 samples")
    assert reasons["mute about itself.wav"].startswith("no caption")
    printed = capsys.readouterr().out
    assert "wrote 5 clips" in printed
    assert "left out 4 files" in printed


def test_tokens_are_the_codecs_own(mixed: Path, tmp_path: Path) -> None:
    assert tokenize("--audio", mixed, "--out", tmp_path / "shards", "--workers", 1) == 0
    codec = load_codec("quickstart")
    sample = ShardReader(tmp_path / "shards")[2]
    audio = read_audio(mixed / "lossless.flac", codec.sample_rate, codec.channels)
    np.testing.assert_array_equal(sample.tokens, codec.encode(audio[None])[0].numpy())


def test_workers_change_no_byte(mixed: Path, tmp_path: Path) -> None:
    for workers in (1, 3):
        assert tokenize("--audio", mixed, "--out", tmp_path / f"w{workers}", "--workers", workers) == 0
    for path in (tmp_path / "w1").iterdir():
        assert path.read_bytes() == (tmp_path / "w3" / path.name).read_bytes()


def test_a_manifest(mixed: Path, tmp_path: Path) -> None:
    lines = [{"path": "mono.wav", "text": "one", "genre": "test"}, {"path": "gone.wav", "text": "two"}]
    (mixed / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert tokenize("--audio", mixed / "list.jsonl", "--out", tmp_path / "shards") == 0
    assert ShardReader(tmp_path / "shards")[0].metadata == {
        "text": "one",
        "genre": "test",
        "bpm": 90,  # from the .json beside it
        "source": "mono.wav",
    }
    (line,) = (tmp_path / "shards" / "report.jsonl").read_text().splitlines()
    assert "gone.wav" in line


def test_strict_stops_at_the_first_and_goes_on_without_strict(
    mixed: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "new" / "shards"
    assert tokenize("--audio", mixed, "--out", out, "--strict") == 1
    error = capsys.readouterr().err
    assert "blip.wav cannot be used (too short" in error
    assert not (out / "manifest.json").exists()
    assert tokenize("--audio", mixed, "--out", out) == 0
    assert len(ShardReader(out)) == 5
    (mixed / "blip.wav").unlink()
    assert tokenize("--audio", mixed, "--out", out, "--strict", "--overwrite") == 1
    assert "broken.wav cannot be used (unreadable" in capsys.readouterr().err


def test_nothing_usable_leaves_nothing(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "audio"
    folder.mkdir()
    assert tokenize("--audio", folder, "--out", tmp_path / "shards") == 1
    assert "holds no audio" in capsys.readouterr().err
    soundfile.write(folder / "a.wav", np.zeros(16_000), 16_000)
    assert tokenize("--audio", folder, "--out", tmp_path / "shards") == 1
    assert "1 no caption" in capsys.readouterr().err
    write_caption(folder / "a.wav", "x")
    assert tokenize("--audio", folder, "--out", tmp_path / "shards") == 1
    assert "none of the 1 files" in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()


def test_a_folder_in_use_is_not_touched(mixed: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "shards"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert tokenize("--audio", mixed, "--out", out) == 1
    assert "is not an empty folder" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("words", [[], ["--audio", "x"], ["--audio", "x", "--out", "y", "--workers", "0"]])
def test_wrong_usage(words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["tokenize", *words])


def test_not_a_number_is_unusable(tmp_path: Path, capsys: Any) -> None:
    samples = np.full(16_000, 0.1, dtype=np.float32)
    samples[5] = np.nan
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "a.wav", samples, 16_000, subtype="FLOAT")
    write_caption(tmp_path / "audio" / "a.wav", "x")
    assert tokenize("--audio", tmp_path / "audio", "--out", tmp_path / "shards") == 1
    assert "1 unreadable" in capsys.readouterr().err
