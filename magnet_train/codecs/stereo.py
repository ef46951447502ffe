"""Stereo from a mono codec: left and right are two streams of tokens."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from magnet_train.codecs.protocol import Codec
from magnet_train.errors import UserError


class StereoCodec(Codec):
    """A `Codec` of 2 channels that encodes each by a mono codec; the codebooks alternate: L0 R0 L1 R1 ...

    Raises:
        UserError: The codec is stereo itself.

    Source: arXiv 2306.05284, appendix (stereo MusicGen).
    """

    def __init__(self, mono: Codec) -> None:
        if mono.channels != 1:
            raise UserError(f"codec {mono.id} has {mono.channels} channels itself; leave --stereo out.")
        self.mono = mono
        self.id, self.sha256, self.kind = mono.id, mono.sha256, mono.kind
        self.sample_rate, self.frame_rate = mono.sample_rate, mono.frame_rate
        self.n_q, self.card = 2 * mono.n_q, mono.card
        self.channels = self.streams = 2
        self.context_seconds = mono.context_seconds

    def encode(self, audio: Tensor) -> Tensor:
        left, right = (self.mono.encode(side) for side in torch.split(audio, 1, dim=1))  # [B, K / 2, T] each
        return torch.stack([left, right], dim=2).flatten(1, 2)

    def decode(self, tokens: Tensor) -> Tensor:
        return torch.cat([self.mono.decode(tokens[:, side::2]) for side in (0, 1)], dim=1)

    def to(self, device: torch.device | str) -> Self:
        self.mono.to(device)
        return self
