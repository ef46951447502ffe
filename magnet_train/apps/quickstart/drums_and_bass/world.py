"""Play scores from a seed.

Shapes: audio float32 [samples], mono, 16 kHz, within -1..1. A clip lasts 3.2 s (160 token frames at 50 Hz) and begins
with a bar.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from magnet_train.apps.quickstart.drums_and_bass.captions import Caption, Score, caption_for, draw_score
from magnet_train.apps.quickstart.drums_and_bass.instruments import (
    SAMPLE_RATE,
    Floats,
    bass,
    hat,
    in_room,
    kick,
    snare,
)
from magnet_train.apps.quickstart.synthetic import Audio, SyntheticWorld

FRAME = SAMPLE_RATE // 50  # samples in a token frame
SAMPLES = 160 * FRAME  # in a clip
STEPS = 16  # sixteenth notes in a bar
SIXTEENTH = {"75": 10 * FRAME, "94": 8 * FRAME, "125": 6 * FRAME, "150": 5 * FRAME}  # samples
PATTERNS = {  # sixteenths of the bar with a kick, and with a snare
    "rock": ((0, 8, 10), (4, 12)),
    "house": ((0, 4, 8, 12), (4, 12)),
    "half-time": ((0, 6), (8,)),
    "breakbeat": ((0, 2, 10), (4, 7, 12)),
}
HATS = {"none": (), "eighths": range(0, 16, 2), "sixteenths": range(16), "offbeats": range(2, 16, 4)}
ROOTS = {"e": 82.41, "g": 98.0, "a": 110.0, "c": 130.81, "d": 146.83}  # Hz
LINES = {  # (sixteenth of the bar, length in sixteenths, semitones above the root)
    "held": ((0, 16, 0),),
    "driving": tuple((step, 2, 0) for step in range(0, 16, 2)),
    "octaves": tuple((step, 2, 12 * (step // 2 % 2)) for step in range(0, 16, 2)),
    "walking": ((0, 4, 0), (4, 4, 4), (8, 4, 7), (12, 4, 9)),
}
PARTS = ("drums", "bass", "both")


class DrumsAndBassWorld(SyntheticWorld):
    """Captions and clips, each a pure function of (seed, split, number); `seed` at least 0."""

    sample_rate = SAMPLE_RATE
    seconds = SAMPLES / SAMPLE_RATE

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)

    def captions(self, count: int, split: str = "train", *, unseen: bool = False) -> list[Caption]:
        """Return the first `count` captions of one of `SPLITS`; `unseen` ones are of the combinations held out."""
        found = []
        for index in range(count):
            rng = self._rng(index, split, stream=int(unseen))
            score = draw_score(PARTS[index % len(PARTS)], rng, unseen=unseen)
            found.append(caption_for(score, rng))
        return found

    def clips(
        self, count: int, split: str = "train", *, unseen: bool = False
    ) -> Iterator[tuple[Caption, Audio]]:
        """Yield the first `count` captions of a split, each with its clip, float32 [samples]."""
        for index, caption in enumerate(self.captions(count, split, unseen=unseen)):
            yield caption, play(caption.score, self._rng(index, split, stream=2 + unseen))


def play(score: Score, rng: np.random.Generator | None = None) -> Audio:
    """Return a clip, float32 [samples].

    `rng` draws the level, the force of each hit, and the tuning of the bass; without it they are the same each time.
    """
    audio = np.zeros(SAMPLES + SAMPLE_RATE)
    sixteenth = SIXTEENTH[score.tempo]
    detune = 2 ** (_draw(rng, 5.0) / 1200)
    for first in range(0, SAMPLES, STEPS * sixteenth):
        if score.pattern:
            _play_drums(audio, first, sixteenth, score, rng)
        if score.root:
            for step, length, semitones in LINES[score.line]:
                frequency = ROOTS[score.root] * 2 ** (semitones / 12) * detune
                note = bass(frequency, 0.92 * length * sixteenth / SAMPLE_RATE)
                _add(audio, first + step * sixteenth, 0.26 * note, rng)
    audio = 0.5 * in_room(audio[:SAMPLES]) * 10 ** (_draw(rng, 3.0) / 20)
    return audio.astype(np.float32)


def _play_drums(
    audio: Floats, first: int, sixteenth: int, score: Score, rng: np.random.Generator | None
) -> None:
    kicks, snares = PATTERNS[score.pattern]
    for step in kicks:
        _add(audio, first + step * sixteenth, 0.5 * kick(), rng)
    for step in snares:
        _add(audio, first + step * sixteenth, (0.25 if step % 4 else 0.4) * snare(), rng)
    for step in HATS[score.hats]:
        _add(audio, first + step * sixteenth, (0.28, 0.24)[step % 2] * hat(), rng)


def _add(audio: Floats, start: int, sound: Floats, rng: np.random.Generator | None) -> None:
    if start < SAMPLES:
        part = audio[start : start + len(sound)]
        part += sound[: len(part)] * (1 + _draw(rng, 0.1))


def _draw(rng: np.random.Generator | None, most: float) -> float:
    return 0.0 if rng is None else float(rng.uniform(-most, most))
