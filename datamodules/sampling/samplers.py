"""Samplers: batches of slots for each rank, and the clip of each slot.

A batch is the numbers of its slots, int64 [B]; the worker that loads it computes the clips. The order of slots is the
same for any number of ranks. Clips are numbered as in the index of their folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from datamodules.sampling.order import ClipOrder, Purpose, below, random_bits
from magnet_train.errors import UserError

Slots: TypeAlias = npt.NDArray[np.int64]  # -1 marks a padding row
_SHARE_BITS = 16  # weights are rounded to 1/65536; slots may go up to 2**47
_WHOLE = 1 << _SHARE_BITS
_REPLACEMENTS = 16  # clips to try in place of a damaged one


@dataclass
class InfiniteBatchSampler:
    """Yield this rank's slice of each global batch, without end.

    A global batch is `batch_size * world_size` consecutive slots, and rank r takes the r-th slice. So every rank always
    has a batch, and none waits for another at the end of an epoch.
    """

    batch_size: int  # clips in a batch of one rank
    rank: int = 0  # this process, 0..world_size-1
    world_size: int = 1  # number of training processes
    start: int = 0  # first slot of the run to yield; may be changed between two iterations

    def __iter__(self) -> Iterator[Slots]:
        first = self.start + self.rank * self.batch_size
        while True:
            yield np.arange(first, first + self.batch_size)
            first += self.batch_size * self.world_size


@dataclass
class EvaluationBatchSampler:
    """Cover slots 0..slots-1 once, with the same number of full batches on each rank; -1 pads the last one."""

    slots: int
    batch_size: int  # rows in a batch of one rank
    rank: int = 0  # this process, 0..world_size-1
    world_size: int = 1  # number of evaluating processes

    def __len__(self) -> int:
        return -(-self.slots // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[Slots]:
        for number in range(len(self)):
            first = (number * self.world_size + self.rank) * self.batch_size
            numbers = np.arange(first, first + self.batch_size)
            yield np.where(numbers < self.slots, numbers, -1)


class SampledClips(NamedTuple):
    """The clips of n slots."""

    folder: npt.NDArray[np.int64]  # [n], numbers of the folders
    clip: npt.NDArray[np.int64]  # [n], numbers of the clips within their folders


class TrainSplit:
    """The training clips of a folder: all but those held out for validation, whose numbers alone are stored.

    Args:
        clips: Clips in the folder.
        held_out: Numbers of the validation clips, sorted, [m].
    """

    def __init__(self, clips: int, held_out: npt.NDArray[np.int64]) -> None:
        self._clips = clips
        self._kept_before = held_out - np.arange(len(held_out))  # number of train clips before each

    def __len__(self) -> int:
        return self._clips - len(self._kept_before)

    def __getitem__(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the clips at `places`, each in 0..len-1; [n] for [n]."""
        return places + np.searchsorted(self._kept_before, places, side="right")


def hold_out(
    key_hashes: npt.NDArray[np.uint64], fraction: float, folder: Path | str
) -> npt.NDArray[np.int64]:
    """Choose a share of the clips of a folder for validation, by the hash of their keys, uint64 [n].

    Returns:
        Numbers of the clips, sorted; at least one, and never all.

    Raises:
        UserError: Fewer than two clips.
    """
    if len(key_hashes) < 2:
        raise UserError(
            f"{folder} holds {len(key_hashes)} clip, so none can be held out for validation; add clips or "
            "name other shards with data.val_shards."
        )
    held_out = np.flatnonzero(key_hashes < np.uint64(min(int(fraction * 2.0**64), 2**64 - 1)))
    if not len(held_out):
        return np.array([np.argmin(key_hashes)])
    if len(held_out) == len(key_hashes):
        return np.delete(held_out, np.argmax(key_hashes))
    return held_out


class WeightedMixture:
    """Sample from several folders by weight, each in its own order through its own epochs.

    Folders are interleaved evenly: after s slots a folder of weight w has had s * w of them, to within one for each
    folder. A single folder is a mixture of one.

    Args:
        splits: For each folder, its training clips.
        weights: For each folder, its share of the slots; only their ratios matter.
        seed: The run's seed.

    Raises:
        UserError: A weight that is not positive, or too small beside the others.
    """

    def __init__(self, splits: Sequence[TrainSplit], weights: Sequence[float], seed: int) -> None:
        self.splits = splits
        self.seed = seed
        self._orders = [ClipOrder(seed, len(split), number) for number, split in enumerate(splits)]
        if min(weights) <= 0 or not np.isfinite(sum(weights)):
            raise UserError(f"the weights in data.shards are {list(weights)}; each must be above 0.")
        # share of each folder among the slots that the folders before it leave over
        self._shares = [round(weight / sum(weights[n:]) * _WHOLE) for n, weight in enumerate(weights)]
        if min(self._shares) < 1 or any(share >= _WHOLE for share in self._shares[:-1]):
            raise UserError(
                f"the weights in data.shards are {list(weights)}; the smallest must be at least 1/{_WHOLE} "
                "of the others."
            )

    def __getitem__(self, slots: Slots) -> SampledClips:
        sampled = SampledClips(np.empty_like(slots), np.empty_like(slots))
        rows = np.arange(len(slots))  # whose folder is not known yet
        places = slots  # among the slots that the folders before leave over
        parts = zip(self._shares, self.splits, self._orders, strict=True)
        for folder, (share, split, order) in enumerate(parts):
            taken = (places * share) >> _SHARE_BITS
            is_taken = ((places + 1) * share) >> _SHARE_BITS > taken
            sampled.folder[rows[is_taken]] = folder
            sampled.clip[rows[is_taken]] = split[order[taken[is_taken]]]
            rows, places = rows[~is_taken], (places - taken)[~is_taken]
        return sampled

    def replacements(self, slot: int, folder: int) -> npt.NDArray[np.int64]:
        """Draw clips of the folder to try, in this order, if the slot's own is damaged; other slots keep theirs."""
        split = self.splits[folder]
        words = random_bits(self.seed, slot, Purpose.REPLACEMENT, _REPLACEMENTS)
        return split[np.array([below(word, len(split)) for word in words])]


class SequentialClips:
    """Take the given clips in order: slot i is the i-th, over all folders.

    Args:
        clips: For each folder, numbers of its clips, [n].
    """

    def __init__(self, clips: Sequence[npt.NDArray[np.int64] | range]) -> None:
        self._clips = clips
        self._ends = np.cumsum([len(numbers) for numbers in clips])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, slots: Slots) -> SampledClips:
        folder = np.searchsorted(self._ends, slots, side="right")
        within = slots - np.concatenate(([0], self._ends))[folder]
        clip = [self._clips[f][place] for f, place in zip(folder, within, strict=True)]
        return SampledClips(folder, np.array(clip, dtype=np.int64))

    def replacements(self, slot: int, folder: int) -> npt.NDArray[np.int64]:
        """Return none: a replacement would be evaluated twice."""
        return np.empty(0, dtype=np.int64)


ClipSampler: TypeAlias = WeightedMixture | SequentialClips
