"""Score clips against captions by the oracle, one number an attribute.

Shapes: audio float [samples] at 8 kHz.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from magnet_train.quickstart.captions import ATTRIBUTES, Caption, Event
from magnet_train.quickstart.oracle import expected_windows, read_clip

Floats = npt.NDArray[np.floating]
Readings = list[list[Event]]  # one event per window of each clip


def read_clips(clips: Iterable[Floats]) -> Readings:
    """Let the oracle read every clip."""
    return [read_clip(audio) for audio in clips]


def accuracy(captions: Sequence[Caption], readings: Readings) -> dict[str, float]:
    """Return how often each attribute is what the caption says, 0..1, over all windows of all clips.

    Noise has no pitch, so a caption that asks for noise says nothing about pitch and does not count there.

    Args:
        captions: What was asked for.
        readings: What the oracle read, in the same order.

    Raises:
        ValueError: There is not one reading for each caption, or none at all asks for a pitch.
    """
    right = dict.fromkeys(ATTRIBUTES, 0)
    asked = dict.fromkeys(ATTRIBUTES, 0)
    for caption, reading in zip(captions, readings, strict=True):
        for event, heard in zip(expected_windows(caption.events, len(reading)), reading, strict=True):
            for attribute in ATTRIBUTES:
                value = getattr(event, attribute)
                if value:
                    asked[attribute] += 1
                    right[attribute] += value == getattr(heard, attribute)
    if not all(asked.values()):
        raise ValueError(f"nothing to score: captions asked for {asked}")
    return {attribute: right[attribute] / asked[attribute] for attribute in ATTRIBUTES}


def chance(
    captions: Sequence[Caption], readings: Readings, seed: int = 0, rounds: int = 20
) -> dict[str, float]:
    """Return the accuracy of the clips against the captions of others: what luck gives, mean of `rounds`."""
    rng = np.random.default_rng(seed)
    scores = []
    for _ in range(rounds):
        order = rng.permutation(len(captions))
        scores.append(accuracy([captions[int(number)] for number in order], readings))
    return {attribute: float(np.mean([score[attribute] for score in scores])) for attribute in ATTRIBUTES}
