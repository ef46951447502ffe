"""Tempo and key of music, each with a confidence, by librosa (the extra `describe`).

Shapes: audio float32 [samples] at 22,050 Hz.
"""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from filelock import FileLock

Floats = npt.NDArray[np.floating[Any]]

RATE = 22_050  # Hz
KEYS = tuple(
    f"{tonic} {mode}"
    for mode in ("major", "minor")
    for tonic in ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
)
# Of a reliable estimate; docs/data.md says on which data they were chosen.
LEAST_CONFIDENCE = {"bpm": 0.3, "key": 0.1}
_ONSET_HOP, _CHROMA_HOP = 256, 2048  # samples
_FEWEST_BEATS = 6
# librosa prefers tempi near 120, so what it tracks may be a fraction or a multiple of a beat.
_BEATS_PER_TRACKED = (1 / 2, 2 / 3, 3 / 4, 4 / 5, 1, 5 / 4, 4 / 3, 3 / 2, 2)
_SLOWEST, _FASTEST = 50, 210  # bpm
_USUAL, _OCTAVES = 118, 0.9  # log-normal prior of the tempo: median (bpm), standard deviation (octaves)
# How well each note above the tonic fits a major and a minor key, as listeners rated it.
# Source: Krumhansl and Kessler 1982.
_PROFILES = np.array(
    [
        [6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88],
        [6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17],
    ]
)
_LEAST_CORRELATION = 0.65  # of the chroma with a key profile; chords reach it, drums do not
_LEAST_CONTRAST = 0.1  # standard deviation of the chroma divided by its mean; up to 0.08 for noise


class Estimate(NamedTuple):
    """A value and its confidence, 0..1."""

    value: float | str
    confidence: float


def estimate_tempo(audio: Floats) -> Estimate | None:
    """Return the tempo (bpm), None where librosa tracks fewer than six beats.

    Candidates are simple ratios of librosa's tempo. A candidate scores by how strong and even the accents on its beats
    are, how weak those between them, and how well the accents repeat after a bar.

    The confidence is the autocorrelation of the accents at a bar, times the relative lead of the best score over the
    second best, which is often that of the double or half tempo.
    """
    _compile()
    return _estimate_tempo(audio)


def estimate_key(audio: Floats) -> Estimate:
    """Return the key, one of `KEYS`, whose profile correlates best with the mean chroma.

    The confidence is the lead in correlation over the second best of the 24 keys. It is 0 if the best correlation is
    below 0.65, as for drums, or if all notes are about equally strong, as in noise.
    """
    _compile()
    return _estimate_key(audio)


@cache
def _compile() -> None:
    """Compile librosa's numba functions on a first clip, or load them from numba's cache.

    One process at a time: two that compile together can corrupt the cache, and every later process would crash.
    """
    clicks = np.zeros(6 * RATE, dtype=np.float32)
    clicks[:: RATE // 2] = 1
    with FileLock(Path(tempfile.gettempdir()) / f"magnet-train-librosa-{os.getuid()}.lock"):
        _estimate_tempo(clicks)
        _estimate_key(clicks)


def _estimate_tempo(audio: Floats) -> Estimate | None:
    from librosa.beat import beat_track
    from librosa.onset import onset_strength

    onsets = onset_strength(y=audio, sr=RATE, hop_length=_ONSET_HOP, aggregate=np.median)
    _, beats = beat_track(onset_envelope=onsets, sr=RATE, hop_length=_ONSET_HOP)
    if len(beats) < _FEWEST_BEATS:
        return None
    # Frames between beats and the frame of the first, by a line through all beats.
    tracked, first = map(float, np.polyfit(np.arange(len(beats)), beats, 1))
    accents = _accents(audio)
    readings = [_read_tempo(accents, tracked, first, ratio) for ratio in _BEATS_PER_TRACKED]
    ranked = sorted((found for found in readings if _SLOWEST <= found.bpm <= _FASTEST), reverse=True)
    if not ranked:
        return None
    best, second = ranked[0], ranked[1].score if len(ranked) > 1 else 0.0
    lead = 1 - second / best.score
    return Estimate(best.bpm, max(0.0, best.repetition) * lead)


class _Reading(NamedTuple):
    """A candidate tempo."""

    score: float
    bpm: float
    repetition: float  # autocorrelation of the accents at a bar


def _accents(audio: Floats) -> Floats:
    """Return the rise in level at each frame, so that drums count by loudness and not by spectrum."""
    from librosa.feature import rms

    level = rms(y=audio, frame_length=4 * _ONSET_HOP, hop_length=_ONSET_HOP)[0]
    rises: Floats = np.convolve(np.maximum(0, np.diff(level, prepend=0)), (1, 2, 1), "same")
    return rises


def _read_tempo(accents: Floats, tracked: float, first: float, ratio: float) -> _Reading:
    """Score the tempo with a beat at frame `first` and a beat every `ratio * tracked` frames."""
    period = ratio * tracked
    beats = next((beats for beats in (4, 2) if 4 * beats * tracked <= len(accents)), 1)
    lag, repetition = _repetition(accents, beats * period)
    if abs(lag - beats * period) > 1.5:  # frames: librosa's beats drifted
        period = lag / beats
    phases = first + tracked * np.arange(0, max(ratio, 1), 0.5)
    on_beat, phase = max((float(_at(accents, period, phase).mean()), phase) for phase in phases)
    between = float(_at(accents, period, phase + period / 2).mean())
    strengths = _at(accents, period, phase)
    weaker, stronger = sorted((strengths[::2].mean(), strengths[1::2].mean()))
    bpm = 60 * RATE / _ONSET_HOP / period
    usual = np.exp(-0.5 * (np.log2(bpm / _USUAL) / _OCTAVES) ** 2)
    empty = 1 - 0.5 * min(1.0, between / max(on_beat, 1e-9))
    even = 0.3 + weaker / max(stronger, 1e-9)
    return _Reading(float(usual * empty * even * max(0.05, repetition) ** 2), bpm, repetition)


def _repetition(accents: Floats, lag: float) -> tuple[int, float]:
    """Return the lag (frames) near `lag` with the largest autocorrelation, and that autocorrelation."""
    near = max(2, round(0.02 * lag))
    lags = range(round(lag) - near, min(round(lag) + near, len(accents) - 20) + 1)
    found = {lag: float(np.corrcoef(accents[:-lag], accents[lag:])[0, 1]) for lag in lags}
    best = max(found, key=lambda lag: found[lag], default=round(lag))
    return best, found.get(best, 0.0)


def _at(accents: Floats, period: float, phase: float) -> Floats:
    """Return the strongest accent near each beat."""
    places = np.arange(phase % period, len(accents) - 3, period).round().astype(int)
    return np.array([accents[max(0, place - 3) : place + 4].max() for place in places])


def _estimate_key(audio: Floats) -> Estimate:
    from librosa.feature import chroma_cqt

    chroma = chroma_cqt(y=audio, sr=RATE, hop_length=_CHROMA_HOP, norm=None).mean(axis=1)
    if chroma.std() <= _LEAST_CONTRAST * chroma.mean():
        return Estimate(KEYS[0], 0.0)
    profiles = [np.roll(profile, tonic) for profile in _PROFILES for tonic in range(12)]
    correlations = np.array([np.corrcoef(profile, chroma)[0, 1] for profile in profiles])
    second, best = np.argsort(correlations)[-2:]
    margin = float(correlations[best] - correlations[second])
    return Estimate(KEYS[best], margin if correlations[best] >= _LEAST_CORRELATION else 0.0)
