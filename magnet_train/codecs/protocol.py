"""The contract of a codec. Shapes: audio float32 [B, channels, samples], tokens int64 [B, K, T]."""

from __future__ import annotations

from typing import Protocol, Self

import torch
from torch import Tensor

from magnet_train.tokens import CodecInfo


class Codec(Protocol):
    """Audio to tokens and back, without gradients.

    A new kind of codec is a class with these attributes and methods, listed in `magnet_train.codecs.KINDS`. `id` is the
    name that `load_codec` takes, `sha256` a hash of the weights; the others are described at `CodecInfo`. A frame is a whole
    number of samples, `sample_rate / frame_rate`. `context_seconds` is how much audio beyond a chunk `encode_blocks`
    encodes with it, on each side.
    """

    id: str
    sha256: str
    sample_rate: int
    channels: int
    frame_rate: float
    n_q: int
    card: int
    streams: int = 1
    kind: str = "encodec"
    context_seconds: float = 2.0

    @property
    def info(self) -> CodecInfo:
        """The attributes above as one record."""
        return CodecInfo(
            self.id,
            self.sha256,
            self.sample_rate,
            self.channels,
            self.frame_rate,
            self.n_q,
            self.card,
            self.streams,
            self.kind,
        )

    def encode(self, audio: Tensor) -> Tensor:
        """Encode audio [B, channels, samples] as tokens [B, K, T], T = samples / hop rounded up."""

    def decode(self, tokens: Tensor) -> Tensor:
        """Decode tokens [B, K, T] to audio [B, channels, T * hop]; on a CPU a clip is the same in any batch."""

    def to(self, device: torch.device | str) -> Self:
        """Move the weights."""
