"""Order, crops and dice are functions of (seed, slot) and stay what they are."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules.order import ClipOrder, Purpose, below, order, random_bits, uniforms


def test_order_is_recorded() -> None:
    """Numbers written down with ORDER_VERSION 1, numpy 2.4: a change of them has to raise the version."""
    assert order(0, 0, 12).tolist() == [0, 2, 11, 9, 1, 8, 5, 4, 3, 10, 6, 7]
    assert random_bits(3, 5, Purpose.TRAIN, 2).tolist() == [0x7A59C0C14A3BA6E7, 0x94DCC90BBD977E70]


def test_order_is_a_permutation_and_differs() -> None:
    first, second, other = order(0, 0, 1000), order(0, 1, 1000), order(1, 0, 1000)
    for permutation in (first, second, other):
        assert sorted(permutation.tolist()) == list(range(1000))
    assert (first != second).mean() > 0.99
    assert (first != other).mean() > 0.99


def test_clip_order_walks_epochs() -> None:
    clips = ClipOrder(seed=7, clips=10)
    walked = [clips[slot] for slot in range(30)]
    assert walked == [*order(7, 0, 10), *order(7, 1, 10), *order(7, 2, 10)]
    assert clips[3] == walked[3]  # back to an earlier epoch


def test_purposes_draw_unrelated_bits() -> None:
    drawn = [random_bits(0, 0, purpose, 100) for purpose in Purpose]
    assert len(np.unique(np.concatenate(drawn))) == 300


def test_uniforms_are_uniform() -> None:
    """Chi-square over 64 bins of 64,000 draws: 63 degrees of freedom, 99.9 % below 103."""
    draws = np.concatenate([uniforms(random_bits(1, slot, Purpose.TRAIN, 64)) for slot in range(1000)])
    assert draws.dtype == np.float32
    assert 0 <= draws.min() <= draws.max() < 1
    counts = np.bincount((draws * 64).astype(int), minlength=64)
    assert ((counts - 1000) ** 2 / 1000).sum() < 103


@pytest.mark.parametrize(
    ("word", "limit", "expected"), [(0, 5, 0), (2**64 - 1, 5, 4), (2**63, 5, 2), (123, 1, 0)]
)
def test_below(word: int, limit: int, expected: int) -> None:
    assert below(np.uint64(word), limit) == expected


def test_uniforms_never_reach_one() -> None:
    assert uniforms(np.array([2**64 - 1], dtype=np.uint64))[0] == np.float32(1 - 2**-24)
