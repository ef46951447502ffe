"""Joined, truncated and miscounted files in each container, and random damage to headers."""

from __future__ import annotations

import io
import resource
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from datamodules.tokenize.captions import describe
from magnet_train.audio import AudioStream, audio_seconds, read_audio
from magnet_train.audio.recording import header_of
from magnet_train.errors import UserError

RATE = 8_000
FORMATS = {
    "wav": {"format": "WAV"},
    "float.wav": {"format": "WAV", "subtype": "FLOAT"},
    "rf64": {"format": "RF64"},
    "w64": {"format": "W64"},
    "aiff": {"format": "AIFF"},
    "au": {"format": "AU"},
    "caf": {"format": "CAF"},
    "flac": {"format": "FLAC"},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3"},
}


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))


def encode(kind: str, seconds: float, seed: int = 0) -> bytes:
    data = io.BytesIO()
    soundfile.write(data, noise(seconds, seed), RATE, **FORMATS[kind])
    return data.getvalue()


def read(path: Path) -> tuple[float, str | None]:
    stream = AudioStream(path, RATE, 1)
    return sum(block.shape[-1] for block in stream) / RATE, stream.shortfall


@pytest.mark.parametrize("kind", FORMATS)
def test_joined_files_are_read_from_end_to_end(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"joined.{kind}"
    path.write_bytes(encode(kind, 2.0) + encode(kind, 1.5, seed=1) + encode(kind, 1.0, seed=2))
    assert read(path) == (4.5, None)
    assert audio_seconds(path) == 4.5
    (tmp_path / f"alone.{kind}").write_bytes(encode(kind, 1.5, seed=1))
    second = torch.cat(list(AudioStream(path, RATE, 1, start=2.0, end=3.5)), dim=-1)
    torch.testing.assert_close(second, read_audio(tmp_path / f"alone.{kind}", RATE, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_file_is_reported(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"cut.{kind}"
    data = encode(kind, 4.0)
    path.write_bytes(data[: len(data) // 2])
    seconds, shortfall = read(path)
    assert 0.5 < seconds < 2.5
    assert shortfall is not None
    assert shortfall.startswith(f"{seconds:.1f} s could be read")
    with pytest.warns(UserWarning, match="could be read"):
        read_audio(path, RATE, 1)


def test_joined_files_of_other_rates_and_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "joined.ogg"
    faster = io.BytesIO()
    soundfile.write(faster, noise(2.0), 2 * RATE, format="OGG")
    path.write_bytes(encode("ogg", 1.0) + faster.getvalue())
    assert read(path) == (2.0, None)
    second = bytearray(encode("ogg", 1.0, seed=1))
    second[40:48] = bytes(8)  # its header
    path.write_bytes(encode("ogg", 1.0) + second)
    assert read(path) == (1.0, "1.0 s could be read, and the file breaks off there")


Mangle = Callable[[bytes], bytes]


def size_after(name: bytes, form: str, value: int) -> Mangle:
    def mangle(data: bytes) -> bytes:
        place = data.index(name) + len(name) + (12 if form == "<Q" else 0)  # W64 has names of 16 bytes
        return data[:place] + struct.pack(form, value) + data[place + struct.calcsize(form) :]

    return mangle


def flac_total(value: int) -> Mangle:
    def mangle(data: bytes) -> bytes:
        packed = int.from_bytes(data[18:26], "big") >> 36 << 36 | value
        return data[:18] + packed.to_bytes(8, "big") + data[26:]

    return mangle


@pytest.mark.parametrize(
    ("kind", "mangle"),
    [
        *(("wav", size_after(b"data", "<I", size)) for size in (0, 1000, 0x7FFFF000, 2**31, 2**32 - 1)),
        *(("aiff", size_after(b"SSND", ">I", size)) for size in (0, 1008, 2**32 - 1)),
        *(("caf", size_after(b"data", ">q", size)) for size in (-1, 0, 1004, 2**63 - 1)),
        *(("w64", size_after(b"data", "<Q", size)) for size in (0, 1024, 2**64 - 1)),
        *(("au", lambda d, n=size: d[:8] + struct.pack(">I", n) + d[12:]) for size in (0, 1000, 2**32 - 1)),
        *(("flac", flac_total(total)) for total in (0, 1000)),
        ("mp3", lambda data: data.replace(b"Xing", bytes(4))),
        ("mp3", lambda data: data[: data.index(b"Xing") + 8] + bytes([0, 0, 0, 9]) + data[data.index(b"Xing") + 12 :]),
    ],
)  # fmt: skip
def test_a_wrong_count_is_corrected(tmp_path: Path, kind: str, mangle: Mangle) -> None:
    path = tmp_path / f"miscounted.{kind}"
    path.write_bytes(mangle(encode(kind, 4.0)))
    seconds, shortfall = read(path)
    assert seconds == pytest.approx(4.0, abs=0.2 if kind == "mp3" else 0.01)  # with an encoder's padding
    assert shortfall is None
    assert audio_seconds(path) == pytest.approx(seconds, abs=0.001)


def test_chunks_and_padding_behind_the_samples_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    data = encode("wav", 1.0)
    for behind in (b"LIST" + struct.pack("<I", 2000) + bytes(2000), b"TAG" + bytes(125), bytes(4096)):
        path.write_bytes(data + behind)
        assert read(path) == (1.0, None)


def test_a_flac_that_ends_in_its_header_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "short.flac"
    for size in (8, 26, 41):
        path.write_bytes(encode("flac", 1.0)[:size])
        with pytest.raises(UserError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "length must" not in str(caught.value)  # Python's own words


def test_a_constant_has_no_swing(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "dc.wav", np.full(RATE, 0.5), RATE)
    stream = AudioStream(tmp_path / "dc.wav", RATE, 1)
    assert float(next(iter(stream)).abs().max()) == 0.5
    assert stream.swing == 0


@contextmanager
def no_memory_beyond(size: int) -> Iterator[None]:
    """Make allocations fail beyond `size` bytes more than are in use."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as pages:
        now = int(pages.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


GOOD = {kind: encode(kind, 0.4) for kind in FORMATS}
EDITS = st.lists(
    st.tuples(st.integers(0, 160), st.one_of(st.binary(min_size=1, max_size=8), st.just(b"\xff" * 4))),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=60, deadline=10_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS, length=st.integers(0, 10**5))
@example(edits=[(24, struct.pack("<I", 2**31 - 1))], length=10**5)
@example(edits=[(17, b"\x00")], length=104)  # all of the samples that an RF64 header promises are missing
def test_mangled_headers(tmp_path: Path, kind: str, edits: list[tuple[int, bytes]], length: int) -> None:
    """The result is samples or one sentence, in bounded memory and time; so is that of reading tags."""
    data = bytearray(GOOD[kind])
    for place, piece in edits:
        data[place : place + len(piece)] = piece
    path = tmp_path / f"mangled.{kind}"
    path.write_bytes(data[:length])
    with no_memory_beyond(2**30), warnings.catch_warnings():
        warnings.simplefilter("error")
        message = ""
        try:
            for block in AudioStream(path, 16_000, 1):
                assert block.isfinite().all()
        except UserError as error:
            message = str(error)
        assert not message or str(path) in message
        assert "emory" not in message
        with suppress(UserError):
            assert audio_seconds(path) >= 0
        assert header_of(path)[0] >= 0
        assert describe(path, {"text": "x"})["text"] == "x"
