"""DAC, the Descript Audio Codec, in transformers' format.

Source: arXiv 2306.06546.
"""

from __future__ import annotations

import math

from torch import Tensor
from transformers import DacConfig, DacModel

from magnet_train.codecs.pretrained import Layout, PretrainedCodec


class DacCodec(PretrainedCodec):
    """A `Codec`: a transformers DacModel."""

    model_class, config_class = DacModel, DacConfig

    @staticmethod
    def layout(config: DacConfig) -> Layout:
        # `config.frame_rate` is rounded up.
        hop = math.prod(config.downsampling_ratios)
        return Layout(config.sampling_rate, 1, hop, config.n_codebooks, config.codebook_size)

    @staticmethod
    def layers(config: DacConfig) -> int:
        return len(config.downsampling_ratios) + int(config.n_codebooks)

    def _decode(self, tokens: Tensor) -> Tensor:
        audio: Tensor = self.model.decode(audio_codes=tokens).audio_values  # [B, samples]
        return audio[:, None]
