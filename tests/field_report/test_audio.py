"""Cases of the field report about audio files, through the real commands and on real files."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from datamodules.shards.reading import ShardReader
from magnet_train.cli.main import main

RATE = 8_000  # of the quickstart codec, whose frames are 50 a second


def write_noise(path: Path, seconds: float = 1.0, seed: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))
    soundfile.write(path, noise, RATE, **options)
    return path


def caption(folder: Path, text: str = "a sound") -> None:
    for root, folders, files in os.walk(folder):
        for name in files + folders:
            stem = os.path.splitext(name)[0]
            if not name.endswith(".txt") and len(stem) < 200:
                Path(root, f"{stem}.txt").write_text(text)


def tokenize(audio: Path, *words: str) -> int:
    out = audio.parent / "shards"
    return main(["tokenize", "--audio", str(audio), "--out", str(out), "--codec", "quickstart", *words])


def clips(audio: Path) -> dict[str, float]:
    """Return the seconds of each tokenized source."""
    reader = ShardReader(audio.parent / "shards")
    samples = [reader[number] for number in range(len(reader))]
    return {sample.metadata["source"]: sample.tokens.shape[1] / 50 for sample in samples}


def report(audio: Path) -> dict[str, str]:
    lines = (audio.parent / "shards" / "report.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    return {os.path.relpath(line["path"], audio): line["reason"] for line in map(json.loads, lines)}


@pytest.mark.case("A5")
def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    audio = tmp_path / "s"
    write_noise(audio / "own.wav")
    write_noise(tmp_path / "r" / "far.wav", seed=1)
    (audio / "linked").symlink_to("../r")
    (audio / "again").symlink_to("../r")
    (tmp_path / "r" / "back").symlink_to(audio)
    (audio / "above").symlink_to(tmp_path)
    (audio / "b.wav").symlink_to("own.wav")
    write_noise(audio / ".hidden" / "x.wav", seed=2)
    caption(audio)
    caption(tmp_path / "r")
    assert tokenize(audio) == 0
    assert clips(audio) == {"again/far.wav": 1.0, "own.wav": 1.0}
    assert report(audio) == {"b.wav": "duplicate: a link to own.wav"}


@pytest.mark.case("A14")
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_joined_and_cut_files(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    audio = tmp_path / "audio"
    first, second = (
        write_noise(tmp_path / f"{name}.{suffix}", seconds, seed).read_bytes()
        for seed, (name, seconds) in enumerate([("a", 4.0), ("b", 3.0)])
    )
    audio.mkdir()
    (audio / f"half.{suffix}").write_bytes(first[: len(first) // 2])
    (audio / f"joined.{suffix}").write_bytes(first + second)
    caption(audio)
    assert tokenize(audio) == 0
    found = clips(audio)
    assert found[f"joined.{suffix}"] == 7.0
    assert 0.5 < found[f"half.{suffix}"] < 3.0
    ((name, reason),) = report(audio).items()
    assert name == f"half.{suffix}"
    assert reason.startswith(f"partial: {found[name]:.1f} s could be read")
    assert suffix == "ogg" or reason.endswith("of the 4.0 s that its header promises")
    assert "read 1 file in part only" in capsys.readouterr().out


@pytest.mark.case("A15")
def test_floats_at_the_scale_of_integers(tmp_path: Path) -> None:
    audio = tmp_path / "audio"
    audio.mkdir()
    sound = np.random.default_rng(0).standard_normal(RATE).clip(-4, 4)
    soundfile.write(audio / "loud.wav", sound / 2, RATE, subtype="FLOAT")
    soundfile.write(audio / "sixteen.wav", sound * 13107 / np.abs(sound).max(), RATE, subtype="FLOAT")
    soundfile.write(audio / "whole.wav", np.rint(sound[:4000] * 5), RATE, subtype="DOUBLE")
    caption(audio)
    assert tokenize(audio) == 0
    assert list(clips(audio)) == ["loud.wav"]
    reasons = report(audio)
    assert reasons["sixteen.wav"].startswith("wrong scale: ")
    assert "floats up to 13107, the scale of 16-bit integers; divide them by 32768" in reasons["sixteen.wav"]
    assert reasons["whole.wav"].startswith("wrong scale: ")
    assert tokenize(audio, "--rescale") == 1  # other shards than those that are there
    assert tokenize(audio, "--rescale", "--overwrite") == 0
    assert list(clips(audio)) == ["loud.wav", "sixteen.wav", "whole.wav"]
    assert report(audio) == {}


@pytest.mark.case("B1")
def test_what_is_not_a_file(tmp_path: Path) -> None:
    """A pipe, a socket, a device, broken links, a folder and an empty file beside a good one."""
    audio = tmp_path / "audio"
    write_noise(audio / "good.wav")
    os.mkfifo(audio / "pipe.wav")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(audio / "socket.wav"))
    (audio / "device.wav").symlink_to("/dev/zero")
    (audio / "gone.wav").symlink_to("nowhere")
    (audio / "circle.wav").symlink_to("circle.wav")
    write_noise(audio / "folder.wav" / "inner.flac", seed=1)
    (audio / "empty.mp3").touch()
    (audio / "page.mp3").write_text("<!DOCTYPE html><html>" + "not found " * 999)
    (audio / "song.m4a").write_bytes(bytes(99))
    (audio / "song2.ape").write_bytes(bytes(99))
    caption(audio)
    assert tokenize(audio) == 0
    assert list(clips(audio)) == ["folder.wav/inner.flac", "good.wav"]
    reasons = report(audio)
    for name, words in {
        "pipe.wav": "is a pipe (fifo), not a file",
        "socket.wav": "is a socket",
        "device.wav": "is a device",
        "gone.wav": "is a link to nowhere, which does not exist",
        "circle.wav": "is a link in a loop of links",
        "folder.wav": "it is a folder",
        "empty.mp3": "is empty (0 bytes)",
        "page.mp3": "is a web page; download it again",
        "song.m4a": "Format not recognised",
        "song2.ape": "ape is not read: convert it",
    }.items():
        assert words in reasons.pop(name)
    assert not reasons


Mangle = Callable[[bytes], bytes]


def put(place: int, form: str, value: int) -> Mangle:
    return lambda data: data[:place] + struct.pack(form, value) + data[place + struct.calcsize(form) :]


@pytest.mark.case("B2")
def test_impossible_headers(tmp_path: Path) -> None:
    audio = tmp_path / "audio"
    wav = write_noise(audio / "good.wav").read_bytes()
    flac = write_noise(tmp_path / "good.flac").read_bytes()
    for name, words, mangle in (
        ("rate", "2147483647 samples a second", put(24, "<I", 2**31 - 1)),
        ("no_rate", "impossible sample rate", put(24, "<I", 0)),
        ("channels", "1000 channels", put(22, "<H", 1000)),
        ("no_channels", "Channel count is zero", put(22, "<H", 0)),
        ("no_samples", "no audio samples", lambda data: put(40, "<I", 0)(data)[:44]),
    ):
        (audio / f"{name}.wav").write_bytes(mangle(wav))
        (audio / name).write_text(words)
    (audio / "endless.flac").write_bytes(put(18, ">Q", int.from_bytes(flac[18:26], "big") | 2**36 - 1)(flac))
    caption(audio)
    assert tokenize(audio) == 0
    assert clips(audio) == {"endless.flac": 1.0, "good.wav": 1.0}
    reasons = report(audio)
    assert reasons.pop("endless.flac").startswith("partial: 1.0 s could be read of the ")
    for name, reason in reasons.items():
        assert (audio / Path(name).stem).read_text() in reason


@pytest.mark.case("B2")
def test_an_impossible_prompt(tmp_path: Path) -> None:
    """`generate --prompt`, `--edit` and the page read with `read_audio`."""
    from magnet_train.audio import read_audio
    from magnet_train.errors import UserError

    wav = write_noise(tmp_path / "good.wav").read_bytes()
    (tmp_path / "rate.wav").write_bytes(put(24, "<I", 2**31 - 1)(wav))
    os.mkfifo(tmp_path / "pipe.wav")
    for name, words in (("rate.wav", "2147483647 samples a second"), ("pipe.wav", "is a pipe")):
        with pytest.raises(UserError, match=words):
            read_audio(tmp_path / name, 8_000, 1)


@pytest.mark.case("B3")
def test_a_name_of_255_bytes(tmp_path: Path) -> None:
    audio = tmp_path / "audio"
    audio.mkdir()
    name = "y" * 251 + ".wav"  # there is no room for a .json beside it
    os.rename(write_noise(tmp_path / "short.wav"), audio / name)
    (audio / f"{'y' * 251}.txt").write_text("a sound")
    os.rename(write_noise(tmp_path / "other.wav", seed=1), audio / ("z" * 251 + ".wav"))
    assert tokenize(audio) == 0
    assert clips(audio) == {name: 1.0}
    assert report(audio) == {"z" * 251 + ".wav": "no caption: no .json or .txt beside it, and no tags in it"}


@pytest.mark.case("B3")
def test_a_name_of_255_bytes_is_evaluated_and_written(tmp_path: Path) -> None:
    from magnet_train.cli.evaluation.clips import read_side
    from magnet_train.storage.atomic_io import atomic_write

    os.rename(write_noise(tmp_path / "a" / "short.wav"), tmp_path / "a" / ("y" * 251 + ".wav"))
    side = read_side(tmp_path / "a")
    assert sum(block.shape[-1] for block in side.clips[0].blocks(RATE)) == RATE
    with atomic_write(tmp_path / ("z" * 250 + ".json")) as file:
        file.write(b"{}")
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == ["a", "z"]
