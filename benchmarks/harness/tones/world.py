"""Synthesise captioned clips of tones and noise from a seed.

Shapes: audio float32 [samples], mono, 8 kHz, within -1..1. A clip lasts one window of 1.28 s (64 token frames at
50 Hz) or two, an event one window or the whole clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.tones.captions import (
    HELD_OUT,
    PITCHES,
    Caption,
    Event,
    caption_for,
    seen_events,
)
from magnet_train.apps.quickstart.synthetic import Audio, SyntheticWorld

Floats = npt.NDArray[np.float64]

SAMPLE_RATE = 8000  # Hz
FRAME = 160  # samples in a token frame of 20 ms
WINDOW = 64 * FRAME  # samples in 1.28 s
LOWEST = 261.6256  # Hz, c4 in equal temperament with a4 = 440
SEMITONES = dict(zip(PITCHES, (0, 2, 4, 5, 7, 9, 11, 12), strict=True))  # above c4
PERIOD = {"slow": 21 * FRAME, "fast": 9 * FRAME}  # samples from pulse to pulse: .42 s and .18 s
DUTY = 0.55  # share of a period that sounds
EDGE = 64  # samples (8 ms) of fade at each end of a pulse, so that it does not click
NOISE_WEIGHT = 3.0  # how often a noise event is drawn, against a tonal one: only 3 of 75 are noise


@dataclass(frozen=True)
class Preset:
    """Difficulty of a world."""

    windows: int  # of 1.28 s in a clip
    pairs: float  # share of the clips that have two events, 0..1
    onset: float  # largest random delay of an event, in periods of its pulses
    jitter: float  # largest random change of a pulse period, relative to it

    @property
    def samples(self) -> int:
        """Samples in a clip."""
        return self.windows * WINDOW

    @property
    def seconds(self) -> float:
        """Seconds in a clip."""
        return self.samples / SAMPLE_RATE


PRESETS = {  # one event of fixed onset in 1.28 s; one event or two with random onsets and jitter in 2.56 s
    "default": Preset(windows=1, pairs=0.0, onset=0.0, jitter=0.0),
    "full": Preset(windows=2, pairs=0.5, onset=0.25, jitter=0.05),
}


def note_frequency(pitch: str) -> float:
    """Return the frequency of a note in Hz."""
    return float(LOWEST * 2 ** (SEMITONES[pitch] / 12))


class ToneWorld(SyntheticWorld):
    """Captions and clips, each a pure function of (seed, split, number).

    `preset` is a key of `PRESETS`, `seed` at least 0.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, preset: str = "default", seed: int = 0) -> None:
        self.preset = PRESETS[preset]
        self.seconds = self.preset.seconds
        super().__init__(seed)

    def captions(self, count: int, split: str = "train", *, unseen: bool = False) -> list[Caption]:
        """Return the first `count` captions of one of `SPLITS`; `unseen` ones are of the combinations held out."""
        return [self._caption(index, split, unseen) for index in range(count)]

    def clips(
        self, count: int, split: str = "train", *, unseen: bool = False
    ) -> Iterator[tuple[Caption, Audio]]:
        """Yield the first `count` captions of a split, each with its clip, float32 [samples]."""
        for index, caption in enumerate(self.captions(count, split, unseen=unseen)):
            yield caption, self.render(caption.events, self._rng(index, split, stream=2 + unseen))

    def render(self, events: Sequence[Event], rng: np.random.Generator) -> Audio:
        """Synthesise a clip of `events`, float32 [samples]; `rng` draws phase, loudness, tuning and noise floor."""
        share = self.preset.samples // len(events)
        audio = np.concatenate([_render_event(event, share, self.preset, rng) for event in events])
        audio += 0.002 * rng.standard_normal(len(audio))
        return audio.astype(np.float32)

    def _caption(self, index: int, split: str, unseen: bool) -> Caption:
        rng = self._rng(index, split, stream=int(unseen))
        count = 1 + int(rng.random() < self.preset.pairs)
        if unseen:
            events = [HELD_OUT[(index + other * (1 + index // 6 % 5)) % 6] for other in range(count)]
            return caption_for(events, rng)
        choices = seen_events()
        weights = np.array([1.0 if event.pitch else NOISE_WEIGHT for event in choices])
        # Without replacement: two equal events would sound like one.
        picked = rng.choice(len(choices), size=count, replace=False, p=weights / weights.sum())
        return caption_for([choices[int(number)] for number in picked], rng)


def _render_event(event: Event, samples: int, preset: Preset, rng: np.random.Generator) -> Floats:
    """Return a sound times its envelope, [samples]."""
    loudness = rng.uniform(0.3, 0.6) / np.sqrt(2)  # root mean square while it sounds
    limit = np.sqrt(3)  # of uniform noise with root mean square 1; normal noise would clip
    is_noise = event.timbre == "noise"
    sound = rng.uniform(-limit, limit, samples) if is_noise else _tone(event, samples, rng)
    envelope, fade = np.zeros(samples), 0.5 - 0.5 * np.cos(np.pi * (np.arange(EDGE) + 0.5) / EDGE)
    for start, length in _pulses(event.rhythm, samples, preset, rng):
        pulse = envelope[start : start + length]
        pulse[:] = 1
        pulse[:EDGE], pulse[-EDGE:] = fade, fade[::-1]
    return np.asarray(loudness * sound * envelope)


def _tone(event: Event, samples: int, rng: np.random.Generator) -> Floats:
    """Return a sum of harmonics below 3.8 kHz with root mean square 1, random phase, and up to 10 cents out of tune."""
    frequency = note_frequency(event.pitch) * 2 ** (rng.uniform(-10, 10) / 1200)
    harmonics = np.arange(1, 2 if event.timbre == "sine" else int(3800 / frequency) + 1)
    if event.timbre == "square":
        harmonics = harmonics[::2]  # odd ones only
    phase = 2 * np.pi * (frequency * np.arange(samples) / SAMPLE_RATE + rng.random())
    wave = np.sin(harmonics[:, None] * phase) / harmonics[:, None]
    return np.asarray(wave.sum(axis=0) / np.sqrt((1 / harmonics**2).sum() / 2))


def _pulses(rhythm: str, samples: int, preset: Preset, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Yield (first sample, samples) of each whole pulse; a steady sound is one long pulse."""
    period = PERIOD.get(rhythm, PERIOD["slow"])
    start = FRAME + int(rng.uniform(0, preset.onset) * period)
    if rhythm == "steady":
        yield start, samples - start - FRAME
        return
    length = int(DUTY * period)
    while start + length <= samples:
        yield start, length
        start += int(period * (1 + rng.uniform(-preset.jitter, preset.jitter)))
