"""Clips of drums and bass are heard wherever in the bar they begin, and shares get their interval."""

from __future__ import annotations

import numpy as np
import pytest

from harness.any_phase import CLIP, LongBandWorld, read_clips
from harness.quickstart_world import wilson
from magnet_train.apps.quickstart.drums_and_bass.oracle import HOP
from magnet_train.apps.quickstart.drums_and_bass.world import FRAME


@pytest.mark.slow
def test_crops_are_read_as_captioned() -> None:
    rng = np.random.default_rng(0)
    captions, clips = zip(*LongBandWorld().clips(12, "test"), strict=True)
    starts = rng.integers(1, 160, len(clips))
    crops = [
        audio[start * FRAME : start * FRAME + CLIP * HOP] for audio, start in zip(clips, starts, strict=True)
    ]
    assert read_clips(crops) == [caption.score for caption in captions]
    assert not read_clips([np.zeros(CLIP * HOP)])[0].parts


def test_the_interval_of_a_share_stays_within_0_and_1() -> None:
    assert wilson(1.0, 120) == (0.969, 1.0)
    assert wilson(0.0, 60) == (0.0, 0.06)
    assert wilson(0.5, 96) == pytest.approx((0.402, 0.598))
