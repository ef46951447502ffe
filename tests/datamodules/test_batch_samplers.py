"""The global order does not depend on the number of ranks."""

from __future__ import annotations

import itertools

import pytest

from datamodules.sampling.batch_samplers import EvaluationBatchSampler, InfiniteBatchSampler


def global_slots(world_size: int, steps: int, start: int = 0) -> list[int]:
    """Join what the ranks see, step by step; the global batch is 8."""
    ranks = [
        InfiniteBatchSampler(batch_size=8 // world_size, rank=rank, world_size=world_size, start=start)
        for rank in range(world_size)
    ]
    steps_of_ranks = zip(*(itertools.islice(rank, steps) for rank in ranks), strict=True)
    return [int(slot) for step in steps_of_ranks for batch in step for slot in batch]


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_order_is_the_same_for_any_number_of_ranks(world_size: int) -> None:
    assert global_slots(world_size, 20) == list(range(160))


def test_resuming_continues_the_order() -> None:
    assert global_slots(4, 5, start=8 * 15) == global_slots(1, 20)[8 * 15 :]


def test_start_may_be_moved_between_iterations() -> None:
    sampler = InfiniteBatchSampler(batch_size=4)
    assert next(iter(sampler))[0] == 0
    sampler.start = 12
    assert next(iter(sampler))[0] == 12


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 5, 37, 40])
def test_validation_covers_each_slot_once_in_equally_many_batches(world_size: int, count: int) -> None:
    ranks = [
        list(EvaluationBatchSampler(count, batch_size=4, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(rank) for rank in ranks}) == 1
    assert all(len(batch) == 4 for rank in ranks for batch in rank)
    slots = [int(slot) for rank in ranks for batch in rank for slot in batch]
    assert sorted(slot for slot in slots if slot >= 0) == list(range(count))
    assert {slot for slot in slots if slot < 0} <= {-1}


def test_fewer_clips_than_ranks_still_gives_every_rank_a_batch() -> None:
    assert [
        EvaluationBatchSampler(1, batch_size=1, rank=rank, world_size=2)[0].tolist() for rank in (0, 1)
    ] == [
        [0],
        [-1],
    ]
