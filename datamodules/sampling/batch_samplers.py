"""Distributed batch samplers over slots: the global order is the same for any number of ranks.

A batch is the numbers of its slots, int64 [batch_size]; the worker that loads it computes the clips.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Slots: TypeAlias = npt.NDArray[np.int64]  # -1 marks a padding row


@dataclass
class InfiniteBatchSampler:
    """Yield this rank's slice of each global batch, without end.

    A global batch is `batch_size * world_size` consecutive slots, and rank r takes the r-th slice. So every rank always
    has a batch, and none waits for another at the end of an epoch.

    Args:
        batch_size: Clips in a batch of one rank.
        rank: This process, 0..world_size-1.
        world_size: Number of training processes.
        start: First slot of the run to yield; may be changed between two iterations.
    """

    batch_size: int
    rank: int = 0
    world_size: int = 1
    start: int = 0

    def __iter__(self) -> Iterator[Slots]:
        first = self.start + self.rank * self.batch_size
        while True:
            yield np.arange(first, first + self.batch_size)
            first += self.batch_size * self.world_size


@dataclass(frozen=True)
class EvaluationBatchSampler(Sequence[Slots]):
    """Cover slots 0..slots-1 once, with the same number of full batches on each rank; -1 pads the last one.

    Args:
        slots: Number of slots.
        batch_size: Rows in a batch of one rank.
        rank: This process.
        world_size: Number of evaluating processes.
    """

    slots: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return -(-self.slots // (self.batch_size * self.world_size))

    def __getitem__(self, number: int) -> Slots:  # type: ignore[override]  # no slices needed
        if not 0 <= number < len(self):
            raise IndexError(number)
        first = (number * self.world_size + self.rank) * self.batch_size
        numbers = np.arange(first, first + self.batch_size)
        return np.where(numbers < self.slots, numbers, -1)
