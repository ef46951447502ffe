"""The global order does not depend on the number of ranks; splits, mixtures and replacements are functions of the slot."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from datamodules.sampling.samplers import (
    EvaluationBatchSampler,
    InfiniteBatchSampler,
    SequentialClips,
    TrainSplit,
    WeightedMixture,
    hold_out,
)
from magnet_train.errors import UserError

NONE = np.empty(0, dtype=np.int64)


def mixture(*parts: tuple[int, float], seed: int = 0) -> WeightedMixture:
    """Return a mixture of folders given as (clips, weight)."""
    return WeightedMixture(
        [TrainSplit(clips, NONE) for clips, _ in parts], [weight for _, weight in parts], seed
    )


def test_holding_out_goes_by_key() -> None:
    """Clips stay in their split when others are added, and the share is about the requested one."""
    hashes = np.random.default_rng(0).integers(0, 2**64, 10_000, dtype=np.uint64)
    held = hold_out(hashes, 0.1, Path("x"))
    assert 900 < len(held) < 1100
    half = hold_out(hashes[:5000], 0.1, Path("x"))
    assert half.tolist() == [clip for clip in held if clip < 5000]


@pytest.mark.parametrize(("fraction", "held"), [(0.0, [0]), (1e-9, [0]), (0.999999, [0])])
def test_both_sides_get_at_least_one_clip(fraction: float, held: list[int]) -> None:
    assert hold_out(np.array([5, 2**63], dtype=np.uint64), fraction, Path("x")).tolist() == held


def test_what_is_not_held_out_is_numbered_without_gaps() -> None:
    held = np.array([0, 3, 4, 9])
    kept = TrainSplit(10, held)
    assert len(kept) == 6
    assert kept[np.arange(6)].tolist() == [1, 2, 5, 6, 7, 8]


def test_one_folder_is_walked_in_epochs() -> None:
    sampler = mixture((37, 2.0))
    sampled = sampler[np.arange(3 * 37)]
    assert not sampled.folder.any()
    for epoch in range(3):
        assert sorted(sampled.clip[epoch * 37 : (epoch + 1) * 37]) == list(range(37))


@pytest.mark.parametrize("weights", [(3, 1), (0.2, 0.5, 0.3), (1, 1, 1), (1000, 1)])
def test_weights_hold_at_every_moment(weights: tuple[float, ...]) -> None:
    sampler = mixture(*((50, weight) for weight in weights))
    folders = sampler[np.arange(20_000)].folder
    for number, weight in enumerate(weights):
        counts = np.cumsum(folders == number)
        expected = np.arange(1, 20_001) * weight / sum(weights)
        assert np.abs(counts - expected).max() < len(weights) + 20_000 / 2**16


def test_each_folder_goes_through_its_own_epochs() -> None:
    sampled = mixture((7, 3), (11, 1), (5, 2))[np.arange(1200)]
    for folder, clips in enumerate((7, 11, 5)):
        walked = sampled.clip[sampled.folder == folder]
        for start in range(0, len(walked) - clips, clips):
            assert sorted(walked[start : start + clips]) == list(range(clips))


def test_folders_of_one_size_have_orders_of_their_own() -> None:
    sampled = mixture((100, 1), (100, 1))[np.arange(200)]
    assert (sampled.clip[sampled.folder == 0] != sampled.clip[sampled.folder == 1]).mean() > 0.9


def test_any_piece_of_the_run_is_the_same() -> None:
    sampler = mixture((7, 3), (11, 1), (5, 2), seed=3)
    whole, piece = sampler[np.arange(500)], sampler[np.arange(123, 456)]
    assert (whole.folder[123:456] == piece.folder).all()
    assert (whole.clip[123:456] == piece.clip).all()


@pytest.mark.parametrize("weights", [(1, 0), (1, -1), (1, float("nan")), (1, 1e-6), (1e-6, 1)])
def test_weights_that_cannot_be_kept_are_refused(weights: tuple[float, float]) -> None:
    with pytest.raises(UserError, match=r"data\.shards"):
        mixture((5, weights[0]), (5, weights[1]))


def test_replacements_are_of_the_slot_and_not_held_out() -> None:
    sampler = WeightedMixture([TrainSplit(10, np.array([2, 7]))], [1.0], seed=0)
    first = sampler.replacements(5, 0)
    assert first.tolist() == sampler.replacements(5, 0).tolist() != sampler.replacements(6, 0).tolist()
    assert not {2, 7} & {int(clip) for slot in range(50) for clip in sampler.replacements(slot, 0)}


def test_one_by_one_joins_the_folders() -> None:
    sampler = SequentialClips([np.array([4, 8]), range(0), range(3)])
    assert len(sampler) == 5
    sampled = sampler[np.array([0, 1, 2, 4])]
    assert sampled.folder.tolist() == [0, 0, 2, 2]
    assert sampled.clip.tolist() == [4, 8, 0, 2]
    assert not len(sampler.replacements(0, 0))


def test_a_billion_clips_cost_no_more_than_ten() -> None:
    """1,024 ranks far into a run over a billion clips: what a rank keeps are a few numbers."""
    sampler = mixture((10**9, 1), seed=1)
    slots = 7 * 10**9 + 1023 * 8 + np.arange(8)
    clips = sampler[slots].clip
    assert len(set(clips.tolist())) == 8
    assert ((clips >= 0) & (clips < 10**9)).all()
    kept = sampler.splits[0]
    assert kept._kept_before.nbytes == 0


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
    ranks = [EvaluationBatchSampler(1, batch_size=1, rank=rank, world_size=2) for rank in (0, 1)]
    assert [[batch.tolist() for batch in rank] for rank in ranks] == [[[0]], [[-1]]]
