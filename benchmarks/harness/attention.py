"""Restricted attention by itself: dense mask against windows, and on a GPU against other kernels.

Shapes: B clips, T frames, D = dim, H heads, C = frames of context each side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from harness.config import BenchmarkConfig, require_close
from harness.timing import Clock, Row, time_pair
from magnet_train.models.attention import attention, window_of, windowed_attention

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}  # of the norm
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def attention_rows(config: BenchmarkConfig, clock: Clock, batch: int, backward: bool) -> Iterator[Row]:
    """Yield a row for the model's attention, and one for each candidate of the device.

    Args:
        config: Sizes.
        clock: Of the device.
        batch: B, clips.
        backward: Whether to time the backward pass as well.
    """
    q, k, v = (config.states(batch, seed).requires_grad_(backward) for seed in range(3))
    gradient = config.states(batch, seed=3)
    dense = dense_attention(config, batch)

    def work(attend: Attend) -> Callable[[], object]:
        if not backward:
            return lambda: attend(q, k, v)
        return lambda: torch.autograd.grad(attend(q, k, v), (q, k, v), gradient)

    for name, attend in (("restricted attention", our_attention(config)), *_candidates(config, batch)):
        try:
            error = require_close(name, attend(q, k, v), dense(q, k, v), TOLERANCE[config.precision])
            pair = time_pair(clock, work(dense), work(attend), config.rounds)
            yield {"part": name, **pair.summary(), "error": error}
        except RuntimeError as failure:  # this card or precision has no such kernel
            yield {"part": name, "failed": str(failure).partition("\n")[0]}


def context_mask(num_frames: int, context: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the attention mask of `context` frames on each side, bool [T, T], True where attention is allowed.

    Source: arXiv 2401.04577, section 3.2.
    """
    frames = torch.arange(num_frames, device=device)
    return (frames[:, None] - frames[None, :]).abs() <= context


def dense_attention(config: BenchmarkConfig, batch: int) -> Attend:
    """Attention with an additive mask [1, H, T, T] that is repeated for the batch."""
    near = context_mask(config.frames, config.CONTEXT, config.device)
    mask = torch.zeros(near.shape, device=config.device, dtype=config.dtype)
    mask = mask.masked_fill(~near, float("-inf")).repeat(1, config.heads, 1, 1)
    return lambda q, k, v: attention(q, k, v, config.heads, mask.repeat(batch, 1, 1, 1))


def our_attention(config: BenchmarkConfig) -> Attend:
    """The attention of `MagnetTransformer`."""
    window = window_of(config.frames, config.CONTEXT, config.device)
    if window is None:  # the clip is too short to restrict
        return lambda q, k, v: attention(q, k, v, config.heads)
    return lambda q, k, v: windowed_attention(q, k, v, config.heads, window)


def _candidates(config: BenchmarkConfig, batch: int) -> Iterator[tuple[str, Attend]]:
    """Kernels of a GPU that could replace our attention if they are faster."""
    if torch.device(config.device).type == "cuda":
        yield "restricted attention, flex_attention", flex_attention(config)
        yield "restricted attention, varlen window", varlen_attention(config, batch)


def flex_attention(config: BenchmarkConfig, compiled: bool = True) -> Attend:
    """torch's flex_attention with a block mask; fast only when compiled."""
    from torch.nn.attention import flex_attention as flex

    def near(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query - key).abs() <= config.CONTEXT

    mask = flex.create_block_mask(near, None, None, config.frames, config.frames, device=config.device)
    run = torch.compile(flex.flex_attention) if compiled else flex.flex_attention

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.view(*x.shape[:2], config.heads, -1).transpose(1, 2) for x in (q, k, v))
        out: Tensor = run(q, k, v, block_mask=mask)
        return out.transpose(1, 2).flatten(2)

    return attend


def varlen_attention(config: BenchmarkConfig, batch: int) -> Attend:
    """FlashAttention with a window, by torch's varlen_attn; half precision only."""
    from torch.nn.attention.varlen import varlen_attn

    frames, window = config.frames, (config.CONTEXT, config.CONTEXT)
    starts = torch.arange(batch + 1, device=config.device, dtype=torch.int32) * frames

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shape = q.shape
        q, k, v = (x.view(batch * frames, config.heads, -1) for x in (q, k, v))
        out = varlen_attn(q, k, v, starts, starts, frames, frames, window_size=window)
        return out.reshape(shape)  # type: ignore[union-attr]

    return attend
