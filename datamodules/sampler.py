"""Share slots out among ranks, so that the global order is the same for any number of them.

A batch is a list of (slot, clip): the worker that loads it needs no order and no table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from datamodules.order import ClipOrder

Batch: TypeAlias = list[tuple[int, int]]  # (slot, clip number); a slot of -1 only fills up the batch


class SlotBatchSampler:
    """Yield this rank's slice of each global batch, for ever.

    A global batch is `batch_size * world_size` consecutive slots and rank r takes the r-th slice, so every
    rank always has a batch and nobody waits for another at an epoch's end.

    Args:
        clips: Numbers of the clips to draw from, [n].
        seed: The run's seed.
        batch_size: Clips in a batch of one rank.
        rank: This process, 0..world_size-1.
        world_size: Processes that train together.
        start: First slot of the run that is still to come; may be moved between two iterations.
    """

    def __init__(
        self,
        clips: npt.NDArray[np.int64],
        *,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> None:
        self.clips = clips
        self.seed = seed
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.start = start

    def __iter__(self) -> Iterator[Batch]:
        order = ClipOrder(self.seed, len(self.clips))
        first = self.start + self.rank * self.batch_size
        while True:
            yield [(slot, int(self.clips[order[slot]])) for slot in range(first, first + self.batch_size)]
            first += self.batch_size * self.world_size


class EveryClipOnce(Sequence[Batch]):
    """Cover each clip once, with equally many full batches on each rank; slots of -1 fill up the last.

    Args:
        clips: Numbers of the clips, [n]; the slot is the place in here.
        batch_size: Rows in a batch of one rank.
        rank: This process.
        world_size: Processes that validate together.
    """

    def __init__(
        self, clips: npt.NDArray[np.int64], *, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.clips = clips
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return -(-len(self.clips) // (self.batch_size * self.world_size))

    def __getitem__(self, number: int) -> Batch:  # type: ignore[override]  # no slices needed
        if not 0 <= number < len(self):
            raise IndexError(number)
        first = (number * self.world_size + self.rank) * self.batch_size
        slots = range(first, first + self.batch_size)
        return [(slot, int(self.clips[slot])) if slot < len(self.clips) else (-1, -1) for slot in slots]
