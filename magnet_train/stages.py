"""Decide which codebook a training step, or each of its clips, is about.

Both ways are pure functions, so that a resumed or differently cut run learns the same codebooks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

GOLDEN = 0.6180339887498949  # its multiples, modulo 1, fill the unit interval as evenly as any do


def draw_stage(seed: int, step: int, stage_weights: Sequence[float]) -> int:
    """Draw the codebook that a training step is about: the same on every rank, and again after a resume.

    Args:
        seed: Of the run.
        step: Optimizer step, from 0.
        stage_weights: K relative probabilities; equal ones are the paper's choice.

    Returns:
        The stage, 0..K-1.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) & 0x7FFF_FFFF_FFFF_FFFF)
    # A fresh Mersenne Twister's first number is correlated between neighbouring seeds; the later ones are not.
    torch.rand(8, generator=generator)
    return int(torch.multinomial(torch.tensor(stage_weights, dtype=torch.float64), 1, generator=generator))


def stratified_stages(slots: Tensor, stage_weights: Sequence[float]) -> Tensor:
    """Share the codebooks out among clips, so that any run of them holds each in its proportion.

    Each K slots in a row are K equally spaced points of the unit interval, shifted a little from one such
    block to the next, and the weights cut that interval. With equal weights every block holds every codebook
    once.

    Args:
        slots: int64 [B], the clips' places in the run.
        stage_weights: K relative shares.

    Returns:
        int64 [B], 0..K-1.
    """
    n_q = len(stage_weights)
    edges = torch.tensor(stage_weights, dtype=torch.float64, device=slots.device).cumsum(0)
    block = torch.div(slots, n_q, rounding_mode="floor").double()
    places = ((slots % n_q).double() + (block * GOLDEN) % 1.0) / n_q  # [B], 0..1
    return torch.bucketize(places * edges[-1], edges, right=True).clamp(max=n_q - 1)
