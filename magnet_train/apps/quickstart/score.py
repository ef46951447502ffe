"""Score clips against captions by the oracle, one number an attribute.

Shapes: audio float [samples] at 8 kHz.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from magnet_train.apps.quickstart.captions import ATTRIBUTES, Caption, Event
from magnet_train.apps.quickstart.oracle import expected_windows, read_clip, read_intervals
from magnet_train.apps.quickstart.world import PERIOD

UNEVEN = 0.25  # of a period: an interval that is longer or shorter by more is a stumble

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


def evenness(captions: Sequence[Caption], clips: Iterable[Floats]) -> float:
    """Return the share of the intervals between pulses that are as long as the caption's rhythm asks, 0..1.

    `accuracy` reads a window by its median interval; one stumble, as a bad seam makes it, shows only here.

    Args:
        captions: What was asked for; those of one event with pulses count, slow or fast.
        clips: Float [samples], in the same order.
    """
    even = []
    for caption, audio in zip(captions, clips, strict=True):
        (period, *others) = {PERIOD.get(event.rhythm) for event in caption.events}
        if period is not None and not others:
            even += list(np.abs(read_intervals(audio) / period - 1) < UNEVEN)
    return float(np.mean(even))


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
