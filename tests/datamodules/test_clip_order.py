"""Order, crops and noise are functions of (seed, slot) and do not change."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from datamodules.sampling.order import ClipOrder, Purpose, below, permute, random_bits, uniforms

KEYS = random_bits(11, np.arange(2000), Purpose.ORDER, 6)  # rounds of 2,000 epochs


def chi_square(counts: np.ndarray) -> float:
    """Distance from even counts in standard deviations, by the normal approximation."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


def test_order_is_recorded() -> None:
    """Numbers written down with ORDER_VERSION 2, numpy 2.4: a change of them has to raise the version."""
    assert ClipOrder(0, 12)[np.arange(24)].tolist() == [
        *[11, 0, 8, 10, 2, 9, 7, 3, 6, 1, 4, 5],
        *[6, 7, 11, 10, 4, 9, 0, 5, 1, 8, 2, 3],
    ]
    assert random_bits(3, 5, Purpose.TRAIN, 2).tolist() == [0x7A59C0C14A3BA6E7, 0x94DCC90BBD977E70]


@pytest.mark.parametrize("clips", [1, 2, 3, 4, 5, 8, 9, 10, 37, 1000, 1024, 99_991])
def test_each_epoch_has_each_clip_once(clips: int) -> None:
    order = ClipOrder(3, clips)
    for epoch in range(3):
        walked = order[np.arange(epoch * clips, (epoch + 1) * clips)]
        assert np.array_equal(np.sort(walked), np.arange(clips))


@pytest.mark.parametrize("size", [10**9, 2**40 + 7, 2**62])
def test_a_large_order_is_one_to_one(size: int) -> None:
    """A bijection cannot be walked through here; a collision among 200,000 images would refute it."""
    places = np.unique(np.random.default_rng(0).integers(0, size, 200_000))
    images = permute(places, size, KEYS[0])
    assert 0 <= images.min() <= images.max() < size
    assert len(np.unique(images)) == len(places)
    thousandths = np.bincount((images.astype(float) / size * 1000).astype(int), minlength=1000)
    assert abs(chi_square(thousandths)) < 4


def test_a_large_order_keeps_no_table() -> None:
    order = ClipOrder(0, 10**9)
    order[np.arange(8)]
    tracemalloc.start()
    try:
        for start in (0, 10**8, 5 * 10**9, 10**12):
            order[np.arange(start, start + 8)]
        assert tracemalloc.get_traced_memory()[1] < 100_000  # bytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("clips", [2, 3, 5, 9, 10, 37])
def test_every_clip_is_as_likely_at_every_place(clips: int) -> None:
    """Chi-square of place against clip over 2,000 epochs."""
    counts = np.zeros((clips, clips))
    for keys in KEYS:
        counts[np.arange(clips), permute(np.arange(clips), clips, keys)] += 1
    assert abs(chi_square(counts)) < 4


def test_every_order_of_three_is_as_likely() -> None:
    orders = [tuple(permute(np.arange(3), 3, keys).tolist()) for keys in KEYS]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6
    assert abs(chi_square(counts)) < 4


@pytest.mark.parametrize("clips", [10, 37])
def test_neighbours_are_any_pair(clips: int) -> None:
    """Chi-square over the ordered pairs of clips that follow each other."""
    counts = np.zeros((clips, clips))
    for keys in KEYS:
        walked = permute(np.arange(clips), clips, keys)
        np.add.at(counts, (walked[:-1], walked[1:]), 1)
    assert not counts.diagonal().any()
    assert abs(chi_square(counts[~np.eye(clips, dtype=bool)])) < 4


def test_neighbours_in_a_large_order_are_unrelated() -> None:
    """A million places of one epoch over a billion clips: pairs of clips fall evenly on a 32 x 32 grid."""
    walked = ClipOrder(0, 10**9)[np.arange(10**6)]
    cells = walked * 32 // 10**9
    counts = np.bincount(cells[:-1] * 32 + cells[1:], minlength=1024)
    assert abs(chi_square(counts)) < 4
    places = np.arange(10**6) * 32 // 10**6
    assert abs(chi_square(np.bincount(places * 32 + cells, minlength=1024))) < 4


def test_epochs_and_seeds_differ() -> None:
    places = np.arange(1000)
    first, second = ClipOrder(0, 1000)[places], ClipOrder(0, 1000)[places + 1000]
    other, beside = ClipOrder(1, 1000)[places], ClipOrder(0, 1000, source=1)[places]
    for walked in (second, other, beside):
        assert (first != walked).mean() > 0.99


def test_epochs_are_unrelated() -> None:
    """Chi-square of a clip's place in one epoch against its place in the next, in tenths."""
    walked = ClipOrder(5, 100_000)[np.arange(200_000)].reshape(2, -1)
    place = np.argsort(walked, axis=1) // 10_000
    assert abs(chi_square(np.bincount(place[0] * 10 + place[1], minlength=100))) < 4


def test_places_may_come_in_any_order() -> None:
    order = ClipOrder(7, 10)
    places = np.random.default_rng(0).permutation(50)
    walked = order[np.arange(50)]
    assert (order[places] == walked[places]).all()


def test_purposes_draw_unrelated_bits() -> None:
    drawn = [random_bits(0, 0, purpose, 100, source) for purpose in Purpose for source in (0, 1)]
    assert len(np.unique(np.concatenate(drawn))) == 200 * len(Purpose)


def test_bits_of_many_numbers_are_those_of_each() -> None:
    """What one Philox gives for several numbers is what NumPy gives with a fresh one for each."""
    for number, bits in zip([5, 0, 2**40], random_bits(3, [5, 0, 2**40], Purpose.TRAIN, 7), strict=True):
        fresh = np.random.Philox(
            key=np.array([3, number], dtype=np.uint64),
            counter=np.array([0, 0, 0, Purpose.TRAIN], dtype=np.uint64),
        )
        assert bits.tolist() == fresh.random_raw(7).tolist()


def test_uniforms_are_uniform() -> None:
    """Chi-square over 64 bins of 64,000 draws: 63 degrees of freedom, 99.9 % below 103."""
    draws = uniforms(random_bits(1, np.arange(1000), Purpose.TRAIN, 32)).ravel()
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
    assert uniforms(np.array([2**64 - 1], dtype=np.uint64)).tolist() == [1 - 2**-24] * 2


def test_a_word_gives_its_lower_half_first() -> None:
    assert uniforms(np.array([1 << 63 | 1 << 30], dtype=np.uint64)).tolist() == [0.25, 0.5]
