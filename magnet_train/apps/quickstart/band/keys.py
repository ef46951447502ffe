"""Synthesise the notes of four instruments that play chords: a plucked string, an organ, a pad and a lead.

Shapes: audio float [samples], mono, 16 kHz. No partial lies above `HIGHEST`, where the snare is heard.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from magnet_train.apps.quickstart.drums_and_bass.instruments import SAMPLE_RATE, Floats

HIGHEST = 2900.0  # Hz
RELEASE = 0.03  # seconds


def pluck(frequency: float, seconds: float) -> Floats:
    """Return a plucked string: all harmonics, the higher the sooner gone."""
    time, number = _time(seconds), _harmonics(frequency, range(1, 7))
    decay = np.exp(-time * (4.0 + 2.0 * number))
    return _shaped(1.5 * (np.sin(2 * np.pi * frequency * number * time) * decay / number).sum(axis=0), 0.004)


def organ(frequency: float, seconds: float) -> Floats:
    """Return an organ: a tone and its octaves, steady."""
    time = _time(seconds)
    tone = sum(
        level * np.sin(2 * np.pi * frequency * number * time)
        for number, level in ((1, 0.6), (2, 0.6), (4, 0.5))
        if number * frequency < HIGHEST
    )
    return _shaped(np.asarray(tone), 0.01)


def pad(frequency: float, seconds: float) -> Floats:
    """Return a pad: hardly more than the fundamental, which grows over the first half of the note."""
    time, number = _time(seconds), _harmonics(frequency, (1, 2))
    tone = (np.sin(2 * np.pi * frequency * number * time) / number**3).sum(axis=0)
    return _shaped(1.2 * tone, min(0.35, 0.6 * seconds))


def lead(frequency: float, seconds: float) -> Floats:
    """Return a lead: odd harmonics, steady, with some vibrato on long notes."""
    time, number = _time(seconds), _harmonics(frequency, (1, 3, 5))
    wobble = 0.006 * np.minimum(1.0, time / 0.6) ** 2 / (2 * np.pi * 5.5) * np.sin(2 * np.pi * 5.5 * time)
    tone = (np.sin(2 * np.pi * frequency * number * (time + wobble)) / number**0.7).sum(axis=0)
    return _shaped(0.9 * tone, 0.015)


INSTRUMENTS: dict[str, Callable[[float, float], Floats]] = {
    "pluck": pluck,
    "organ": organ,
    "pad": pad,
    "lead": lead,
}


def _time(seconds: float) -> Floats:
    return np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _harmonics(frequency: float, numbers: range | tuple[int, ...]) -> Floats:
    """Return the numbers of the harmonics below `HIGHEST`, float [harmonics, 1]."""
    return np.array([float(number) for number in numbers if number * frequency < HIGHEST])[:, None]


def _shaped(tone: Floats, attack: float) -> Floats:
    """Return the tone with a smooth attack (seconds) and release."""
    samples = np.arange(len(tone))
    rise = np.sin(np.pi / 2 * np.minimum(1.0, samples / (attack * SAMPLE_RATE))) ** 2
    fall = np.minimum(1.0, samples[::-1] / (RELEASE * SAMPLE_RATE))
    return np.asarray(tone * rise * fall)
