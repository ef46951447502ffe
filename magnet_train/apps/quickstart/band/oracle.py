"""Hear what a clip of the whole band plays, and score clips against captions; nothing is learned.

Shapes: audio float [samples] at 16 kHz, of a clip that begins with a bar; power float32 [FRAMES, semitones].

As in `drums_and_bass.oracle`, the loudness of a clip in bands is compared with that of every score played without
variation, and the most similar one is what the clip plays. Drums come first, by the bands of kick, snare and hats; then
the bass, below all keys; then the keys, at the tempo, feel and root of what was heard before. Powers add: a clip is
compared with the sum of the drums and the bass heard and of keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt

from magnet_train.apps.quickstart.band.captions import ATTRIBUTES, PARTS, Caption, Score, part_scores
from magnet_train.apps.quickstart.band.world import FRAMES, Note, notes, play, sound
from magnet_train.apps.quickstart.drums_and_bass.instruments import SAMPLE_RATE
from magnet_train.apps.quickstart.drums_and_bass.oracle import drum_features, nearest, spectrogram
from magnet_train.apps.quickstart.drums_and_bass.world import FRAME, SAMPLES
from magnet_train.apps.quickstart.synthetic import Scores, accuracy_by, shuffled_accuracy

Floats = npt.NDArray[np.floating]

SNARE = (3100.0, 4400.0)  # Hz, above all keys
SNARE_HEARD = 0.016  # loudness, at least: real ones have .040, all else .002
WINDOW = 2048  # samples
LEAD = -(-WINDOW // 2 // FRAME)  # token frames of a window before its middle
BASS = (77.8, 24)  # lowest semitone (Hz) and number of semitones, below all keys
KEYS = (311.1, 39)
BASS_HEARD = 0.03  # power below the keys beside that of their bands, at least: keys alone reach .003, a bass with them .2
ALIKE = 0.65  # similarity of the first tone heard to the nearest score, at least: without a bass .54, with one .77
GAIN = 0.02  # of similarity, at least, by the part that is added to those already heard


def read_clips(clips: Iterable[Floats]) -> list[Score]:
    """Read every clip by `read_clip`."""
    return [read_clip(audio) for audio in clips]


def read_clip(audio: Floats) -> Score:
    """Return what the first 3.2 s of a clip play; a part that is not heard is ""."""
    audio = np.pad(np.asarray(audio[:SAMPLES], dtype=np.float64), (0, max(0, SAMPLES - len(audio))))
    heard = _hear_drums(audio)
    low, high = _semitones(audio, BASS), _semitones(audio, KEYS)
    if low.sum() > BASS_HEARD * high.sum():
        heard = _hear_tones("bass", low, BASS, heard)
    return _hear_tones("keys", high, KEYS, heard)


def accuracy(captions: Sequence[Caption], readings: Sequence[Score]) -> Scores:
    """Return how often each attribute is as captioned, 0..1; see `accuracy_by`."""
    return accuracy_by(ATTRIBUTES, captions, readings)


def chance(captions: Sequence[Caption], readings: Sequence[Score], seed: int = 0) -> Scores:
    """Return the accuracy of clips against shuffled captions."""
    return shuffled_accuracy(accuracy, captions, readings, seed)


def _hear_drums(audio: Floats) -> Score:
    features = drum_features(audio, SNARE, SNARE_HEARD)
    if not features[1::3].any():  # every pattern has a snare
        return Score("")
    return part_scores("drums")[nearest(features, _drum_templates())[0]]


def _hear_tones(part: str, power: Floats, bands: tuple[float, int], heard: Score) -> Score:
    """Return what was heard with the values of the bass or the keys added, if it plays."""
    features, scores = _features(power), part_scores(part)
    fitting = [number for number, score in enumerate(scores) if _fits(score, heard)]
    if heard.tempo:
        known = sum((_power(heard.only(played), played, bands) for played in heard.played), start=0 * power)
        templates = _features(known + _powers(part, bands)[fitting])
        least = float(_features(known) @ features) + GAIN
    else:
        templates, least = _lone_templates(part, bands)[fitting], ALIKE
    index, similarity = nearest(features, templates)
    if similarity < least:
        return heard
    found = scores[fitting[index]]
    values = {name: getattr(found, name) for name in PARTS[part]}
    return replace(heard, tempo=found.tempo, feel=heard.feel or found.feel, **values)


def _fits(score: Score, heard: Score) -> bool:
    """Return whether a part can play along with those heard."""
    return all(
        not getattr(score, name) or getattr(heard, name) in ("", getattr(score, name))
        for name in ("tempo", "feel", "root")
    )


@cache
def _drum_templates() -> Floats:
    return np.stack([drum_features(play(score), SNARE, SNARE_HEARD) for score in part_scores("drums")])


@cache
def _powers(part: str, bands: tuple[float, int]) -> Floats:
    return np.stack([_power(score, part, bands) for score in part_scores(part)])


@cache
def _lone_templates(part: str, bands: tuple[float, int]) -> Floats:
    return _features(_powers(part, bands))


@cache
def _power(score: Score, part: str, bands: tuple[float, int]) -> Floats:
    """Return the power of a part in semitones, the sum of those of its notes."""
    power = np.zeros((FRAMES + 1, bands[1]), np.float32)
    for note in notes(score, part):
        found = _note_power(note._replace(frame=0, force=1.0), bands)
        first, last = note.frame - LEAD, note.frame - LEAD + len(found)
        power[max(0, first) : last] += (
            note.force**2 * found[max(0, -first) : len(found) - max(0, last - FRAMES - 1)]
        )
    return power


@cache
def _note_power(note: Note, bands: tuple[float, int]) -> Floats:
    """Return the power of a note without a room; it begins `LEAD` frames after the first."""
    tone = 0.5 * sound(note.sound, note.frequency, note.seconds)
    return _semitones(np.pad(tone, (LEAD * FRAME, WINDOW // 2)), bands)


def _semitones(audio: Floats, bands: tuple[float, int]) -> Floats:
    """Return the power in semitones, every token frame."""
    power, _ = spectrogram(audio, WINDOW, FRAME)
    return (power @ _semitone_weights(bands)).astype(np.float32)


@cache
def _semitone_weights(bands: tuple[float, int]) -> Floats:
    frequency, (lowest, number) = np.fft.rfftfreq(WINDOW, 1 / SAMPLE_RATE), bands
    distance = 12 * np.log2(np.maximum(frequency, 1.0)[:, None] / (lowest * 2 ** (np.arange(number) / 12)))
    return np.asarray(np.exp(-0.5 * (distance / 0.5) ** 2))


def _features(power: Floats) -> Floats:
    """Return the loudness of each semitone beside the mean of its frame, of unit length, [..., frames * semitones]."""
    loudness = np.sqrt(power)
    loudness -= loudness.mean(axis=-1, keepdims=True)
    flat = loudness.reshape(*loudness.shape[:-2], -1)
    return np.asarray(flat / np.maximum(1e-9, np.sqrt((flat**2).sum(axis=-1, keepdims=True))))
