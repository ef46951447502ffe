"""Share slots out among ranks, so that the global order is the same for any number of them.

A batch is the numbers of its slots, int64 [batch_size]: the worker that loads it works out the clips, which
takes no table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Slots: TypeAlias = npt.NDArray[np.int64]  # a slot of -1 only fills up the batch


class InfiniteBatchSampler:
    """Yield this rank's slice of each global batch, for ever.

    A global batch is `batch_size * world_size` consecutive slots and rank r takes the r-th slice, so every
    rank always has a batch and nobody waits for another at an epoch's end.

    Args:
        batch_size: Clips in a batch of one rank.
        rank: This process, 0..world_size-1.
        world_size: Processes that train together.
        start: First slot of the run that is still to come; may be moved between two iterations.
    """

    def __init__(self, *, batch_size: int, rank: int = 0, world_size: int = 1, start: int = 0) -> None:
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.start = start

    def __iter__(self) -> Iterator[Slots]:
        first = self.start + self.rank * self.batch_size
        while True:
            yield np.arange(first, first + self.batch_size)
            first += self.batch_size * self.world_size


class EvaluationBatchSampler(Sequence[Slots]):
    """Cover slots 0..slots-1 once, with equally many full batches on each rank; -1 fills up the last.

    Args:
        slots: How many there are.
        batch_size: Rows in a batch of one rank.
        rank: This process.
        world_size: Processes that validate together.
    """

    def __init__(self, slots: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.slots = slots
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return -(-self.slots // (self.batch_size * self.world_size))

    def __getitem__(self, number: int) -> Slots:  # type: ignore[override]  # no slices needed
        if not 0 <= number < len(self):
            raise IndexError(number)
        first = (number * self.world_size + self.rank) * self.batch_size
        numbers = np.arange(first, first + self.batch_size)
        return np.where(numbers < self.slots, numbers, -1)
