"""Multi-head attention: over all frames, within the restricted context, and to a text.

Shapes: B clips, R of them with a text, T frames, S key positions, D = dim, H heads, N blocks of W frames, C frames of
context beyond a block.

Source: arXiv 2401.04577, section 3.2 (restricted context).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magnet_train.models.positions import rotate

BLOCK_FRAMES = 32  # measured on a CPU: 16 is as fast, 64 a tenth slower
SHORT_FRAMES = 128  # shorter clips are one block: cutting them costs more than it saves


class Window(NamedTuple):
    """A restricted context: blocks of W frames, and which of its block's W + 2C keys each frame may attend to."""

    halo: int  # C
    allowed: Tensor  # bool [N, W, W + 2C]


def window_of(num_frames: int, context: int, device: torch.device | str = "cpu") -> Window | None:
    """Return the window of clips of T frames with `context` frames on each side, None if it covers the clip."""
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
    # Frames that pad the last block attend to each other: softmax over no key would be NaN.
    return Window(halo, ((query - key).abs() <= context) & (exists | (query >= num_frames)))


def attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int, allowed: Tensor | None = None) -> Tensor:
    """Attend from each position of `q` [B, T, D] to those of `k` and `v` [B, S, D]; return [B, T, D].

    `allowed` is bool and broadcast to [B, H, T, S].
    """
    q, k, v = (x.view(*x.shape[:2], num_heads, -1).transpose(1, 2) for x in (q, k, v))  # [B, H, T or S, D/H]
    if allowed is not None and q.requires_grad and q.dtype == torch.bfloat16 and q.device.type == "cpu":
        # The backward pass of a CPU's kernel with a mask takes three times as long in bfloat16 as in float32.
        with torch.autocast("cpu", enabled=False):
            out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=allowed).to(
                q.dtype
            )
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)  # [B, H, T, D/H]
    return out.transpose(1, 2).flatten(2)  # [B, T, D]


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int, window: Window) -> Tensor:
    """Attend to neighbouring frames, block by block, each with C more keys on both sides; all are [B, T, D].

    Gives the result of `attention` with a banded mask [T, T], but time and memory grow with T instead of T².
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
    """Attention of the frames of a clip to each other: to all of them, or to those within a window."""

    def forward(self, x: Tensor, window: Window | None, rotation: Tensor | None = None) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)  # [B, T, D]
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if window is None:
            return self.out_proj(attention(q, k, v, self.num_heads))  # type: ignore[no-any-return]
        return self.out_proj(windowed_attention(q, k, v, self.num_heads, window))  # type: ignore[no-any-return]


class TextStates(NamedTuple):
    """Text states as input of every layer, which projects them."""

    states: Tensor  # float [R, S, D]
    readable: Tensor | None  # bool [R, 1, 1, S]; None: all of them


class TextMemory(NamedTuple):
    """Keys and values of a text in one layer, [R, S, D], or folded, [R, H, S, D]."""

    keys: Tensor
    values: Tensor
    readable: Tensor | None


class CrossAttention(Projections):
    """Attention of frames [R, T, D] to a text."""

    def forward(self, x: Tensor, text: TextStates | TextMemory) -> Tensor:
        if isinstance(text, TextStates):
            text = self._project(text)
        if text.keys.dim() == 4:
            return _attend_folded(x, text)
        out = attention(self.q_proj(x), text.keys, text.values, self.num_heads, text.readable)
        return self.out_proj(out)  # type: ignore[no-any-return]

    def prepare(self, text: TextStates) -> TextStates | TextMemory:
        """Compute the projections of a text once per generation.

        The projections of the frames are folded into those of short texts: q K^T = x (W_q^T K^T) and
        (A V) W_o^T = A (V W_o^T), so each frame needs S products a head instead of D. Weights that are not plain
        parameters (LoRA, FSDP) can only be used through their modules, so the text stays as it is.
        """
        linears = (self.q_proj, self.k_proj, self.v_proj, self.out_proj)
        if not all(type(linear) is nn.Linear and type(linear.weight) is nn.Parameter for linear in linears):
            return text
        memory = self._project(text)
        head_dim = self.q_proj.out_features // self.num_heads
        if text.states.shape[1] > head_dim // 2:  # folding pays below head_dim, but hardly above half of it
            return memory
        k, v = (x.view(*x.shape[:2], self.num_heads, head_dim) for x in memory[:2])  # [R, S, H, D/H]
        w_q = self.q_proj.weight.view(self.num_heads, head_dim, -1)  # [H, D/H, D]
        w_o = self.out_proj.weight.view(-1, self.num_heads, head_dim)  # [D, H, D/H]
        keys = torch.einsum("rshe,hed->rhsd", k, w_q) * head_dim**-0.5
        return TextMemory(keys, torch.einsum("rshe,dhe->rhsd", v, w_o), text.readable)

    def _project(self, text: TextStates) -> TextMemory:
        return TextMemory(self.k_proj(text.states), self.v_proj(text.states), text.readable)


def _attend_folded(x: Tensor, text: TextMemory) -> Tensor:
    scores = x @ text.keys.flatten(1, 2).mT  # [R, T, H x S]
    scores = scores.view(*x.shape[:2], *text.keys.shape[1:3])  # [R, T, H, S]
    if text.readable is not None:
        scores = scores.masked_fill(~text.readable, float("-inf"))
    weights = scores.softmax(dim=-1).flatten(2)  # [R, T, H x S]
    return weights @ text.values.flatten(1, 2)  # [R, T, D]
