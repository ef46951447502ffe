"""Clips are brought to a loudness, measured here by the standard's own filters."""

from __future__ import annotations

import math
from pathlib import Path

import bs1770
import numpy as np
import pytest
import soundfile
import torch

from magnet_train.audio import write_audio
from magnet_train.audio.resampling import integrated_loudness
from magnet_train.errors import UserError


def music(rate: int, channels: int, seconds: float = 3.0) -> torch.Tensor:
    """Chords under falling noise, the channels unlike, with a second of silence: every part of the measure counts."""
    time = np.arange(round(seconds * rate)) / rate
    rng = np.random.default_rng(3)
    parts = [
        np.sin(2 * np.pi * 110 * (number + 1) * time) * 0.2
        + 0.1 * np.exp(-time) * rng.standard_normal(len(time)) * (number + 1)
        for number in range(channels)
    ]
    audio = np.stack(parts) * (time < seconds - 1)
    return torch.from_numpy((audio / np.abs(audio).max() * 0.5).astype(np.float32))


def test_the_measure_of_the_tests_is_calibrated() -> None:
    """The standard's own signal: 997 Hz at full scale in one channel has -3.01."""
    tone = np.sin(2 * np.pi * 997 * np.arange(48_000) / 48_000)[None]
    assert bs1770.loudness(tone, 48_000) == pytest.approx(-3.01, abs=0.02)


@pytest.mark.parametrize(
    ("rate", "channels"), [(48_000, 2), (44_100, 2), (32_000, 1), (16_000, 1), (8_000, 1)]
)
@pytest.mark.parametrize("gain", [1.0, 0.01])
def test_loudness_is_that_of_the_standard(rate: int, channels: int, gain: float) -> None:
    audio = gain * music(rate, channels)
    assert integrated_loudness(audio, rate) == pytest.approx(bs1770.loudness(audio.numpy(), rate), abs=0.1)


def test_full_scale_is_not_clipped_by_the_filters() -> None:
    noise = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (2, 96_000)).astype(np.float32))
    assert integrated_loudness(noise, 48_000) == pytest.approx(
        bs1770.loudness(noise.numpy(), 48_000), abs=0.1
    )


@pytest.mark.parametrize("target", [-14.0, -23.0])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_file_has_the_loudness_asked_for(tmp_path: Path, target: float, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    reached = write_audio(path, 0.1 * music(32_000, 2), 32_000, target)
    assert reached == pytest.approx(target)
    samples, rate = soundfile.read(path, dtype="float32")
    assert bs1770.loudness(samples.T, rate) == pytest.approx(target, abs=0.1)


def test_peaks_limit_the_gain(tmp_path: Path) -> None:
    audio = 0.05 * music(32_000, 1)
    audio[0, 5] = 0.8
    reached = write_audio(tmp_path / "clip.wav", audio, 32_000, -14.0)
    samples, _ = soundfile.read(tmp_path / "clip.wav", dtype="float32", always_2d=True)
    assert np.abs(samples).max() == pytest.approx(10 ** (-1 / 20), abs=1e-4)
    assert reached is not None
    assert reached < -20  # far from -14
    assert reached == pytest.approx(bs1770.loudness(samples.T, 32_000), abs=0.1)


def test_silence_and_no_target_are_left_alone(tmp_path: Path) -> None:
    assert write_audio(tmp_path / "silent.wav", torch.zeros(2, 32_000), 32_000, -14.0) is None
    assert not soundfile.read(tmp_path / "silent.wav")[0].any()
    assert (
        write_audio(tmp_path / "noise.wav", 1e-5 * music(32_000, 1), 32_000, -14.0) is None
    )  # below -70 LUFS
    assert write_audio(tmp_path / "plain.wav", music(32_000, 1), 32_000) is None
    assert (tmp_path / "noise.wav").stat().st_size == (tmp_path / "plain.wav").stat().st_size
    assert integrated_loudness(torch.zeros(1, 0), 32_000) == -math.inf


def test_a_clip_shorter_than_a_block_has_the_loudness_of_its_repetition(tmp_path: Path) -> None:
    write_audio(tmp_path / "short.wav", 0.1 * music(32_000, 1)[:, :6_400], 32_000, -20.0)
    samples, _ = soundfile.read(tmp_path / "short.wav", dtype="float32")
    assert bs1770.loudness(np.tile(samples, 10)[None], 32_000) == pytest.approx(-20, abs=0.2)


@pytest.mark.parametrize("suffix", ["flac", "mp3", "ogg"])
def test_other_formats_hold_the_samples_of_the_wav(tmp_path: Path, suffix: str) -> None:
    audio = music(32_000, 2)
    for name in ("clip.wav", f"clip.{suffix}", f"again.{suffix}"):
        write_audio(tmp_path / name, audio, 32_000)
    wav, _ = soundfile.read(tmp_path / "clip.wav", dtype="int16")
    other, rate = soundfile.read(tmp_path / f"clip.{suffix}", dtype="int16")
    again, _ = soundfile.read(tmp_path / f"again.{suffix}", dtype="int16")
    info = soundfile.info(tmp_path / f"clip.{suffix}")
    assert (info.format, rate) == (suffix.upper(), 32_000)
    assert np.array_equal(other, again)
    if suffix == "flac":
        assert np.array_equal(other, wav)
    else:
        assert abs(len(other) - len(wav)) < 0.1 * 32_000
        assert np.abs(np.fft.rfft(other[:, 0])).argmax() == pytest.approx(330, abs=20)  # 110 Hz of 3 s
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["clip.wav", f"clip.{suffix}", f"again.{suffix}"]
    )


def test_a_rate_that_a_format_lacks_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"clip\.mp3 cannot be written as MP3 \(MPEG.* sample rates of 8000.*; choose wav"
    ):
        write_audio(tmp_path / "clip.mp3", torch.zeros(1, 1000), 10_000)
    assert not list(tmp_path.iterdir())
