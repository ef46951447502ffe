"""Hear what a clip of drums and bass plays, and score clips against captions; nothing is learned.

Shapes: audio float [samples] at 16 kHz, of a clip that begins with a bar; features float [frames, bands].

The loudness of a clip in bands is compared with that of every score played without variation: the drums by the bands
of kick, snare and hats, the bass by semitones. The most similar one is what the clip plays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt

from magnet_train.apps.quickstart.drums_and_bass.captions import (
    ATTRIBUTES,
    HATS,
    LINES,
    PATTERNS,
    ROOTS,
    TEMPOS,
    Caption,
    Score,
)
from magnet_train.apps.quickstart.drums_and_bass.instruments import SAMPLE_RATE
from magnet_train.apps.quickstart.drums_and_bass.world import SAMPLES, play
from magnet_train.apps.quickstart.synthetic import accuracy_by, shuffled_accuracy

Floats = npt.NDArray[np.floating]

HOP = 160  # samples (10 ms) between two frames
KICK_WINDOW, WINDOW, BASS_WINDOW = 1024, 512, 2048  # samples; the kick is to be told from the bass above it
KICK, SNARE, HAT = (30.0, 62.0), (2300.0, 4200.0), (5500.0, 7500.0)  # Hz
LOWEST, SEMITONES = 77.8, 36  # Hz and number of the bands of the bass, one semitone each
SNARE_HEARD = 0.023  # loudness, at least: half of that of the quietest real one
HATS_HEARD = 0.2  # of the loudness of the kick, at least: half of that of the quietest real ones
ALIKE = (
    0.4  # similarity of a bass to the nearest score, at least: drums alone reach .3, a bass beside drums .75
)


def read_clips(clips: Iterable[Floats]) -> list[Score]:
    """Read every clip by `read_clip`."""
    return [read_clip(audio) for audio in clips]


def read_clip(audio: Floats) -> Score:
    """Return what the first 3.2 s of a clip play; a part that is not heard is ""."""
    audio = np.pad(np.asarray(audio[:SAMPLES], dtype=np.float64), (0, max(0, SAMPLES - len(audio))))
    drums, bass = _hear_drums(audio), _hear_bass(audio)
    tempo = drums.tempo or bass.tempo
    return Score(tempo, drums.pattern, drums.hats, bass.root, bass.line)


def accuracy(captions: Sequence[Caption], readings: Sequence[Score]) -> dict[str, float]:
    """Return how often each attribute is as captioned, 0..1; only captions that have the attribute count.

    Raises:
        ValueError: The numbers of captions and readings differ, or no caption has some attribute.
    """
    return accuracy_by(ATTRIBUTES, captions, readings)


def chance(captions: Sequence[Caption], readings: Sequence[Score], seed: int = 0) -> dict[str, float]:
    """Return the accuracy of clips against shuffled captions."""
    return shuffled_accuracy(accuracy, captions, readings, seed)


def _hear_drums(audio: Floats) -> Score:
    features = drum_features(audio)
    if not features[1::3].any():  # every pattern has a snare
        return Score("")
    scores, known = _drum_scores()
    return scores[nearest(features, known)[0]]


def _hear_bass(audio: Floats) -> Score:
    features = bass_features(audio)
    scores, known = _bass_scores()
    index, similarity = nearest(features, known)
    return scores[index] if similarity > ALIKE else Score("")


def nearest(features: Floats, known: Floats) -> tuple[int, float]:
    """Return the index of the most similar of `known` [N, size] to features [size], and the similarity."""
    similarities = known @ features
    index = int(similarities.argmax())
    return index, float(similarities[index])


@cache
def _drum_scores() -> tuple[list[Score], Floats]:
    scores = [Score(*values) for values in product(TEMPOS, PATTERNS, HATS)]
    return scores, np.stack([drum_features(play(score)) for score in scores])


@cache
def _bass_scores() -> tuple[list[Score], Floats]:
    scores = [Score(tempo, root=root, line=line) for tempo, root, line in product(TEMPOS, ROOTS, LINES)]
    return scores, np.stack([bass_features(play(score)) for score in scores])


def drum_features(
    audio: Floats, snare: tuple[float, float] = SNARE, snare_heard: float = SNARE_HEARD
) -> Floats:
    """Return the loudness of kick, snare and hats, each from 0 to 1, without its mean; 0 if it is not heard. Unit length.

    Returns:
        Float [frames * 3], the three of a frame side by side.
    """
    power, frequency = spectrogram(audio, WINDOW)
    bands = [_loudness(*spectrogram(audio, KICK_WINDOW), KICK)]
    bands += [_loudness(power, frequency, band) for band in (snare, HAT)]
    loudness = np.stack(bands, axis=1)
    loudest = loudness.max(axis=0)
    heard = loudest > (0, snare_heard, HATS_HEARD * loudest[0])
    relative = loudness * heard / np.maximum(loudest, 1e-9)
    return unit(relative - relative.mean(axis=0))


def bass_features(audio: Floats) -> Floats:
    """Return the loudness of each semitone beside the mean of its frame, [frames * SEMITONES], of unit length."""
    power, frequency = spectrogram(audio, BASS_WINDOW)
    centres = LOWEST * 2 ** (np.arange(SEMITONES) / 12)
    distance = 12 * np.log2(np.maximum(frequency, 1.0)[:, None] / centres)
    loudness = np.sqrt(power @ np.exp(-0.5 * (distance / 0.5) ** 2))
    return unit(loudness - loudness.mean(axis=1, keepdims=True))


def unit(features: Floats) -> Floats:
    return np.asarray(features.ravel() / max(1e-9, float(np.sqrt((features**2).sum()))))


def _loudness(power: Floats, frequency: Floats, band: tuple[float, float]) -> Floats:
    """Return the loudness of a band (Hz), [frames]."""
    within = (frequency >= band[0]) & (frequency < band[1])
    return np.asarray(np.sqrt(power[:, within].sum(axis=1)))


def spectrogram(audio: Floats, window: int, hop: int = HOP) -> tuple[Floats, Floats]:
    """Return the power of Hann windows, [frames, window // 2 + 1], and the frequency of each bin (Hz)."""
    padded = np.pad(audio, window // 2)
    weights = np.hanning(window)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] * weights
    power = np.abs(np.fft.rfft(frames)) ** 2 / weights.sum() ** 2
    return power, np.fft.rfftfreq(window, 1 / SAMPLE_RATE)
