"""Synthetic music whose tempo and key are known: what the estimates of `describe` are measured on.

Audio: float32 [samples] at 22,050 Hz.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from magnet_train.audio.tempo_and_key import KEYS, RATE

Floats = npt.NDArray[np.float32]
SECONDS = 20.0
# Roots of four chords above the tonic, and whether each is a major one.
PROGRESSIONS = {
    "major": [
        [(0, True), (5, True), (7, True), (0, True)],  # I IV V I
        [(0, True), (9, False), (5, True), (7, True)],  # I vi IV V
        [(0, True), (7, True), (9, False), (5, True)],  # I V vi IV
    ],
    "minor": [
        [(0, False), (5, False), (7, True), (0, False)],  # i iv V i
        [(0, False), (8, True), (5, False), (7, True)],  # i VI iv V
        [
            (0, False),
            (8, True),
            (3, True),
            (10, True),
        ],  # i VI III VII, which in the relative major is vi IV I V
    ],
}


def clicks(bpm: float, seconds: float = SECONDS, seed: int = 0) -> Floats:
    """A metronome with an accent on every fourth beat, over faint noise."""
    audio = _noise(seconds, 0.002, seed)
    for beat, start in enumerate(np.arange(0.1, seconds - 0.1, 60 / bpm)):
        _add(audio, start, 0.5 * _decaying_sine(1000 if beat % 4 else 1500, 0.03, 0.006))
    return audio


def drums(bpm: float, seconds: float = SECONDS, seed: int = 0) -> Floats:
    """Kick on one and three, snare on two and four, hi-hat on every eighth."""
    rng = np.random.default_rng(seed)
    audio = _noise(seconds, 0.001, seed)
    kick, snare, hat = _drum_kit(rng)
    for eighth, start in enumerate(np.arange(0.05, seconds - 0.1, 30 / bpm)):
        _add(audio, start, hat)
        if eighth % 2 == 0:
            _add(audio, start, snare if eighth % 4 else kick)
    return audio


PATTERNS = {  # sixteenths of a bar of kick, snare and hi-hat
    "rock": ("x.......x.......", "....x.......x...", "x.x.x.x.x.x.x.x."),
    "rock with sixteenths": ("x.......x.x.....", "....x.......x...", "xxxxxxxxxxxxxxxx"),
    "house": ("x...x...x...x...", "....x.......x...", "..x...x...x...x."),
    "kick on every beat": ("x...x...x...x...", "................", "................"),
    "techno": ("x...x...x...x...", "................", "xxxxxxxxxxxxxxxx"),
    "breakbeat": ("x.x.......xx....", "....x..x.x..x..x", "x.x.x.x.x.x.x.x."),
    "drum and bass": ("x.........x.....", "....x.......x...", "x.x.x.x.x.x.x.x."),
    "hip hop": ("x..x......x..x..", "....x.......x...", "x.x.x.x.x.x.x.x."),
    "without hi-hat": ("x.......x.x.....", "....x.......x...", "................"),
    "funk": ("x.x...x...x..x..", "....x..x.x..x...", "xxxxxxxxxxxxxxxx"),
    # those below were written after the method
    "disco": ("x...x...x...x...", "....x.......x...", "x.xxx.xxx.xxx.xx"),
    "reggaeton": ("x...x...x...x...", "...x..x....x..x.", "x.x.x.x.x.x.x.x."),
    "two step": ("x.........x.....", "....x.......x...", "..x...x...x...x."),
    "bossa nova": ("x..xx..xx..xx..x", "x..x..x...x..x..", "x.x.x.x.x.x.x.x."),
    "ballad": ("x.....x.x.......", "....x.......x..x", "x.x.x.x.x.x.x.x."),
    "punk": ("x...x...x...x...", "..x...x...x...x.", "x.x.x.x.x.x.x.x."),
}


def groove(name: str, bpm: float, seconds: float = SECONDS, seed: int = 0) -> Floats:
    """One of `PATTERNS`, played with uneven strength."""
    rng = np.random.default_rng(seed)
    audio = _noise(seconds, 0.001, seed)
    for step, start in enumerate(np.arange(0.05, seconds - 0.1, 15 / bpm)):
        for voice, pattern in zip(_drum_kit(rng), PATTERNS[name], strict=True):
            if pattern[step % 16] == "x":
                _add(audio, start, rng.uniform(0.8, 1) * voice)
    return audio


def _drum_kit(rng: np.random.Generator) -> tuple[npt.NDArray[np.float64], ...]:
    """Kick, snare and hi-hat."""
    time = np.arange(round(0.2 * RATE)) / RATE
    hat = 0.15 * np.exp(-time / 0.015) * rng.standard_normal(len(time))
    snare = 0.5 * np.exp(-time / 0.05) * rng.standard_normal(len(time))
    kick = 0.8 * np.exp(-time / 0.06) * np.sin(2 * np.pi * (50 * time + 1.8 * (1 - np.exp(-time / 0.03))))
    return kick, snare, hat


def chords(key: str, progression: int, bpm: float = 100, cents: float = 0, partials: int = 6) -> Floats:
    """Triads over a bass, struck on every second beat, each for a bar."""
    tonic, mode = KEYS.index(key) % 12, key.split()[1]
    audio = np.zeros(round(SECONDS * RATE), dtype=np.float32)
    four = PROGRESSIONS[mode][progression]
    for number, start in enumerate(np.arange(0, SECONDS, 120 / bpm)):
        root, major = four[number // 2 % 4]
        upper = (60 + (tonic + root + interval) % 12 for interval in (0, 4 if major else 3, 7))
        for pitch in (36 + tonic + root, *upper):
            hertz = 440 * 2 ** ((pitch + cents / 100 - 69) / 12)
            tones = (_decaying_sine(hertz * n, 120 / bpm, 0.8) / n**1.2 for n in range(1, partials + 1))
            _add(audio, start, 0.1 * sum(tones))
    return audio


def random_clicks(seed: int, seconds: float = SECONDS) -> Floats:
    """Two clicks a second on average, at random moments."""
    rng = np.random.default_rng(seed)
    audio = _noise(seconds, 0.002, seed)
    for start in np.cumsum(rng.exponential(0.5, round(2 * seconds))):
        _add(audio, start, 0.5 * _decaying_sine(1000, 0.03, 0.006))
    return audio


def noise(seed: int, seconds: float = SECONDS) -> Floats:
    return _noise(seconds, 0.1, seed)


def _noise(seconds: float, level: float, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    return level * rng.standard_normal(round(seconds * RATE), dtype=np.float32)


def _decaying_sine(hertz: float, seconds: float, decay: float) -> npt.NDArray[np.float64]:
    time = np.arange(round(seconds * RATE)) / RATE
    return np.minimum(1, time / 0.002) * np.exp(-time / decay) * np.sin(2 * np.pi * hertz * time)


def _add(audio: Floats, start: float, sound: npt.NDArray[np.float64]) -> None:
    first = round(start * RATE)
    room = audio[first : first + len(sound)]
    room += sound[: len(room)]
