"""Encode audio of any length in chunks, and decode a loop whose ends meet.

Shapes: audio float [channels, samples]; tokens int64 [K, T].
"""

from __future__ import annotations

from collections.abc import Iterable
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


class Decoder(Protocol):
    """The part of a codec that decoding a loop needs."""

    sample_rate: int
    frame_rate: float

    def decode(self, tokens: Tensor) -> Tensor: ...


def samples_per_frame(codec: Encoder | Decoder) -> int:
    """Return how many audio samples a token frame stands for."""
    return round(codec.sample_rate / codec.frame_rate)


def encode_audio(
    codec: Encoder,
    audio: Tensor,
    chunk_seconds: float = CHUNK_SECONDS,
    context_seconds: float = CONTEXT_SECONDS,
) -> Tensor:
    """Encode one clip or track that is in memory; see `encode_blocks`."""
    return encode_blocks(codec, [audio], chunk_seconds, context_seconds)


def encode_blocks(
    codec: Encoder,
    blocks: Iterable[Tensor],
    chunk_seconds: float = CHUNK_SECONDS,
    context_seconds: float = CONTEXT_SECONDS,
) -> Tensor:
    """Encode one clip or track that comes in blocks, in pieces if it is long.

    Each piece sees some audio before and after it whose tokens are thrown away, so that its own are what one
    encoding of the whole would give, but for the little that recurrent layers remember from further back.
    How the audio is cut into blocks changes nothing.

    Args:
        codec: Encodes float [1, channels, samples] to int64 [1, K, T].
        blocks: Audio at the codec's rate and channels, [channels, samples] of any lengths.
        chunk_seconds: Tokens kept from one piece, in seconds of audio.
        context_seconds: Audio on each side of a piece.

    Returns:
        int64 [K, T].
    """
    hop = samples_per_frame(codec)
    chunk, context = round(chunk_seconds * codec.frame_rate), round(context_seconds * codec.frame_rate)
    in_pieces = hop * codec.frame_rate == codec.sample_rate  # else frames and samples drift apart
    held: list[Tensor] = []
    samples = 0  # held
    before = 0  # frames of context at the start of what is held
    tokens: list[Tensor] = []
    for block in blocks:
        held.append(block)
        samples += block.shape[-1]
        # the rest of a file is encoded with its last piece, which is at most a chunk and two contexts long
        while in_pieces and samples > (before + chunk + 2 * context) * hop:
            audio = torch.cat(held, dim=-1)
            piece = codec.encode(audio[None, :, : (before + chunk + context) * hop])[0]
            tokens.append(piece[:, before : before + chunk])
            dropped = max(0, before + chunk - context)
            held = [audio[:, dropped * hop :].clone()]
            samples -= dropped * hop
            before += chunk - dropped
    tokens.append(codec.encode(torch.cat(held, dim=-1)[None])[0][:, before:])
    return torch.cat(tokens, dim=-1)


def decode_loop(codec: Decoder, tokens: Tensor) -> Tensor:
    """Turn tokens int64 [B, K, T] into audio [B, channels, T * hop] whose two ends fit together."""
    num_frames = tokens.shape[-1]
    hop = samples_per_frame(codec)
    context = min(num_frames, round(CONTEXT_SECONDS * codec.frame_rate))
    around = torch.cat([tokens[..., num_frames - context :], tokens, tokens[..., :context]], dim=-1)
    return codec.decode(around)[..., context * hop : (context + num_frames) * hop]
