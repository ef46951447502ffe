"""The oracle of the tones counts a single stumble of the beat."""

from __future__ import annotations

import numpy as np
import pytest

from harness.tones.captions import PITCHES, Caption, Event
from harness.tones.oracle import evenness


def pulse_train(period: int, count: int) -> np.ndarray:
    """Return `count` pulses of a sine, `period` samples apart."""
    time = np.arange(period)
    pulse = np.sin(2 * np.pi * 440 * time / 8000) * (time < 0.55 * period)
    return 0.5 * np.concatenate([np.zeros(160), np.tile(pulse, count), np.zeros(160)])


def test_evenness_counts_a_single_stumble() -> None:
    caption = Caption("", (Event(next(iter(PITCHES)), "sine", "fast"),))
    even = pulse_train(1440, 8)
    assert evenness([caption], [even]) == 1.0
    stumbling = np.concatenate([even[: 160 + 4 * 1440], np.zeros(700), even[160 + 4 * 1440 :]])
    assert evenness([caption], [stumbling]) == pytest.approx(6 / 7)


def test_steady_sounds_and_pairs_do_not_count_for_evenness() -> None:
    slow, fast = (Event("c4", "sine", rhythm) for rhythm in ("slow", "fast"))
    captions = [
        Caption("", (fast,)),
        Caption("", (slow, fast)),
        Caption("", (Event("c4", "sine", "steady"),)),
    ]
    assert evenness(captions, [pulse_train(1440, 5)] * 3) == 1.0
