"""Encode audio of any length in chunks, and decode seamless loops.

Shapes: audio float [channels, samples]; tokens int64 [K, T].
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from magnet_train.codecs.protocol import Codec

CHUNK_SECONDS = 30.0


def samples_per_frame(codec: Codec) -> int:
    """Return the number of audio samples in a token frame."""
    return round(codec.sample_rate / codec.frame_rate)


def encode_blocks(
    codec: Codec,
    blocks: Iterable[Tensor],
    chunk_seconds: float = CHUNK_SECONDS,
    context_seconds: float | None = None,
) -> Tensor:
    """Encode one clip or track that arrives in blocks of any lengths; long audio is encoded in chunks.

    Each chunk is encoded with context on both sides, whose tokens are dropped. So its tokens equal those of encoding the
    whole at once, unless the codec's receptive field exceeds the context; docs/codecs.md has measurements.

    Args:
        codec: Encodes float [1, channels, samples] to int64 [1, K, T].
        blocks: Audio at the codec's rate and channels, [channels, samples].
        chunk_seconds: Audio of a chunk without its context.
        context_seconds: Context on each side of a chunk; that of the codec when None.

    Returns:
        int64 [K, T].
    """
    hop = samples_per_frame(codec)
    context_seconds = codec.context_seconds if context_seconds is None else context_seconds
    chunk, context = round(chunk_seconds * codec.frame_rate), round(context_seconds * codec.frame_rate)
    pending: list[Tensor] = []
    samples = 0  # pending
    before = 0  # frames of context at the start of `pending`
    tokens: list[Tensor] = []
    for block in blocks:
        pending.append(block)
        samples += block.shape[-1]
        # The rest of a file is encoded with its last chunk, which is at most a chunk and two contexts long.
        while samples > (before + chunk + 2 * context) * hop:
            audio = torch.cat(pending, dim=-1)
            encoded = codec.encode(audio[None, :, : (before + chunk + context) * hop])[0]
            tokens.append(encoded[:, before : before + chunk])
            dropped = max(0, before + chunk - context)
            pending = [audio[:, dropped * hop :].clone()]
            samples -= dropped * hop
            before += chunk - dropped
    tokens.append(codec.encode(torch.cat(pending, dim=-1)[None])[0][:, before:])
    return torch.cat(tokens, dim=-1)


def decode_loop(codec: Codec, tokens: Tensor) -> Tensor:
    """Decode tokens int64 [B, K, T] to a seamless loop, [B, channels, T * hop]: each end is the other's context."""
    num_frames = tokens.shape[-1]
    hop = samples_per_frame(codec)
    context = min(num_frames, round(codec.context_seconds * codec.frame_rate))
    wrapped = torch.cat([tokens[..., num_frames - context :], tokens, tokens[..., :context]], dim=-1)
    return codec.decode(wrapped)[..., context * hop : (context + num_frames) * hop]
