"""The nearest training clip: copies are found wherever they lie, and nothing else looks like one."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from magnet_train.evaluation import nearest
from magnet_train.evaluation.nearest import NearestSearch, TokenDistances

CARD = 64


def random_clips(rng: np.random.Generator, lengths: list[int], card: int = CARD) -> list[np.ndarray]:
    return [rng.integers(0, card, length) for length in lengths]


def search(clips: list[np.ndarray], train: list[np.ndarray]) -> list[nearest.NearestClip]:
    found = NearestSearch(clips)
    for number, tokens in enumerate(train):
        found.add(f"clip{number}", tokens)
    return found.found


def by_hand(clip: np.ndarray, train: list[np.ndarray]) -> float:
    """Count equal tokens at every alignment."""
    most = 0
    for tokens in train:
        for shift in range(1 - len(clip), len(tokens)):
            frames = [n for n in range(len(clip)) if 0 <= shift + n < len(tokens)]
            most = max(most, sum(clip[n] == tokens[shift + n] for n in frames))
    return 1 - most / len(clip)


@pytest.mark.parametrize("card", [2, 5, 64])
@pytest.mark.parametrize("limits", [(2048, 2**22, 2**21), (7, 40, 3)])  # the second divides everything
def test_distances_are_those_of_every_alignment_counted(card, limits, monkeypatch):
    for name, limit in zip(("_PIECE", "_MOST_CELLS", "_MOST_EQUAL"), limits, strict=True):
        monkeypatch.setattr(nearest, name, limit)
    rng = np.random.default_rng(card)
    clips, train = (
        random_clips(rng, [1, 3, 12, 12, 20], card),
        random_clips(rng, [1, 5, 12, 40, 90], card + 1),
    )
    found = search(clips, train)
    assert [near.distance for near in found] == pytest.approx([by_hand(clip, train) for clip in clips])


def test_a_copy_is_found_with_its_key_and_place():
    rng = np.random.default_rng(0)
    train = random_clips(rng, [500] * 20)
    train[7] = rng.integers(0, CARD, 5000)
    clips = [train[3], train[7][2300:2400], rng.integers(0, CARD, 200)]
    whole, part, other = search(clips, train)
    assert (whole.distance, whole.key, whole.frame) == (0, "clip3", 0)
    assert (part.distance, part.key, part.frame) == (0, "clip7", 2300)
    assert other.distance > 0.8


def test_a_copy_with_errors_and_one_that_begins_before_the_clip():
    rng = np.random.default_rng(0)
    train = random_clips(rng, [100] * 3)
    changed = train[1].copy()
    changed[::4] = CARD  # an entry that no training clip has
    late = np.concatenate([rng.integers(CARD, 2 * CARD, 25), train[2][:75]])
    worn, shifted = search([changed, late], train)
    assert (worn.distance, worn.key) == (0.25, "clip1")
    assert (shifted.distance, shifted.key, shifted.frame) == (0.25, "clip2", -25)


def test_the_first_of_equal_training_clips_is_named():
    (found,) = search([np.arange(10)], [np.arange(5, 15), np.arange(10), np.arange(10)])
    assert (found.distance, found.key) == (0, "clip1")


def test_clips_without_anything_in_common_are_at_one():
    (found,) = search([np.zeros(10, dtype=np.int64)], [np.ones(20, dtype=np.uint16)])
    assert found.distance == 1


def test_memory_is_bounded_where_all_tokens_are_equal():
    clips = [np.zeros(200, dtype=np.int64)] * 20
    found = NearestSearch(clips)
    tracemalloc.start()
    try:
        found.add("hum", np.zeros(5000, dtype=np.uint16))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert {near.distance for near in found.found} == {0}
    assert peak < 120 * 2**20


def test_quantiles():
    distances = TokenDistances.of([0.5, 0.9, 0.8, 1.0, 0.7])
    assert (distances.median, distances.clips) == (0.8, 5)
    assert distances.low == pytest.approx(0.54)
