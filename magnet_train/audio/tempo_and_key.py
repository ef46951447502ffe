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
LEAST_CONFIDENCE = {
    "bpm": 0.3,
    "key": 0.1,
}  # of an estimate to rely on; docs/data.md says what they were chosen on
_ONSET_HOP, _CHROMA_HOP = 256, 2048  # samples
_FEWEST_BEATS = 6
# How well each note above the tonic fits a major and a minor key, as listeners rated it.
# Source: Krumhansl and Kessler 1982.
_PROFILES = np.array(
    [
        [6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88],
        [6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17],
    ]
)
_LEAST_CORRELATION = 0.65  # with a profile; drums do not reach it, chords do
_LEAST_CONTRAST = 0.1  # spread of the notes' strengths by their mean; that of noise is up to 0.08


class Estimate(NamedTuple):
    """A value, and how far it can be relied on: 0 not at all, up to 1."""

    value: float | str
    confidence: float


def estimate_tempo(audio: Floats) -> Estimate | None:
    """Return the tempo (bpm) of the beats that librosa tracks, None with fewer than six.

    Confidence is the correlation of the onset strength with itself one beat later. It does not tell a tempo from its
    double or its half.
    """
    _compile()
    return _estimate_tempo(audio)


def estimate_key(audio: Floats) -> Estimate:
    """Return the key, one of `KEYS`, whose profile correlates best with the mean strength of the twelve notes.

    Confidence is by how much the second best of the 24 correlates less. It is 0 if the best correlates less than 0.65,
    as for drums, or if all notes are about equally strong, as in noise.
    """
    _compile()
    return _estimate_key(audio)


@cache
def _compile() -> None:
    """Let numba compile what librosa uses, on a first clip, or load it.

    One process at a time: two that compile together can spoil numba's files, and every later process would crash.
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
    period = float(np.polyfit(np.arange(len(beats)), beats, 1)[0])  # frames; a line through all beats
    lags = round(period) + np.arange(-1, 2)
    repeats = max(float(np.corrcoef(onsets[:-lag], onsets[lag:])[0, 1]) for lag in lags)
    return Estimate(60 * RATE / _ONSET_HOP / period, max(0.0, repeats))


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
