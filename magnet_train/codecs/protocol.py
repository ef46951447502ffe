"""What every codec can do. Shapes: audio float32 [B, channels, samples], tokens int64 [B, K, T]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self

import torch
from torch import Tensor

from magnet_train.tokens import CodecInfo


class Codec(Protocol):
    """Audio to tokens and back, without gradients."""

    id: str
    sha256: str
    sample_rate: int
    channels: int
    frame_rate: float
    n_q: int
    card: int

    @property
    def info(self) -> CodecInfo:
        """The attributes above as one record."""
        return CodecInfo(
            self.id, self.sha256, self.sample_rate, self.channels, self.frame_rate, self.n_q, self.card
        )

    def encode(self, audio: Tensor) -> Tensor:
        """Turn audio [B, channels, samples] into tokens [B, K, T], T = samples / hop rounded up."""

    def decode(self, tokens: Tensor) -> Tensor:
        """Turn tokens [B, K, T] into audio [B, channels, T * hop]; on a CPU a clip is the same in any batch."""

    def to(self, device: torch.device | str) -> Self:
        """Move the weights."""


def clip_by_clip(decode: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """Decode [B, K, T] by what decodes a batch: clips one by one on a CPU, where the batch shows in the last bits."""
    size = 1 if tokens.device.type == "cpu" else len(tokens)
    return torch.cat([decode(part) for part in torch.split(tokens, size)])
