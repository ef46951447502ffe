"""The global order does not know how many ranks there are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from datamodules.sampler import Batch, EveryClipOnce, SlotBatchSampler

CLIPS = np.arange(100, 137)  # 37: no multiple of anything used here


def global_slots(world_size: int, steps: int, start: int = 0) -> Batch:
    """Join what the ranks see, step by step; the global batch is 8."""
    ranks = [
        SlotBatchSampler(
            CLIPS, seed=5, batch_size=8 // world_size, rank=rank, world_size=world_size, start=start
        )
        for rank in range(world_size)
    ]
    steps_of_ranks = zip(*(itertools.islice(rank, steps) for rank in ranks), strict=True)
    return [row for step in steps_of_ranks for batch in step for row in batch]


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_order_is_the_same_for_any_number_of_ranks(world_size: int) -> None:
    assert global_slots(world_size, 20) == global_slots(1, 20)


def test_each_epoch_has_each_clip_once() -> None:
    rows = global_slots(2, 37)  # 8 epochs of 37 slots
    assert [slot for slot, _ in rows] == list(range(8 * 37))
    for epoch in range(8):
        assert sorted(clip for _, clip in rows[epoch * 37 : (epoch + 1) * 37]) == CLIPS.tolist()


def test_resuming_continues_the_order() -> None:
    assert global_slots(4, 5, start=8 * 15) == global_slots(1, 20)[8 * 15 :]


def test_start_may_be_moved_between_iterations() -> None:
    sampler = SlotBatchSampler(CLIPS, seed=5, batch_size=4)
    assert next(iter(sampler))[0][0] == 0
    sampler.start = 12
    assert next(iter(sampler))[0][0] == 12


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("clips", [1, 5, 37, 40])
def test_validation_covers_each_clip_once_in_equally_many_batches(world_size: int, clips: int) -> None:
    ranks = [
        EveryClipOnce(
            CLIPS[:clips] if clips < 37 else np.arange(clips), batch_size=4, rank=r, world_size=world_size
        )
        for r in range(world_size)
    ]
    batches = [list(rank) for rank in ranks]
    assert len({len(rank) for rank in batches}) == 1
    rows = [row for rank in batches for batch in rank for row in batch]
    real = sorted(row for row in rows if row[0] >= 0)
    assert [slot for slot, _ in real] == list(range(clips))
    assert len({clip for _, clip in real}) == clips
    assert {row for row in rows if row[0] < 0} <= {(-1, -1)}
    assert all(len(batch) == 4 for rank in batches for batch in rank)


def test_fewer_clips_than_ranks_still_gives_every_rank_a_batch() -> None:
    assert [EveryClipOnce(CLIPS[:1], batch_size=1, rank=r, world_size=2)[0] for r in (0, 1)] == [
        [(0, 100)],
        [(-1, -1)],
    ]
