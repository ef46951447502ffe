"""Which codebook is trained when."""

from __future__ import annotations

import itertools

import pytest
import torch

from magnet_train.masking import draw_stage, stratified_stages


def test_stages_are_repeatable_and_even():
    drawn = [draw_stage(1, step, [1, 1, 1, 1]) for step in range(2000)]
    assert drawn == [draw_stage(1, step, [1, 1, 1, 1]) for step in range(2000)]
    counts = torch.bincount(torch.tensor(drawn), minlength=4)
    # chi-square with 3 degrees of freedom: 16.3 is exceeded once in a thousand
    assert float(((counts - 500) ** 2 / 500).sum()) < 16.3
    pairs = torch.bincount(torch.tensor([4 * a + b for a, b in itertools.pairwise(drawn)]), minlength=16)
    assert float(((pairs - 125) ** 2 / 125).sum()) < 37.7  # 15 degrees of freedom, one in a thousand


def test_stages_follow_their_weights():
    drawn = [draw_stage(0, step, [1, 0, 0, 1]) for step in range(100)]
    assert set(drawn) == {0, 3}


@pytest.mark.parametrize("first", [0, 3, 1_000_001])
def test_every_few_clips_in_a_row_hold_every_codebook(first):
    stages = stratified_stages(torch.arange(first, first + 64), [1, 1, 1, 1])
    assert torch.bincount(stages, minlength=4).tolist() == [16] * 4
    for block in range(-first % 4, 60, 4):
        assert sorted(stages[block : block + 4].tolist()) == [0, 1, 2, 3]


def test_shares_of_any_stretch_follow_the_weights():
    weights = torch.tensor([0.4, 0.2, 0.2, 0.2])
    stages = stratified_stages(torch.arange(4000), weights.tolist())
    for length in (16, 64, 400):
        for start in range(0, 4000 - length, 97):
            counts = torch.bincount(stages[start : start + length], minlength=4)
            # Independent draws would be off by 3 standard deviations, 5.9 of 16, now and then.
            assert (counts - weights * length).abs().max() <= 2.5


def test_a_clips_stage_does_not_depend_on_its_batch():
    slots = torch.randperm(100)
    whole = stratified_stages(torch.arange(100), [3, 1, 0, 1])
    assert torch.equal(stratified_stages(slots, [3, 1, 0, 1]), whole[slots])
    assert 2 not in whole
