"""Measures of sound on signals whose level, slope and tempo are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from magnet_train.audio.log_mel import log_mel, log_mel_distance
from magnet_train.evaluation.sound import (
    Levels,
    measure_clip,
    measure_spectrum,
    measure_tempo,
    summarize_pairs,
    summarize_side,
    tempo_agrees,
)

RATE = 24_000


def noise(slope: float = 0.0, seconds: float = 4.0, seed: int = 0) -> torch.Tensor:
    """Return noise whose power density falls by `slope` dB per octave."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft(rng.standard_normal(int(seconds * RATE)))
    frequencies = np.fft.rfftfreq(int(seconds * RATE), 1 / RATE).clip(min=20)
    shaped = np.fft.irfft(spectrum * 10 ** (slope * np.log2(frequencies / 1000) / 20))
    return torch.from_numpy(0.1 * shaped / shaped.std()).float()


def sine(pitch: float, level: float = 0.1, seconds: float = 2.0) -> torch.Tensor:
    return level * torch.sin(2 * math.pi * pitch * torch.arange(int(seconds * RATE)) / RATE)


def clicks(bpm: float, seconds: float = 8.0) -> torch.Tensor:
    audio = 1e-3 * noise(seconds=seconds)
    for beat in range(int(seconds * bpm / 60)):
        first = round(beat * 60 / bpm * RATE)
        audio[first : first + 200] += 0.5 * noise(seconds=200 / RATE)[: len(audio) - first]
    return audio


@pytest.mark.parametrize("slope", [0.0, -3.0, -6.0, 2.0])
def test_tilt_is_the_slope_of_the_power_density(slope):
    sound, _ = measure_clip(noise(slope), RATE)
    assert sound.tilt == pytest.approx(slope, abs=0.2)


def test_loudness_of_the_sine_of_the_standard():
    sound, _ = measure_clip(sine(997, level=0.1), RATE)
    assert sound.loudness == pytest.approx(-23.0, abs=0.1)  # BS.1770: 0 dB of full scale gives -3.01


def test_silence_is_the_share_of_silent_frames():
    half = torch.cat([noise(seconds=1.5), torch.zeros(3 * RATE // 2)])
    assert measure_clip(half, RATE)[0].silent_frames == pytest.approx(0.5)
    assert measure_clip(half * 1e-3, RATE)[0].silent_frames == 1  # -80 dB


@pytest.mark.parametrize("samples", [1, 100, 40_000])
def test_silence_of_any_length_has_no_loudness_spectrum_or_tilt(samples):
    sound, levels = measure_clip(torch.zeros(samples), RATE)
    assert (sound.silent_frames, sound.loudness, sound.spectrum, sound.tilt) == (1, None, None, None)
    assert levels.isfinite().all()


@pytest.mark.parametrize("samples", [1, 10, 700])
def test_a_clip_shorter_than_a_window_is_measured(samples):
    sound, _ = measure_clip(
        torch.full((samples,), 0.5) * torch.tensor([1.0, -1.0]).repeat(350)[:samples], RATE
    )
    assert sound.silent_frames == 0


def test_the_average_spectrum_does_not_depend_on_loudness():
    quiet, loud, dark = (measure_clip(audio, RATE)[0] for audio in (noise(), 5 * noise(), noise(-6)))
    same, other = measure_spectrum([quiet], [loud]), measure_spectrum([quiet], [dark])
    assert same is not None
    assert other is not None
    assert same.distance == pytest.approx(0, abs=1e-3)
    assert other.distance > 5
    assert other.equal is None


def test_equal_sizes_tell_real_from_other_clips():
    real = [measure_clip(noise(-3, seed=n), RATE)[0] for n in range(8)]
    ours = [measure_clip(noise(-4, seed=n), RATE)[0] for n in range(8, 12)]
    distance = measure_spectrum(ours, real)
    assert distance is not None
    assert distance.equal is not None
    assert distance.equal.clips == distance.equal.reference_clips == 4
    assert distance.equal.real.mean < distance.equal.generated.mean / 5
    assert measure_spectrum(ours, real) == distance
    silent, _ = measure_clip(torch.zeros(RATE), RATE)
    assert measure_spectrum([silent], real) is None


def test_log_mel_distance_is_in_decibels():
    spectrum, louder = log_mel(noise(), RATE), log_mel(2 * noise(), RATE)
    assert log_mel_distance(spectrum, spectrum) == 0
    assert log_mel_distance(spectrum, louder) == pytest.approx(20 * math.log10(2), abs=0.01)
    longer = log_mel(torch.cat([noise(), sine(200)]), RATE)
    assert log_mel_distance(spectrum, longer) < 0.1  # cut to the shorter one; the last frames hear the sine


def test_pairs_beside_chance():
    assert summarize_pairs([], [], []) is None
    alone = summarize_pairs([3.0], [], [])
    assert alone is not None
    assert (alone.mean, alone.interval, alone.chance, alone.other_real) == (3, None, None, None)
    three = summarize_pairs([1.0, 2.0, 3.0], [4.0, 6.0], [5.0, 5.0])
    assert three is not None
    assert (three.mean, three.pairs, three.chance, three.other_real) == (2, 3, 5, 5)


@pytest.mark.parametrize(
    ("found", "asked", "agrees"),
    [
        (120, 120, True),
        (124, 120, True),
        (126, 120, False),
        (60, 120, True),
        (239, 120, True),
        (None, 120, False),
    ],
)
def test_a_tempo_agrees_within_four_percent_of_itself_its_half_or_its_double(found, asked, agrees):
    assert tempo_agrees([found], [asked]).tolist() == [agrees]


def test_chance_of_a_tempo_is_the_tempo_asked_for_in_another_clip():
    agreement = measure_tempo([100, 140, None, 100], [100, 140, 120, 140], real=0.9)
    assert agreement is not None
    assert (agreement.share, agreement.clips, agreement.real) == (0.5, 4, 0.9)
    # of the twelve pairs with another: 140 with the last 140; the last 100 with the first 100
    assert agreement.chance == pytest.approx(2 / 12)
    assert measure_tempo([], [], None) is None
    alone = measure_tempo([100], [100], None)
    assert alone is not None
    assert alone.chance is None


def test_the_tempo_of_clicks_is_found():
    sound, _ = measure_clip(clicks(110), RATE, with_tempo=True)
    assert sound.tempo == pytest.approx(110, rel=0.01)
    assert measure_clip(noise(), RATE, with_tempo=True)[0].tempo is None


def test_a_side_is_summarized_without_what_silence_lacks():
    sounds = [measure_clip(audio, RATE)[0] for audio in (sine(997), sine(997, 0.2), torch.zeros(RATE))]
    side = summarize_side(sounds, [0.0, 0.3, 0.0], [False, False, True], with_tempo=False)
    assert side.loudness == Levels(pytest.approx(-20.0, abs=0.1), pytest.approx(3.01, abs=0.01), 2)
    assert side.full_scale == pytest.approx(0.1)
    assert side.silent_clips == side.silent_frames == pytest.approx(1 / 3)
    assert side.with_tempo is None
    assert Levels.of([None]) is None
