"""Restricted attention by itself: dense mask against blocks, and on a GPU against other ways as well.

Shapes: B clips, T frames, D = dim, H heads, C = frames of context each side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from harness.config import BenchmarkConfig, Row, require_close
from harness.timing import Clock, time_pair
from magnet_train.masking import context_mask
from magnet_train.models.attention import attention, window_of, windowed_attention

CONTEXT = 5  # frames each side, as in `BenchmarkConfig.lm_config`
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}  # of the norm
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def attention_rows(setting: BenchmarkConfig, clock: Clock, batch: int, backward: bool) -> Iterator[Row]:
    """Yield a row for what the model does, and one for each candidate of the device.

    Args:
        setting: Sizes.
        clock: Of the device.
        batch: B, clips.
        backward: Whether gradients belong to the work.
    """
    q, k, v = (setting.states(batch, seed).requires_grad_(backward) for seed in range(3))
    gradient = setting.states(batch, seed=3)
    dense = dense_attention(setting, batch)

    def work(attend: Attend) -> Callable[[], object]:
        if not backward:
            return lambda: attend(q, k, v)
        return lambda: torch.autograd.grad(attend(q, k, v), (q, k, v), gradient)

    for name, attend in (("restricted attention", blocked_attention(setting)), *_candidates(setting, batch)):
        try:
            error = require_close(name, attend(q, k, v), dense(q, k, v), TOLERANCE[setting.precision])
            yield {
                "part": name,
                **time_pair(clock, work(dense), work(attend), setting.rounds).summary(),
                "error": error,
            }
        except RuntimeError as failure:  # a kernel that this card or precision does not have
            yield {"part": name, "failed": str(failure).partition("\n")[0]}


def dense_attention(setting: BenchmarkConfig, batch: int) -> Attend:
    """Attention with an additive mask [1, H, T, T] that is repeated for the batch."""
    near = context_mask(setting.frames, CONTEXT, setting.device)
    mask = torch.zeros(near.shape, device=setting.device, dtype=setting.dtype).masked_fill(
        ~near, float("-inf")
    )
    mask = mask.repeat(1, setting.heads, 1, 1)
    return lambda q, k, v: attention(q, k, v, setting.heads, mask.repeat(batch, 1, 1, 1))


def blocked_attention(setting: BenchmarkConfig) -> Attend:
    """What the model does."""
    window = window_of(setting.frames, CONTEXT, setting.device)
    if window is None:  # so short a clip has nothing to restrict
        return lambda q, k, v: attention(q, k, v, setting.heads)
    return lambda q, k, v: windowed_attention(q, k, v, setting.heads, window)


def _candidates(setting: BenchmarkConfig, batch: int) -> Iterator[tuple[str, Attend]]:
    """Other ways that a GPU has, to be measured there before one of them takes the place of blocks."""
    if torch.device(setting.device).type != "cuda":
        return
    yield "restricted attention, flex_attention", flex_attention(setting)
    yield "restricted attention, varlen window", varlen_attention(setting, batch)


def flex_attention(setting: BenchmarkConfig, compiled: bool = True) -> Attend:
    """torch's flex_attention with a block mask; fast only when compiled."""
    from torch.nn.attention import flex_attention as flex

    def near(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query - key).abs() <= CONTEXT

    mask = flex.create_block_mask(near, None, None, setting.frames, setting.frames, device=setting.device)
    run = torch.compile(flex.flex_attention) if compiled else flex.flex_attention

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.view(*x.shape[:2], setting.heads, -1).transpose(1, 2) for x in (q, k, v))
        out: Tensor = run(q, k, v, block_mask=mask)
        return out.transpose(1, 2).flatten(2)

    return attend


def varlen_attention(setting: BenchmarkConfig, batch: int) -> Attend:
    """FlashAttention with a window, through torch's varlen_attn; half precision alone."""
    from torch.nn.attention.varlen import varlen_attn

    starts = torch.arange(batch + 1, device=setting.device, dtype=torch.int32) * setting.frames

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shape = q.shape
        q, k, v = (x.view(batch * setting.frames, setting.heads, -1) for x in (q, k, v))
        most = setting.frames
        out = varlen_attn(q, k, v, starts, starts, most, most, window_size=(CONTEXT, CONTEXT))
        return out.reshape(shape)  # type: ignore[union-attr]

    return attend
