"""Codecs of random weights: the published layouts in time, of few filters, with codebooks that hold what comes up."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DacConfig,
    DacModel,
    EncodecConfig,
    EncodecModel,
    MimiConfig,
    MimiModel,
    XcodecConfig,
    XcodecModel,
)

CARD = 64


def music(seconds: float, rate: int, seed: int = 0) -> Tensor:
    """Rising tones that come and go, with noise, [1, samples]."""
    time = torch.arange(round(seconds * rate)) / rate
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(time), generator=generator)
    loud = 0.15 + 0.15 * torch.sin(2 * math.pi * 0.7 * time + seed)
    return (loud * torch.sin(2 * math.pi * 110 * time * (1 + time / 30)) + 0.02 * noise)[None]


def encodec(**changes: Any) -> EncodecModel:
    """EnCodec as the 32 kHz one of MusicGen, but at 1.6 kHz: 50 Hz, 4 codebooks, an LSTM."""
    settings: dict[str, Any] = {
        **{"sampling_rate": 1600, "upsampling_ratios": [8, 4], "num_filters": 4, "hidden_size": 16},
        **{"target_bandwidths": [1.2], "codebook_size": CARD, "codebook_dim": 16, "num_lstm_layers": 2},
        **{"use_causal_conv": False, "normalize": False, "chunk_length_s": None},
    }
    torch.manual_seed(0)
    model = EncodecModel(EncodecConfig(**{**settings, **changes})).eval()
    clip = music(20.0, model.config.sampling_rate).expand(model.config.audio_channels, -1)
    with torch.no_grad():
        _fill_layers(model.encoder(clip[None])[0].T, model.quantizer.layers)
    return model


def dac(**changes: Any) -> DacModel:
    """DAC as the 44.1 kHz one: 86.1328125 Hz, 9 codebooks."""
    settings: dict[str, Any] = {
        **{"encoder_hidden_size": 4, "decoder_hidden_size": 32, "downsampling_ratios": [2, 4, 8, 8]},
        **{"n_codebooks": 9, "codebook_size": CARD, "codebook_dim": 4, "sampling_rate": 44_100},
    }
    torch.manual_seed(0)
    model = DacModel(DacConfig(**{**settings, **changes})).eval()
    _spread(model)
    with torch.no_grad():
        rest = model.encoder(_whole(music(4.0, model.config.sampling_rate), model.config.hop_length)[None])
        for quantizer in model.quantizer.quantizers:
            projected = quantizer.in_proj(rest)[0].T  # [T, codebook_dim]
            quantizer.codebook.weight.copy_(_some(projected))
            rest = rest - quantizer(rest)[0]
    return model


def mimi(**changes: Any) -> MimiModel:
    """Mimi: 12.5 Hz, 24 kHz; 8 layers of attention over 10 s, which weigh as much as what they read."""
    settings: dict[str, Any] = {
        **{"hidden_size": 16, "num_filters": 2, "codebook_size": CARD, "codebook_dim": 8},
        **{"vector_quantization_hidden_dimension": 8, "num_quantizers": 12, "num_hidden_layers": 8},
        **{"intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8},
        **{"upsample_groups": 16, "sliding_window": 250, "layer_scale_initial_scale": 1.0},
    }
    torch.manual_seed(0)
    model = MimiModel(MimiConfig(**{**settings, **changes})).eval()
    with torch.no_grad():
        latents = _latents(model, music(20.0, 24_000))
        halves = (
            model.quantizer.semantic_residual_vector_quantizer,
            model.quantizer.acoustic_residual_vector_quantizer,
        )
        for half in halves:
            rest = half.input_proj(latents)[0].T
            for layer in half.layers:
                layer.codebook.embed_sum.copy_(_some(rest))
                layer.codebook._embed = None
                rest = rest - layer.decode(layer.encode(rest.T[None]))[0].T
    return model


def xcodec(**changes: Any) -> XcodecModel:
    """X-Codec: 50 Hz, 16 kHz, 8 codebooks; a HuBERT of 2 layers."""
    acoustic = {
        **{"model_type": "dac", "encoder_hidden_size": 4, "decoder_hidden_size": 32, "hidden_size": 16},
        **{"downsampling_ratios": [8, 5, 4, 2], "upsampling_ratios": [8, 5, 4, 2]},
    }
    semantic = {
        **{"model_type": "hubert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"intermediate_size": 16, "conv_dim": [8] * 7},
        **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2},
    }
    settings: dict[str, Any] = {
        **{"target_bandwidths": [0.3, 2.4], "codebook_size": CARD},
        **{"acoustic_model_config": acoustic, "semantic_model_config": semantic},
    }
    torch.manual_seed(0)
    model = XcodecModel(XcodecConfig(**{**settings, **changes})).eval()
    with torch.no_grad():
        latents = _latents(model, _whole(music(20.0, 16_000), 320))
        _fill_layers(latents[0].T, model.quantizer.quantizers)
    return model


KINDS: dict[str, Callable[..., Any]] = {"encodec": encodec, "dac": dac, "mimi": mimi, "xcodec": xcodec}


def _latents(model: Any, audio: Tensor) -> Tensor:
    """Return what the quantizer of a model gets of audio [1, samples], [1, D, T]."""
    seen: list[Tensor] = []
    encode = model.quantizer.encode
    model.quantizer.encode = lambda latents, *rest: seen.append(latents) or encode(latents, *rest)
    model.encode(audio[None])
    del model.quantizer.encode
    return seen[0]


def _whole(audio: Tensor, hop: int) -> Tensor:
    return audio[..., : audio.shape[-1] // hop * hop]


def _some(latents: Tensor) -> Tensor:
    """Choose one entry of a codebook for each of `CARD` latents [T, D]."""
    return latents[torch.randperm(len(latents))[:CARD]]


@torch.no_grad()
def _fill_layers(rest: Tensor, layers: Sequence[Any]) -> None:
    """Fill codebooks of an EnCodec or X-Codec, each with some of what the others left over of latents [T, D]."""
    for layer in layers:
        layer.codebook.embed.copy_(_some(rest))
        rest = rest - layer.decode(layer.encode(rest.T[None]))[0].T


@torch.no_grad()
def _spread(model: torch.nn.Module) -> None:
    """Let the layers pass on what they get: transformers draws the weights of a DAC too small for that."""
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv1d, torch.nn.ConvTranspose1d)):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
