"""Synthesise the sounds of a drum kit and a bass.

Shapes: audio float [samples], mono, 16 kHz. A drum is the same sound at each hit, as in a drum machine.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

SAMPLE_RATE = 16_000  # Hz
HAT_PARTIALS = (5830.0, 6370.0, 7110.0)  # Hz: metal has inharmonic partials
SNARE_BAND = (1500.0, 4500.0)  # Hz, of its rattle
BASS_HARMONICS = 7
ROOM = (0.12, 0.08)  # reverberation: seconds, and root mean square beside the direct sound


@cache
def kick() -> Floats:
    """Return a kick drum of .3 s: a sine that falls from 150 to 48 Hz."""
    time = _time(0.3)
    phase = 48 * time + 102 * 0.018 * (1 - np.exp(-time / 0.018))
    return np.asarray(_fade_out(np.sin(2 * np.pi * phase) * np.exp(-time / 0.09)))


@cache
def snare() -> Floats:
    """Return a snare drum of .22 s: two short tones and a rattle of noise."""
    time = _time(0.22)
    body = (np.sin(2 * np.pi * 196 * time) + 0.6 * np.sin(2 * np.pi * 331 * time)) * np.exp(-time / 0.035)
    rattle = _noise(len(time), SNARE_BAND, seed=1) * np.exp(-time / 0.06)
    return np.asarray(_fade_out(0.35 * body + 0.55 * rattle))


@cache
def hat() -> Floats:
    """Return a closed hi-hat of .09 s: three partials."""
    time = _time(0.09)
    partials = sum(np.sin(2 * np.pi * partial * time + index) for index, partial in enumerate(HAT_PARTIALS))
    return np.asarray(_fade_out(partials * np.exp(-time / 0.025)) / 2)


def bass(frequency: float, seconds: float) -> Floats:
    """Return a plucked bass string: harmonics of `frequency` (Hz), the higher the sooner gone, stopped at the end."""
    time = _time(seconds)
    number = np.arange(1, BASS_HARMONICS + 1)[:, None]
    decay = np.exp(-time * (1.2 + 0.9 * number))
    string = (np.sin(2 * np.pi * frequency * number * time) * decay / number**1.1).sum(axis=0)
    attack = np.sin(np.pi / 2 * np.minimum(1.0, time / 0.01)) ** 2
    return np.asarray(_fade_out(string * attack, 0.02))


def in_room(dry: Floats) -> Floats:
    """Return the sound in a small room, of the same length."""
    wet = np.fft.irfft(np.fft.rfft(dry, 2 * len(dry)) * _room_response(2 * len(dry)))
    return np.asarray(dry + wet[: len(dry)])


@cache
def _room_response(samples: int) -> npt.NDArray[np.complex128]:
    seconds, level = ROOM
    time = _time(seconds)
    response = np.random.default_rng(2).standard_normal(len(time)) * np.exp(-5 * time / seconds)
    response[: int(0.008 * SAMPLE_RATE)] = 0.0  # before the first wall
    return np.asarray(np.fft.rfft(level * response / np.sqrt((response**2).sum()), samples))


def _time(seconds: float) -> Floats:
    return np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _fade_out(sound: Floats, seconds: float = 0.01) -> Floats:
    fade = np.minimum(1.0, np.arange(len(sound), 0, -1) / (seconds * SAMPLE_RATE))
    return np.asarray(sound * fade)


def _noise(samples: int, band: tuple[float, float], seed: int) -> Floats:
    """Return noise between two frequencies, root mean square 1."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    noise = np.fft.irfft(spectrum * ((frequency > band[0]) & (frequency < band[1])), samples)
    return np.asarray(noise / np.sqrt((noise**2).mean()))
