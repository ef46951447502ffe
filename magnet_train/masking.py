"""Masking: the cosine schedule, span masks, stage masks, and which codebook a clip trains.

Training and decoding share the schedule. Masks are True where masked.
Shapes: B clips, K codebooks, T frames, L = span_len frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

GOLDEN = 0.6180339887498949  # multiples of the golden ratio, modulo 1, fill the unit interval most evenly


def mask_rate(progress: Tensor) -> Tensor:
    """Cosine schedule: the share of a codebook that is masked, cos(pi/2 * progress).

    Args:
        progress: Float tensor of any shape, 0..1: in training a uniform draw for each clip, in decoding the place of the
            step among the steps.

    Returns:
        Same shape, 1 down to 0; clamped, since float32 cos(pi/2) is -4e-8.

    Source: arXiv 2401.04577, eq. 3.
    """
    return torch.cos(progress * (math.pi * 0.5)).clamp(min=0.0)


@lru_cache(maxsize=64)
def span_count_table(num_frames: int, span_len: int) -> tuple[int, ...]:
    """Return, for 0, 1, ..., 100 %, the fewest span starts whose expected mask rate reaches it.

    Spans overlap, so u starts mask fewer than u * L frames: on average a share of 1 - C(T-L, u) / C(T, u) of the clip.

    Returns:
        101 counts, in 0..T-L+1.

    Raises:
        ValueError: The clip is shorter than a span, or `span_len` is below 1.

    Source: arXiv 2401.04577, appendix C.
    """
    if not 1 <= span_len <= num_frames:
        raise ValueError(f"span_len {span_len} must lie in 1..{num_frames}, the number of frames.")
    # C(T-L, u) / C(T, u) as a running product: the binomials themselves overflow.
    rates = [0.0]
    kept = 1.0
    for taken in range(num_frames - span_len + 1):
        kept *= (num_frames - span_len - taken) / (num_frames - taken)
        rates.append(1.0 - kept)
    wanted = torch.arange(101, dtype=torch.float64) / 100.0
    table = torch.searchsorted(torch.tensor(rates, dtype=torch.float64), wanted, right=False)
    return tuple(table.tolist())


def spans_from_starts(starts: Tensor, span_len: int) -> Tensor:
    """Mask `span_len` frames from each start (bool [..., T]) on; spans are cut at the end of the clip."""
    mask = starts.clone()
    for shift in range(1, min(span_len, starts.shape[-1])):
        mask[..., shift:] |= starts[..., :-shift]
    return mask


def span_mask(rate: Tensor, order: Tensor, span_len: int, table_frames: int | None = None) -> Tensor:
    """Draw the training mask of one codebook for each clip.

    Args:
        rate: float [B], wanted mask rate in 0..1.
        order: [B, T], uniform noise without ties; the frames with the smallest numbers start a span.
        span_len: L, frames; 1 masks single frames, exactly round(T * rate) of them.
        table_frames: T of the count table if it is not that of the batch; the reference takes the configured segment's.

    Returns:
        bool [B, T]; at least one span in each row.

    Source: arXiv 2401.04577, section 3.1 and appendix C.
    """
    num_frames = order.shape[-1]
    if span_len <= 1:
        count = torch.round(num_frames * rate).long()
    else:
        table = span_count_table(table_frames or num_frames, span_len)
        percent = torch.round(rate * 100).long()
        count = torch.tensor(table, device=rate.device)[percent]
    rank = order.argsort(dim=-1).argsort(dim=-1)
    starts = rank < count.clamp(min=1)[:, None]
    return spans_from_starts(starts, max(span_len, 1))


def mask_for_stage(tokens: Tensor, mask: Tensor, stage: int | Tensor, mask_id: int) -> Tensor:
    """Mask codebook `stage` where `mask` is True, and the codebooks above everywhere; those below stay visible.

    Args:
        tokens: int64 [B, K, T]; the result is a new tensor.
        mask: bool [B, T].
        stage: k, 0..K-1; or int64 [B], one for each clip.
        mask_id: Id of masked tokens.

    Source: arXiv 2401.04577, section 3.1.
    """
    codebooks = torch.arange(tokens.shape[1], device=tokens.device)[:, None]  # [K, 1]
    if isinstance(stage, Tensor):
        stage = stage[:, None, None]
    hidden = (codebooks > stage) | ((codebooks == stage) & mask[:, None])  # [B, K, T]
    return tokens.masked_fill(hidden, mask_id)


def least_probable_spans(scores: Tensor, span_len: int, num_masked: int) -> Tensor:
    """Mask overlapping spans of L <= T frames, least probable first, until about `num_masked` frames (at least L) are.

    The number of spans depends on their overlap and is found by bisection. As in the reference, the last mask tried
    is returned, which is not always the closest. `scores` is float [T], high where improbable; the mask is bool [T].
    """
    span_scores = scores.unfold(0, span_len, 1).sum(dim=-1)
    worst_first = span_scores.argsort(descending=True)
    num_masked = max(num_masked, span_len)
    low, high = num_masked // span_len, num_masked - span_len + 1

    def mask_of(num_spans: int) -> Tensor:
        starts = torch.zeros_like(scores, dtype=torch.bool)
        starts[worst_first[:num_spans]] = True
        return spans_from_starts(starts, span_len)

    middle = round(0.5 * (low + high))
    mask = mask_of(middle)
    while low < middle < high:
        mask = mask_of(middle)
        if int(mask.sum()) > num_masked:
            high = middle
        else:
            low = middle
        middle = round(0.5 * (low + high))
    return mask


def at_frames(values: Tensor, frames: Tensor) -> Tensor:
    """Gather [B, M, ...] from [B, T, ...] at the frames int64 [B, M] of each clip."""
    return values[torch.arange(len(values), device=values.device)[:, None], frames]


def draw_stage(seed: int, step: int, stage_weights: Sequence[float]) -> int:
    """Draw the codebook that a training step trains, 0..K-1: the same on every rank and after a resume.

    Args:
        seed: Of the run.
        step: Optimizer step, from 0.
        stage_weights: K relative probabilities; the paper's are equal.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) & 0x7FFF_FFFF_FFFF_FFFF)
    # A fresh Mersenne Twister's first number is correlated between neighbouring seeds; the later ones are not.
    torch.rand(8, generator=generator)
    return int(torch.multinomial(torch.tensor(stage_weights, dtype=torch.float64), 1, generator=generator))


def stratified_stages(slots: Tensor, stage_weights: Sequence[float]) -> Tensor:
    """Assign codebooks to clips so that consecutive slots hold each in proportion to its weight.

    Each block of K consecutive slots is K equally spaced points of the unit interval, shifted from block to block,
    and the weights divide that interval. With equal weights every block holds every codebook once.

    Args:
        slots: int64 [B], global sample indices; the result has this shape, 0..K-1.
        stage_weights: K relative probabilities.
    """
    n_q = len(stage_weights)
    edges = torch.tensor(stage_weights, dtype=torch.float64, device=slots.device).cumsum(0)
    block = torch.div(slots, n_q, rounding_mode="floor").double()
    places = ((slots % n_q).double() + (block * GOLDEN) % 1.0) / n_q  # [B], 0..1
    return torch.bucketize(places * edges[-1], edges, right=True).clamp(max=n_q - 1)
