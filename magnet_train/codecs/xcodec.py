"""X-Codec, whose tokens also encode features of a speech model, in transformers' format.

Source: arXiv 2408.17175.
"""

from __future__ import annotations

from transformers import XcodecConfig, XcodecModel

from magnet_train.codecs.pretrained import Layout, PretrainedCodec


class XcodecCodec(PretrainedCodec):
    """A `Codec`: a transformers XcodecModel; its semantic encoder sees all of the audio that is encoded at once."""

    model_class, config_class = XcodecModel, XcodecConfig

    @staticmethod
    def layout(config: XcodecConfig) -> Layout:
        return Layout(
            config.sample_rate, 1, int(config.hop_length), config.num_quantizers, config.codebook_size
        )

    @staticmethod
    def layers(config: XcodecConfig) -> int:
        acoustic, semantic = config.acoustic_model_config, config.semantic_model_config
        return int(len(acoustic.downsampling_ratios) + semantic.num_hidden_layers + config.num_quantizers)
