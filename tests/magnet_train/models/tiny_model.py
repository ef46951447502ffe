"""A small model with random weights, and tokens for it."""

from __future__ import annotations

import torch

from magnet_train.models import MagnetTransformer


def tiny(**changes) -> MagnetTransformer:
    torch.manual_seed(0)
    options = {"n_q": 4, "card": 16, "text_dim": 12, "dim": 32, "num_heads": 4, "num_layers": 2} | changes
    return MagnetTransformer(**options).eval()


def tokens_of(batch: int, frames: int) -> torch.Tensor:
    return torch.randint(17, (batch, 4, frames), generator=torch.Generator().manual_seed(1))
