"""Which clip, which crop, which dice: pure functions of (seed, slot).

A slot is a sample's number in the whole run, over all ranks and epochs. All randomness is raw Philox bits,
whose stream NumPy promises to keep; nothing depends on rank, worker, process or clock.

Source: Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3".
"""

from __future__ import annotations

import enum

import numpy as np
import numpy.typing as npt

ORDER_VERSION = (
    1  # raise when `order` or `random_bits` answers otherwise: a resume across the change is refused
)


class Purpose(enum.IntEnum):
    """What bits are drawn for; one seed and number give unrelated bits for each."""

    ORDER = 0
    TRAIN = 1
    VALIDATION = 2


def random_bits(seed: int, number: int, purpose: Purpose, count: int) -> npt.NDArray[np.uint64]:
    """Return `count` random 64-bit words.

    Args:
        seed: The run's seed, 0 or more.
        number: Slot or epoch, 0 or more.
        purpose: Keeps the streams apart.
        count: How many words.
    """
    key = np.array([seed, number], dtype=np.uint64)
    counter = np.array([0, 0, 0, purpose], dtype=np.uint64)
    bits: npt.NDArray[np.uint64] = np.random.Philox(key=key, counter=counter).random_raw(count)
    return bits


def uniforms(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
    """Turn random words into float32 in [0, 1): their upper 24 bits, which float32 holds exactly."""
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def below(word: np.uint64, limit: int) -> int:
    """Turn a random word into an integer in [0, limit)."""
    return (int(word) * limit) >> 64


def order(seed: int, epoch: int, clips: int) -> npt.NDArray[np.int64]:
    """Return the order of the clips in one epoch, a permutation of 0..clips-1."""
    return np.argsort(random_bits(seed, epoch, Purpose.ORDER, clips), kind="stable")


class ClipOrder:
    """Say which clip a slot holds; remembers the epoch asked for last.

    Args:
        seed: The run's seed.
        clips: Clips in an epoch, 1 or more.
    """

    def __init__(self, seed: int, clips: int) -> None:
        self.seed = seed
        self.clips = clips
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def __getitem__(self, slot: int) -> int:
        epoch, place = divmod(slot, self.clips)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, order(self.seed, epoch, self.clips)
        return int(self._order[place])
