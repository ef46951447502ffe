"""Random numbers and clip order as pure functions of (seed, slot).

A slot is a sample's number in the whole run, over all ranks and epochs. All randomness is raw Philox bits, a stream
that NumPy promises to keep. Nothing depends on rank, worker, process or clock, and no permutation table is stored: the
clip of a slot costs the same for ten clips and for a billion.

Sources: Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3" (Philox); Black and Rogaway 2002,
"Ciphers with Arbitrary Finite Domains" (Feistel network and cycle-walking).
"""

from __future__ import annotations

import enum
import functools
import math
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# Raise it when a slot gets another clip, crop or noise: resuming across the change is refused.
ORDER_VERSION = 2
_ROUNDS = 6


class Purpose(enum.IntEnum):
    """Separate random streams: one seed and number give unrelated bits for each."""

    ORDER = 0
    TRAIN = 1
    VALIDATION = 2
    CAPTION = 3
    REPLACEMENT = 4


def random_bits(
    seed: int, numbers: npt.ArrayLike, purpose: Purpose, count: int, source: int = 0
) -> npt.NDArray[np.uint64]:
    """Return `count` random 64-bit words for each number; a larger count begins with the same words.

    Args:
        seed: The run's seed, 0 or more.
        numbers: Slots or epochs, each 0 or more, of any shape.
        purpose: Which stream.
        count: Number of words.
        source: Number of the folder in a mixture, each with its own streams.

    Returns:
        uint64, the shape of `numbers` and then `count`.
    """
    numbers = np.asarray(numbers, dtype=np.uint64)
    philox, state = _philox(seed, purpose, source, threading.get_ident())
    key = state["state"]["key"]
    bits = np.empty((numbers.size, count), dtype=np.uint64)
    for row, number in enumerate(numbers.ravel()):
        key[1] = number
        philox.state = state
        bits[row] = philox.random_raw(count)
    return bits.reshape(*numbers.shape, count)


@functools.lru_cache(maxsize=64)
def _philox(seed: int, purpose: Purpose, source: int, thread: int) -> tuple[np.random.Philox, Any]:
    """Return a generator and its initial state, to be reset for each number: creating one takes ten times as long.

    Each thread has its own, since another could set the state between setting and drawing.
    """
    philox = np.random.Philox(
        key=np.array([seed, 0], dtype=np.uint64), counter=np.array([0, 0, source, purpose], dtype=np.uint64)
    )
    return philox, philox.state


def uniforms(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
    """Turn each random word, uint64 [..., n], into two float32 in [0, 1), [..., 2 n].

    They are the upper 24 bits of its lower and its upper half, as many as float32 holds exactly.
    """
    halves = bits.astype("<u8", copy=False).view("<u4")
    return (halves >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def below(word: np.uint64, limit: int) -> int:
    """Turn a random word into an integer in [0, limit)."""
    return (int(word) * limit) >> 64


def permute(places: npt.NDArray[np.int64], size: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Apply a random-looking bijection of 0..size-1, in constant time and memory.

    A Feistel network on pairs of digits to base ceil(sqrt(size)). Its domain has up to 2 sqrt(size) + 1 numbers too
    many; a result outside 0..size-1 is permuted again until it lies inside (cycle-walking).

    Args:
        places: Each in 0..size-1, [n].
        size: 1..2**62.
        keys: One random word for each round; they choose the bijection.
    """
    base = np.uint64(math.isqrt(size - 1) + 1)
    out = _feistel(places.astype(np.uint64), base, keys)
    while (outside := out >= np.uint64(size)).any():
        out[outside] = _feistel(out[outside], base, keys)
    return out.astype(np.int64)


def _feistel(
    numbers: npt.NDArray[np.uint64], base: np.uint64, keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    left, right = np.divmod(numbers, base)
    for key in keys:
        left, right = right, (left + _scramble(right + key, base)) % base
    return left * base + right


def _scramble(word: npt.NDArray[np.uint64], limit: np.uint64) -> npt.NDArray[np.uint64]:
    """Hash words into 0..limit-1, limit at most 2**31 (Stafford's mix 13, the finaliser of SplitMix64)."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((word >> np.uint64(32)) * limit) >> np.uint64(32)


@functools.lru_cache(maxsize=256)
def _round_keys(seed: int, epoch: int, source: int) -> npt.NDArray[np.uint64]:
    return random_bits(seed, epoch, Purpose.ORDER, _ROUNDS, source)


@dataclass(frozen=True)
class ClipOrder:
    """Shuffled order of the clips, epoch after epoch without end: each epoch has each clip once."""

    seed: int
    clips: int  # in an epoch, 1 or more
    source: int = 0  # number of the folder in a mixture

    def __getitem__(self, places: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the clips at `places`, each 0 or more: numbers in 0..clips-1, [n] for [n]."""
        epochs, within = np.divmod(np.asarray(places, dtype=np.int64), self.clips)
        chosen = np.empty_like(within)
        for epoch in set(epochs.tolist()):
            rows = epochs == epoch
            keys = _round_keys(self.seed, epoch, self.source)
            chosen[rows] = permute(within[rows], self.clips, keys)
        return chosen
