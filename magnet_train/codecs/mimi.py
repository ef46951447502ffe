"""Mimi, the codec of Moshi, in transformers' format.

Source: arXiv 2410.00037.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from transformers import MimiConfig, MimiModel

from magnet_train.codecs.pretrained import Layout, PretrainedCodec


class MimiCodec(PretrainedCodec):
    """A `Codec`: a transformers MimiModel."""

    model_class, config_class = MimiModel, MimiConfig
    context_seconds = (
        10.0  # the window of its attention; with 2 s one token in 1,000 differs, see docs/codecs.md
    )

    @staticmethod
    def layout(config: MimiConfig) -> Layout:
        # Convolutions give `encodec_frame_rate`, and a last one divides it by a whole number.
        hop = math.prod(config.upsampling_ratios) * int(config.encodec_frame_rate / config.frame_rate)
        channels = int(config.audio_channels)
        return Layout(config.sampling_rate, channels, hop, config.num_quantizers, config.codebook_size)

    @staticmethod
    def layers(config: MimiConfig) -> int:
        residual = config.num_residual_layers * len(config.upsampling_ratios)
        return int(residual + config.num_hidden_layers + config.num_quantizers)

    def to(self, device: torch.device | str) -> Self:
        for module in self.model.modules():
            if hasattr(module, "_embed"):
                module._embed = None  # kept of an earlier call, and not moved with the weights
        return super().to(device)
