"""Multi-head attention, and the restricted context without a [T, T] tensor.

Shapes: B clips, T frames, S key positions, D = dim, H heads, N blocks of W frames, C frames beyond a block.

Source: arXiv 2401.04577, section 3.2 (restricted context).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK_FRAMES = 32  # measured on a CPU: 16 is as fast, 64 a tenth slower
SHORT_FRAMES = 128  # a clip up to here is one block: cutting it costs more than it saves


class Window(NamedTuple):
    """A restricted context: blocks of W frames, and which of its block's W + 2C keys each frame may attend to."""

    halo: int  # C
    allowed: Tensor  # bool [N, W, W + 2C]


def window_of(num_frames: int, context: int, device: torch.device | str = "cpu") -> Window | None:
    """Cut a clip into blocks for `windowed_attention`.

    Args:
        num_frames: T.
        context: Frames on each side; the frame itself comes on top.
        device: Where to put the mask.

    Returns:
        The window, or None when the context reaches everywhere from everywhere.
    """
    if context >= num_frames - 1:
        return None
    block, halo = max(BLOCK_FRAMES, context), context
    if num_frames <= SHORT_FRAMES:
        block, halo = num_frames, 0
    num_blocks = -(-num_frames // block)
    query = torch.arange(num_blocks * block, device=device).view(num_blocks, block, 1)
    first_key = torch.arange(num_blocks, device=device).view(num_blocks, 1, 1) * block - halo
    key = first_key + torch.arange(block + 2 * halo, device=device)  # [N, 1, W + 2C]
    exists = (key >= 0) & (key < num_frames)
    # Frames that only fill the last block attend to each other: softmax over no key would be NaN.
    return Window(halo, ((query - key).abs() <= context) & (exists | (query >= num_frames)))


def attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int, allowed: Tensor | None = None) -> Tensor:
    """Attend from every position of `q` to those of `k` and `v`.

    Args:
        q: float [B, T, D].
        k: float [B, S, D].
        v: float [B, S, D].
        num_heads: H.
        allowed: bool, broadcast to [B, H, T, S].

    Returns:
        float [B, T, D].
    """
    q, k, v = (x.view(*x.shape[:2], num_heads, -1).transpose(1, 2) for x in (q, k, v))  # [B, H, T or S, D/H]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2).flatten(2)


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int, window: Window) -> Tensor:
    """Attend to the frames near by: block by block, each with C more keys on both sides.

    Same result as `attention` with `masking.context_mask`; time and memory grow with T instead of T².

    Args:
        q: float [B, T, D]; `k` and `v` alike.
        k: Keys.
        v: Values.
        num_heads: H.
        window: Of T frames.

    Returns:
        float [B, T, D].
    """
    batch, num_frames, dim = q.shape
    halo, allowed = window
    num_blocks, block, _ = allowed.shape

    def blocks(x: Tensor) -> Tensor:  # [B, N, W, D]
        return F.pad(x, (0, 0, 0, num_blocks * block - num_frames)).view(batch, num_blocks, block, dim)

    def with_neighbours(x: Tensor) -> Tensor:  # [B x N, W + 2C, D]
        x = blocks(x)
        if halo:
            before = F.pad(x[:, :-1, block - halo :], (0, 0, 0, 0, 1, 0))
            after = F.pad(x[:, 1:, :halo], (0, 0, 0, 0, 0, 1))
            x = torch.cat([before, x, after], dim=2)
        return x.flatten(0, 1)

    out = attention(
        blocks(q).flatten(0, 1),
        with_neighbours(k),
        with_neighbours(v),
        num_heads,
        allowed.repeat(batch, 1, 1)[:, None],  # [B x N, 1, W, W + 2C]
    )
    return out.view(batch, num_blocks * block, dim)[:, :num_frames]


class Projections(nn.Module):
    """The four matrices of multi-head attention, without biases."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)


class SelfAttention(Projections):
    """Let the frames of a clip attend to each other: all of them, or those within a window."""

    def forward(self, x: Tensor, window: Window | None) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)  # [B, T, D]
        if window is None:
            return self.out_proj(attention(q, k, v, self.num_heads))  # type: ignore[no-any-return]
        return self.out_proj(windowed_attention(q, k, v, self.num_heads, window))  # type: ignore[no-any-return]


class CrossAttention(Projections):
    """Let frames attend to a text, in whichever form it is held."""

    def forward(self, x: Tensor, text: TextMemory) -> Tensor:
        return text.attend(self, x)


class TextMemory(Protocol):
    """A text that a layer can attend to; its kinds are in `text_memory`."""

    @property
    def num_rows(self) -> int:
        """R: the first R clips of the batch have a text, the others none."""

    def attend(self, projections: Projections, x: Tensor) -> Tensor:
        """Return float [R, T, D] for frames `x` of the same shape."""
