"""Long audio is encoded in chunks, without seams."""

from __future__ import annotations

import pytest
import random_codecs
import torch
from torch import Tensor
from transformers import EncodecConfig, EncodecModel
from transformers.models.mimi import modeling_mimi

from magnet_train.codecs import load_codec
from magnet_train.codecs.chunked import encode_blocks
from magnet_train.codecs.dac import DacCodec
from magnet_train.codecs.encodec import EncodecCodec
from magnet_train.codecs.mimi import MimiCodec


def sweep(seconds: float, rate: int) -> Tensor:
    """A rising tone with noise, [1, samples]."""
    time = torch.arange(round(seconds * rate) + 77) / rate
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(0))
    return (0.3 * torch.sin(2 * torch.pi * 220 * time * (1 + time / 30)) + 0.02 * noise)[None]


@pytest.mark.parametrize("seconds", [1.0, 5.9, 6.0, 6.1, 40.0])
def test_chunks_give_the_tokens_of_the_whole(seconds: float) -> None:
    codec = load_codec("quickstart")
    audio = sweep(seconds, codec.sample_rate)
    whole = codec.encode(audio[None])[0]
    chunked = encode_blocks(codec, [audio], chunk_seconds=4.0, context_seconds=1.0)
    assert torch.equal(chunked, whole)


@pytest.mark.parametrize("size", [1, 4_001, 100_000])
def test_the_size_of_the_blocks_changes_nothing(size: int) -> None:
    codec = load_codec("quickstart")
    audio = sweep(3.0 if size == 1 else 20.0, codec.sample_rate)
    expected = encode_blocks(codec, [audio], chunk_seconds=1.0, context_seconds=0.5)
    found = encode_blocks(codec, audio.split(size, dim=-1), chunk_seconds=1.0, context_seconds=0.5)
    assert torch.equal(found, expected)


def test_recurrent_layers_that_forget_leave_no_seam() -> None:
    """The architecture of the 32 kHz codec with few filters and random weights: its LSTM is not the identity.

    In float64: a processor may round a chunk of another length differently, which could change one of 8,000 nearest
    entries at 32 bits.
    """
    codec = recurrent_codec()
    codec.model.double()
    audio = sweep(40.0, codec.sample_rate).double()
    whole = codec.encode(audio[None])[0]
    chunked = encode_blocks(codec, [audio], chunk_seconds=10.0, context_seconds=2.0)
    assert all(len(codebook.unique()) > 40 for codebook in whole)  # of 64: a change of latents would show
    assert torch.equal(chunked, whole)
    assert not torch.equal(encode_blocks(codec, [audio], chunk_seconds=10.0, context_seconds=0.02), whole)


def recurrent_codec() -> EncodecCodec:
    torch.manual_seed(0)
    config = EncodecConfig(
        **{"sampling_rate": 8_000, "audio_channels": 1, "upsampling_ratios": [8, 5, 4], "num_filters": 8},
        **{"hidden_size": 32, "codebook_size": 64, "codebook_dim": 32, "target_bandwidths": [1.2]},
        **{"use_causal_conv": False, "normalize": False, "chunk_length_s": None, "num_lstm_layers": 2},
    )
    model = EncodecModel(config)
    with torch.no_grad():
        rest = model.encoder(sweep(20.0, 8_000)[None])[0].T  # [T, D]
        for layer in model.quantizer.layers:  # each codebook holds some of what the others left over
            layer.codebook.embed.copy_(rest[torch.randperm(len(rest))[:64]])
            rest = rest - layer.decode(layer.encode(rest.T[None]))[0].T
    return EncodecCodec(model, "random", "")


# With this context, in frames, there is no seam. X-Codec is missing: each token depends on all of its chunk.
WINDOWED = hasattr(modeling_mimi, "create_sliding_window_causal_mask")


@pytest.mark.parametrize(
    ("kind", "context", "seconds"),
    [
        ("dac", 7, 6.0),
        pytest.param(
            *("mimi", 125, 60.0),
            marks=pytest.mark.skipif(
                not WINDOWED, reason="this transformers' Mimi attends to all that came before"
            ),
        ),
    ],
)
def test_context_of_the_receptive_field_leaves_no_seam(kind: str, context: int, seconds: float) -> None:
    codec = {"dac": DacCodec, "mimi": MimiCodec}[kind](random_codecs.KINDS[kind](), "random", "")
    codec.model.double()
    audio = random_codecs.music(seconds, codec.sample_rate, seed=1).double()
    whole = codec.encode(audio[None])[0]

    def seams(frames: int) -> int:
        chunked = encode_blocks(codec, [audio], seconds / 4, frames / codec.frame_rate)
        assert chunked.shape == whole.shape
        return int((chunked != whole).sum())

    assert round(codec.context_seconds * codec.frame_rate) >= context
    assert seams(context) == 0
    assert seams(context // 4) > 0


def test_a_frame_rate_that_is_no_whole_number_does_not_drift() -> None:
    codec = DacCodec(random_codecs.dac(), "random", "")
    audio = random_codecs.music(12.3, codec.sample_rate)
    tokens = encode_blocks(codec, audio.split(10_007, dim=-1), chunk_seconds=1.0, context_seconds=0.2)
    assert tokens.shape == (9, -(-audio.shape[-1] // 512))
    assert (
        float((tokens == codec.encode(audio[None])[0]).float().mean()) > 0.999
    )  # float32 may round another way
