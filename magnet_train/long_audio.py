"""Encode audio of any length without holding the codec's activations for all of it.

Shapes: audio float [channels, samples]; tokens int64 [K, T].
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

CHUNK_SECONDS = 30.0
CONTEXT_SECONDS = 2.0


class Encoder(Protocol):
    """The part of a codec that is needed here."""

    sample_rate: int
    frame_rate: float

    def encode(self, audio: Tensor) -> Tensor: ...


def samples_per_frame(codec: Encoder) -> int:
    """Return how many audio samples a token frame stands for."""
    return round(codec.sample_rate / codec.frame_rate)


def encode_audio(
    codec: Encoder,
    audio: Tensor,
    chunk_seconds: float = CHUNK_SECONDS,
    context_seconds: float = CONTEXT_SECONDS,
) -> Tensor:
    """Encode one clip or track, in pieces if it is long.

    Each piece sees some audio before and after it whose tokens are thrown away, so that its own are what one
    encoding of the whole would give, but for the little that recurrent layers remember from further back.

    Args:
        codec: Encodes float [1, channels, samples] to int64 [1, K, T].
        audio: At the codec's rate and channels, [channels, samples].
        chunk_seconds: Tokens kept from one piece, in seconds of audio.
        context_seconds: Audio on each side of a piece.

    Returns:
        int64 [K, T].
    """
    hop = samples_per_frame(codec)
    chunk, context = round(chunk_seconds * codec.frame_rate), round(context_seconds * codec.frame_rate)
    frames = -(-audio.shape[-1] // hop)
    if frames <= chunk + 2 * context or hop * codec.frame_rate != codec.sample_rate:
        return codec.encode(audio[None])[0]
    pieces = []
    for start in range(0, frames, chunk):
        first = max(0, start - context)
        tokens = codec.encode(audio[None, :, first * hop : (start + chunk + context) * hop])[0]
        pieces.append(tokens[:, start - first : start - first + chunk])
    return torch.cat(pieces, dim=-1)
