"""The randomness of a clip: a function of (seed, index) alone, whichever batch or rank it is made in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch


def clip_generators(seed: int, indices: Iterable[int], device: torch.device | str) -> list[torch.Generator]:
    """Return a generator for each clip, as `generate_tokens` takes them.

    Args:
        seed: Of the whole set of clips.
        indices: Number of each clip within the set.
        device: Where to draw; the same numbers come out of each device of a kind.
    """
    return [torch.Generator(device).manual_seed(_clip_seed(seed, index)) for index in indices]


def _clip_seed(seed: int, index: int) -> int:
    """Hash (seed, index) to 0..2^63-1: a sum would give clip 1 of seed 0 the noise of clip 0 of seed 1."""
    pair = b"".join(number.to_bytes(16, "little", signed=True) for number in (seed, index))
    return int.from_bytes(hashlib.blake2b(pair, digest_size=8).digest(), "little") >> 1
