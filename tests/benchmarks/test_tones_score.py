"""The score of the tones, and of chance."""

import math
from dataclasses import replace

import numpy as np
import pytest

from harness.tones.captions import Caption, Event
from harness.tones.oracle import accuracy, chance, read_clips
from harness.tones.world import ToneWorld

C4, NOISE = Event("c4", "sine", "fast"), Event("", "noise", "slow")


def test_accuracy_counts_windows_and_ignores_the_pitch_of_noise():
    captions = [Caption("", (C4,)), Caption("", (NOISE,)), Caption("", (C4, NOISE))]
    readings = [[C4, C4], [C4, NOISE], [replace(C4, pitch="d4"), replace(NOISE, rhythm="fast")]]
    assert accuracy(captions, readings) == {"pitch": 2 / 3, "timbre": 5 / 6, "rhythm": 4 / 6}


def test_accuracy_rejects_unequal_numbers_and_captions_without_pitch():
    with pytest.raises(ValueError, match="shorter"):
        accuracy([Caption("", (C4,))] * 2, [[C4]])
    with pytest.raises(ValueError, match="nothing to score"):
        accuracy([Caption("", (NOISE,))], [[NOISE]])


def test_clean_clips_score_one_and_chance_follows_the_world():
    captions, clips = zip(*ToneWorld(seed=8).clips(400, "test"), strict=True)
    readings = read_clips(clips)
    assert accuracy(captions, readings) == {"pitch": 1, "timbre": 1, "rhythm": 1}
    by_chance = chance(captions, readings)
    assert by_chance["pitch"] == pytest.approx(0.885 / 8, abs=0.02)  # of tonal events alone: 69 of 78 weights
    assert by_chance["timbre"] == pytest.approx(3 * 0.295**2 + 0.115**2, abs=0.03)
    assert by_chance["rhythm"] == pytest.approx(1 / 3, abs=0.03)


def test_one_clip_of_silence_scores_nothing():
    readings = read_clips([np.zeros(10240)])
    assert accuracy([Caption("", (C4,))], readings) == {"pitch": 0, "timbre": 0, "rhythm": 0}
    assert not math.isnan(sum(accuracy([Caption("", (C4,))], readings).values()))
