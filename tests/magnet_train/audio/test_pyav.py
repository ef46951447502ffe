"""MP4, WebM, Matroska, AAC and WMA, written by PyAV itself, and files of bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch

from magnet_train.audio import AudioStream, audio_seconds, read_audio
from magnet_train.audio.recording import header_of
from magnet_train.errors import UserError
from magnet_train.storage.file_source import StoredBytes

SECONDS = 3.0


def tone(rate: int, seconds: float = SECONDS) -> np.ndarray[Any, Any]:
    """A rising tone: no second of it is like another."""
    time = np.arange(round(rate * seconds)) / rate
    return (0.3 * np.sin(2 * np.pi * (300 + 100 * time) * time)).astype(np.float32)


def write(path: Path, codec: str, container: str, rate: int = 48_000, layout: str = "mono") -> Path:
    samples = np.repeat(tone(rate)[None], 2 if layout == "stereo" else 1, axis=0)
    if layout == "stereo":
        samples[1] *= 0.5
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        if codec == "wmav2":
            stream.bit_rate = 128_000  # it has no default
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    return path


FORMATS = [
    ("a.m4a", "aac", "mp4"),
    ("a.mp4", "alac", "mp4"),
    ("a.aac", "aac", "adts"),
    ("a.webm", "libopus", "webm"),
    ("a.mkv", "flac", "matroska"),
    ("a.wma", "wmav2", "asf"),
]


@pytest.mark.parametrize(("name", "codec", "container"), FORMATS)
def test_the_sound_is_that_which_was_written(name: str, codec: str, container: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, codec, container)
    audio = read_audio(path, 48_000, 1)[0]
    # of its encoder, which ADTS does not record; of WMA, ffmpeg leaves out a block more than its encoder added
    delay = {"adts": 1024, "asf": -2048}.get(container, 0)
    length = round(48_000 * SECONDS)
    assert min(0, delay) <= audio.shape[-1] - length <= delay + 2048
    expected = torch.from_numpy(tone(48_000))

    def likeness(place: int) -> float:
        """Correlation of a second of the file with that of the tone."""
        return float(
            torch.corrcoef(torch.stack([audio[place : place + 48_000], expected[48_000:96_000]]))[0, 1]
        )

    assert likeness(48_000 + delay) > 0.99  # the AAC encoder adds noise
    assert likeness(48_000 + delay) > max(likeness(48_000 + delay - 1), likeness(48_000 + delay + 1))
    assert audio_seconds(path) == pytest.approx(SECONDS, abs=0.08)
    assert header_of(path)[0] == (0.0 if container == "adts" else pytest.approx(SECONDS, abs=0.08))


@pytest.mark.parametrize(("name", "codec", "container"), FORMATS)
def test_a_part_is_that_part_of_the_whole(name: str, codec: str, container: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, codec, container)
    whole = read_audio(path, 48_000, 1)
    part = torch.cat(list(AudioStream(path, 48_000, 1, start=1.5, end=2.5)), dim=-1)
    torch.testing.assert_close(part, whole[:, 72_000:120_000], atol=1e-5, rtol=0)


def test_channels_stay_apart(tmp_path: Path) -> None:
    left, right = read_audio(write(tmp_path / "a.m4a", "aac", "mp4", layout="stereo"), 48_000, 2)
    assert float(left.std() / right.std()) == pytest.approx(2.0, rel=0.02)


def test_a_film_gives_its_sound(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as file:
        video = file.add_stream("mpeg4", rate=10, width=16, height=16, pix_fmt="yuv420p")
        audio = file.add_stream("aac", rate=48_000, layout="mono")
        for place in range(10):
            picture = av.VideoFrame.from_ndarray(np.zeros((24, 16), np.uint8), format="yuv420p")
            picture.pts = place
            for packet in video.encode(picture):
                file.mux(packet)
        sound = av.AudioFrame.from_ndarray(tone(48_000, 1.0)[None], format="fltp", layout="mono")
        sound.sample_rate, sound.pts = 48_000, 0
        for packet in [*video.encode(None), *audio.encode(sound), *audio.encode(None)]:
            file.mux(packet)
    assert audio_seconds(path) == pytest.approx(1.0, abs=0.05)


def test_a_film_without_sound(tmp_path: Path) -> None:
    path = tmp_path / "mute.mp4"
    with av.open(str(path), "w") as file:
        video = file.add_stream("mpeg4", rate=10, width=16, height=16, pix_fmt="yuv420p")
        picture = av.VideoFrame.from_ndarray(np.zeros((24, 16), np.uint8), format="yuv420p")
        for packet in [*video.encode(picture), *video.encode(None)]:
            file.mux(packet)
    with pytest.raises(UserError, match=r"mute\.mp4, an MP4 or M4A file, has no audio; remove it\."):
        read_audio(path, 48_000, 1)


def test_a_cut_file_gives_what_can_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", "flac", "matroska")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    stream = AudioStream(path, 48_000, 1)
    seconds = sum(block.shape[-1] for block in stream) / 48_000
    assert 0.5 < seconds < 2.5
    assert str(stream.shortfall).endswith("s that its header promises")


@pytest.mark.parametrize("keep", [20, 200, 1000])
def test_damaged_files_are_one_sentence(keep: int, tmp_path: Path) -> None:
    data = write(tmp_path / "a.m4a", "aac", "mp4").read_bytes()
    path = tmp_path / "b.m4a"
    path.write_bytes(data[:keep] + np.random.default_rng(keep).bytes(2000))
    with pytest.raises(UserError, match=r"b\.m4a"):
        read_audio(path, 48_000, 1)


def test_an_unknown_codec(tmp_path: Path) -> None:
    path = write(tmp_path / "a.webm", "libopus", "webm")
    path.write_bytes(path.read_bytes().replace(b"A_OPUS", b"A_XYZW"))
    with pytest.raises(UserError, match=r"cannot read .*a\.webm as audio \(its codec is unknown\)"):
        read_audio(path, 48_000, 1)


def test_bytes_are_read_as_files_are(tmp_path: Path) -> None:
    """Also by libsndfile, and with what is corrected in headers."""
    m4a = write(tmp_path / "a.m4a", "aac", "mp4")
    for path, subtype in (
        (tmp_path / "a.wav", "PCM_16"),
        (tmp_path / "a.mp3", None),
        (tmp_path / "a.flac", None),
    ):
        soundfile.write(path, tone(48_000), 48_000, subtype=subtype)
    joined = tmp_path / "joined.mp3"
    joined.write_bytes((tmp_path / "a.mp3").read_bytes() * 2)
    for path in (m4a, tmp_path / "a.wav", tmp_path / "a.mp3", tmp_path / "a.flac", joined):
        stored = StoredBytes("table.parquet/3", path.read_bytes())
        torch.testing.assert_close(read_audio(stored, 48_000, 1), read_audio(path, 48_000, 1), rtol=0, atol=0)
        assert audio_seconds(stored) == audio_seconds(path)
    assert audio_seconds(joined) >= 2 * SECONDS


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"table\.parquet/3 is empty \(0 bytes\)"),
        (b"<!DOCTYPE html><html>", r"table\.parquet/3 is a web page"),
        (b"RIFF, they said", r"cannot read table\.parquet/3 as audio"),
        (b"\x00\x00\x00\x1cftypisom" + bytes(100), r"cannot read table\.parquet/3 as audio"),
    ],
)
def test_bytes_that_are_not_audio(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_audio(StoredBytes("table.parquet/3", data), 48_000, 1)
