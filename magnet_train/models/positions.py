"""Where a frame is: sinusoidal positions, which are added to the input, or rotary ones, by which attention turns.

Shapes: B clips, T frames, D = dim, H heads.

Sources: arXiv 1706.03762, section 3.5 (sinusoidal); arXiv 2104.09864, section 3.4 (rotary).
"""

from __future__ import annotations

from typing import Literal, get_args

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


def rotary_frequencies(head_dim: int, device: torch.device | str = "cpu") -> Tensor:
    """Return by how much each pair of channels turns a frame, 10,000^(-2i / head_dim), float32 [head_dim / 2]."""
    exponent = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    return 1.0 / PERIOD**exponent


def rotation_of(num_frames: int, head_dim: int, device: torch.device | str = "cpu") -> Tensor:
    """Return e^(i angle) of each pair of channels at frames 0..T-1, complex64 [T, head_dim / 2]."""
    frame = torch.arange(num_frames, device=device, dtype=torch.float32)
    angle = torch.outer(frame, rotary_frequencies(head_dim, device))
    return torch.polar(torch.ones_like(angle), angle)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn channels 2i and 2i + 1 of each head of queries or keys [B, T, D].

    A product of a query and a key then depends on the frames' distance, and not on their places.
    """
    pairs = x.float().view(*x.shape[:2], -1, rotation.shape[-1], 2)  # [B, T, H, D/2H, 2]
    turned = torch.view_as_complex(pairs) * rotation[:, None]  # [B, T, H, D/2H]
    return torch.view_as_real(turned).view_as(x).to(x.dtype)
