"""Which folder and which clip a slot draws from: held-out clips, mixtures and epochs, all without tables.

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

_SHARE_BITS = 16  # weights are kept to 1/65536; slots may go up to 2**47
_WHOLE = 1 << _SHARE_BITS
_REPLACEMENTS = 16  # clips to try in place of a damaged one


class Drawn(NamedTuple):
    """What slots draw from.

    Args:
        folder: Numbers of the folders, int64 [n].
        clip: Numbers of the clips within their folders, int64 [n].
    """

    folder: npt.NDArray[np.int64]
    clip: npt.NDArray[np.int64]


class ClipSampler(Protocol):
    """Say what each slot draws from."""

    def __getitem__(self, slots: Slots) -> Drawn: ...

    def instead(self, slot: int, folder: int) -> npt.NDArray[np.int64]:
        """Return clips of the folder that may stand in, in this order, where the slot's own is damaged."""
        ...


class TrainSplit:
    """Number the clips that are not held out, remembering only those that are.

    Args:
        clips: Clips in the folder.
        held: Numbers of the clips left out, sorted, [m].
    """

    def __init__(self, clips: int, held: npt.NDArray[np.int64]) -> None:
        self._clips = clips
        self._kept_before = held - np.arange(len(held))  # how many kept clips come before each held one

    def __len__(self) -> int:
        return self._clips - len(self._kept_before)

    def __getitem__(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the clips at `places`, each in 0..len-1; [n] for [n]."""
        return places + np.searchsorted(self._kept_before, places, side="right")


def hold_out(
    key_hashes: npt.NDArray[np.uint64], fraction: float, folder: Path | str
) -> npt.NDArray[np.int64]:
    """Choose the clips to validate on by the hash of their keys.

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
    held = np.flatnonzero(key_hashes < np.uint64(min(int(fraction * 2.0**64), 2**64 - 1)))
    if not len(held):
        return np.array([np.argmin(key_hashes)])
    if len(held) == len(key_hashes):
        return np.delete(held, np.argmax(key_hashes))
    return held


class WeightedMixture:
    """Draw from several folders by weight, each in its own order through its own epochs.

    The folders are dealt out evenly: after s slots a folder of weight w has had s * w of them, to within one
    for each folder. One folder is a mixture as well.

    Args:
        clips: For each folder, the clips to train on.
        weights: For each folder, its share of the slots; only their ratios count.
        seed: The run's seed.

    Raises:
        UserError: A weight that is not positive, or too small beside the others.
    """

    def __init__(self, clips: Sequence[TrainSplit], weights: Sequence[float], seed: int) -> None:
        self.clips = clips
        self.seed = seed
        self._orders = [ClipOrder(seed, len(kept), number) for number, kept in enumerate(clips)]
        if min(weights) <= 0 or not np.isfinite(sum(weights)):
            raise UserError(f"the weights in data.shards are {list(weights)} and have to be above 0.")
        self._shares = [
            round(weight / sum(weights[number:]) * _WHOLE) for number, weight in enumerate(weights)
        ]
        if min(self._shares) < 1 or any(share >= _WHOLE for share in self._shares[:-1]):
            raise UserError(
                f"the weights in data.shards are {list(weights)}; the smallest has to be at least 1/{_WHOLE} "
                "of the others."
            )

    def __getitem__(self, slots: Slots) -> Drawn:
        drawn = Drawn(np.empty_like(slots), np.empty_like(slots))
        waiting = np.arange(len(slots))  # rows whose folder is not found yet
        places = slots  # their places among the slots that are left over by the folders before
        for folder, (share, kept, order) in enumerate(
            zip(self._shares, self.clips, self._orders, strict=True)
        ):
            taken = (places * share) >> _SHARE_BITS
            here = ((places + 1) * share) >> _SHARE_BITS > taken
            rows = waiting[here]
            drawn.folder[rows] = folder
            drawn.clip[rows] = kept[order[taken[here]]]
            waiting, places = waiting[~here], (places - taken)[~here]
        return drawn

    def instead(self, slot: int, folder: int) -> npt.NDArray[np.int64]:
        """Draw from the same folder; no other slot is changed by it."""
        kept = self.clips[folder]
        words = random_bits(self.seed, slot, Purpose.REPLACEMENT, _REPLACEMENTS)
        return kept[np.array([below(word, len(kept)) for word in words])]


class SequentialClips:
    """Take listed clips in their order: slot i is the i-th, over all folders.

    Args:
        clips: For each folder, numbers of its clips, [n].
    """

    def __init__(self, clips: Sequence[npt.NDArray[np.int64] | range]) -> None:
        self._clips = clips
        self._ends = np.cumsum([len(numbers) for numbers in clips])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, slots: Slots) -> Drawn:
        folder = np.searchsorted(self._ends, slots, side="right")
        within = slots - np.concatenate(([0], self._ends))[folder]
        clip = [self._clips[f][place] for f, place in zip(folder, within, strict=True)]
        return Drawn(folder, np.array(clip, dtype=np.int64))

    def instead(self, slot: int, folder: int) -> npt.NDArray[np.int64]:
        """Return none: a clip that stood in would be there twice."""
        return np.empty(0, dtype=np.int64)
