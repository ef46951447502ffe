"""Where a frame is: sinusoidal positions, which are added to the input, or rotary ones, by which attention turns.

Shapes: B clips, T frames, D = dim, H heads.

Sources: arXiv 1706.03762, section 3.5 (sinusoidal); arXiv 2104.09864, section 3.4 (rotary).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Positions = Literal["sinusoidal", "rotary"]
POSITIONS: tuple[str, ...] = get_args(Positions)
PERIOD = 10_000


def sinusoidal_positions(num_frames: int, dim: int, device: torch.device | str = "cpu") -> Tensor:
    """Encode positions 0..T-1 as cosines, then sines, of dim/2 frequencies from 1 to 1/10,000: float32 [T, dim]."""
    half = dim // 2
    frequency = torch.arange(half, device=device, dtype=torch.float32) / (half - 1)
    position = torch.arange(num_frames, device=device, dtype=torch.float32)[:, None]
    phase = position / PERIOD**frequency
    return torch.cat([phase.cos(), phase.sin()], dim=-1)


class Rotation(NamedTuple):
    """Cosines and sines of the angle by which each pair of channels of a head turns at each frame, float32 [T, D/2H]."""

    cosines: Tensor
    sines: Tensor


def rotary_frequencies(head_dim: int, device: torch.device | str = "cpu") -> Tensor:
    """Return by how much each pair of channels turns a frame, 10,000^(-2i / head_dim), float32 [head_dim / 2]."""
    exponent = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    return 1.0 / PERIOD**exponent


def rotation_of(num_frames: int, head_dim: int, device: torch.device | str = "cpu") -> Rotation:
    """Return the rotation of frames 0..T-1."""
    frame = torch.arange(num_frames, device=device, dtype=torch.float32)
    angle = torch.outer(frame, rotary_frequencies(head_dim, device))
    return Rotation(angle.cos(), angle.sin())


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn channels 2i and 2i + 1 of each head of queries or keys [B, T, D].

    A product of a query and a key then depends on the frames' distance, and not on their places.
    """
    cosines, sines = (part[:, None] for part in rotation)  # [T, 1, D/2H]
    even, odd = x.float().view(*x.shape[:2], -1, cosines.shape[-1], 2).unbind(-1)  # [B, T, H, D/2H]
    turned = torch.stack([even * cosines - odd * sines, even * sines + odd * cosines], dim=-1)
    return turned.view_as(x).to(x.dtype)
