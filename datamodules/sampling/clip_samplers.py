"""Clip samplers: map slots to folders and clips, with a train split, weighted mixtures and sequential evaluation.

Clips are numbered as in the index of their folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from datamodules.sampling.batch_samplers import Slots
from datamodules.sampling.order import ClipOrder, Purpose, below, random_bits
from magnet_train.errors import UserError

_SHARE_BITS = 16  # weights are rounded to 1/65536; slots may go up to 2**47
_WHOLE = 1 << _SHARE_BITS
_REPLACEMENTS = 16  # clips to try in place of a damaged one


class SampledClips(NamedTuple):
    """The clips of n slots."""

    folder: npt.NDArray[np.int64]  # [n], numbers of the folders
    clip: npt.NDArray[np.int64]  # [n], numbers of the clips within their folders


class ClipSampler(Protocol):
    """Map slots to clips."""

    def __getitem__(self, slots: Slots) -> SampledClips: ...

    def replacements(self, slot: int, folder: int) -> npt.NDArray[np.int64]:
        """Return clips of the folder to try, in this order, if the slot's own clip is damaged."""
        ...


class TrainSplit:
    """Clips that are not held out for validation; stores only the numbers of those that are.

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
    """Choose the validation clips by the hash of their keys.

    Args:
        key_hashes: Evenly spread over 64 bits, [n].
        fraction: Share to hold out, 0..1.
        folder: Named in the error.

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
        self._shares = [
            round(weight / sum(weights[number:]) * _WHOLE) for number, weight in enumerate(weights)
        ]
        if min(self._shares) < 1 or any(share >= _WHOLE for share in self._shares[:-1]):
            raise UserError(
                f"the weights in data.shards are {list(weights)}; the smallest must be at least 1/{_WHOLE} "
                "of the others."
            )

    def __getitem__(self, slots: Slots) -> SampledClips:
        sampled = SampledClips(np.empty_like(slots), np.empty_like(slots))
        rows = np.arange(len(slots))  # whose folder is not known yet
        places = slots  # among the slots that the folders before leave over
        for folder, (share, split, order) in enumerate(
            zip(self._shares, self.splits, self._orders, strict=True)
        ):
            taken = (places * share) >> _SHARE_BITS
            is_taken = ((places + 1) * share) >> _SHARE_BITS > taken
            sampled.folder[rows[is_taken]] = folder
            sampled.clip[rows[is_taken]] = split[order[taken[is_taken]]]
            rows, places = rows[~is_taken], (places - taken)[~is_taken]
        return sampled

    def replacements(self, slot: int, folder: int) -> npt.NDArray[np.int64]:
        """Draw clips from the same folder; the clips of other slots do not change."""
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
