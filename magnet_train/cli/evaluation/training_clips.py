"""Find the nearest training clip of each clip of `evaluate`, by the tokens in a folder of shards.

Shapes: audio float32 [channels, samples]; tokens int64 [K, T], those of the first codebook alone [T].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.shards.reading import ShardReader
from magnet_train.cli.console import ProgressBar, track
from magnet_train.cli.evaluation.clips import EvaluatedClip, Side
from magnet_train.codecs import Codec, load_codec
from magnet_train.codecs.chunked import encode_blocks, samples_per_frame
from magnet_train.errors import UserError
from magnet_train.evaluation.nearest import NearestClip, NearestSearch, TokenDistances, Tokens

_MOST_HELD_OUT = 200  # clips, evenly spread
_COPIES = 20  # training clips that go through the codec
_LONGEST = 30.0  # seconds of a clip that are compared, from its beginning
_BLOCK = 256  # clips read at a time


@dataclass(frozen=True)
class TrainingShards:
    """Training shards, held-out shards and their codec."""

    train: ShardReader
    held_out: ShardReader | None  # None: the reference clips are the held-out ones
    codec: Codec

    @classmethod
    def open(cls, shards: Path, val_shards: Path | None, device: str) -> TrainingShards:
        """Open folders of shards and load their codec.

        Raises:
            UserError: One cannot be read, or the tokens are of different codecs.
        """
        train = ShardReader(shards)
        held_out = None if val_shards is None else ShardReader(val_shards)
        info = train.manifest.codec
        if held_out is not None and held_out.manifest.codec.sha256 != info.sha256:
            raise UserError(
                f"--val_shards {val_shards} has tokens of codec {held_out.manifest.codec.id} and --shards {shards} of "
                f"{info.id}; tokenize both with the same codec."
            )
        codec = load_codec(info, device)
        if info.sha256 and codec.sha256 != info.sha256:
            raise UserError(
                f"codec {info.id} has other weights than the one that made the tokens of --shards {shards}; put that "
                "codec back in its place, or tokenize again."
            )
        return cls(train, held_out, codec)


@dataclass(frozen=True)
class TrainingDistance:
    """Distances from the nearest training clips, as in `magnet_train.evaluation.nearest`."""

    generated: TokenDistances
    held_out: TokenDistances
    held_out_source: str
    copies: TokenDistances | None  # of training clips that went through the codec, each from itself
    nearer_than_held_out: int  # generated clips that are nearer than 95 % of the held-out ones
    frames: int  # most frames of a clip that are compared
    frame_rate: float  # Hz
    training_clips: int
    damaged_clips: int  # training clips that could not be read
    damage: str | None  # the reason for the first of these, a sentence
    nearest: list[tuple[str, NearestClip]]  # name of each generated clip and its nearest, nearest first


def measure_training_distance(shards: TrainingShards, generated: Side, reference: Side) -> TrainingDistance:
    """Compare generated and held-out clips with all training clips.

    Held-out clips are decoded and encoded again, as generated ones are, because the codec does not return the same tokens.

    Raises:
        UserError: No generated, no held-out or no training clip can be used.
    """
    codec = shards.codec
    clips = _audible(generated, codec)
    ours = [_first_codebook(_encode(codec, clip)) for clip in track(clips, "encoding generated", "clips")]
    frames = int(np.median([len(tokens) for tokens in ours]))
    real = _held_out(shards, reference, frames)
    found, damaged = _search(shards.train, [*(tokens[:frames] for tokens in ours), *real])
    if damaged.clips == len(shards.train):
        raise UserError(str(damaged.first))
    copies = [
        float((_first_codebook(tokens) != _first_codebook(_again(codec, tokens))).mean())
        for tokens in _tokens(shards.train, _COPIES, frames, "encoding copies")
    ]
    distances = [near.distance for near in found]
    own, held_out = distances[: len(ours)], TokenDistances.of(distances[len(ours) :])
    named = [(clip.file.name, near) for clip, near in zip(clips, found, strict=False)]
    return TrainingDistance(
        generated=TokenDistances.of(own),
        held_out=held_out,
        held_out_source=str(reference.path if shards.held_out is None else shards.held_out.folder),
        copies=TokenDistances.of(copies) if copies else None,
        nearer_than_held_out=sum(distance < held_out.low for distance in own),
        frames=frames,
        frame_rate=codec.frame_rate,
        training_clips=len(shards.train) - damaged.clips,
        damaged_clips=damaged.clips,
        damage=damaged.first,
        nearest=sorted(named, key=lambda pair: pair[1].distance),
    )


def _encode(codec: Codec, clip: EvaluatedClip) -> Tensor:
    """Encode the beginning of a clip."""
    audio = clip.blocks(codec.sample_rate, codec.channels)
    return encode_blocks(codec, _beginning(audio, round(_LONGEST * codec.sample_rate)))


def _beginning(blocks: Iterable[Tensor], samples: int) -> Iterator[Tensor]:
    for block in blocks:
        yield block[:, :samples]
        samples -= block.shape[-1]
        if samples <= 0:
            return


def _again(codec: Codec, tokens: Tensor) -> Tensor:
    """Decode tokens and encode the sound."""
    audio = codec.decode(tokens[None])[0]
    return encode_blocks(codec, [audio[:, : tokens.shape[-1] * samples_per_frame(codec)]])


def _held_out(shards: TrainingShards, reference: Side, frames: int) -> list[Tokens]:
    """Return the tokens of held-out clips that went through the codec; raises `UserError` if there are none."""
    codec, what = shards.codec, "encoding held-out"
    if shards.held_out is not None:
        clips = _tokens(shards.held_out, _MOST_HELD_OUT, frames, what)
    else:
        usable = _audible(reference, codec)
        chosen = [usable[number] for number in _spread(len(usable), _MOST_HELD_OUT)]
        clips = (_encode(codec, clip)[:, :frames] for clip in track(chosen, what, "clips"))
    found = [_first_codebook(_again(codec, tokens)) for tokens in clips]
    if not found and shards.held_out is not None:
        raise UserError(f"no clip in --val_shards {shards.held_out.folder} can be read; copy them again.")
    return found


def _audible(side: Side, codec: Codec) -> list[EvaluatedClip]:
    """Return the clips that are a frame long or longer; raises `UserError` if there are none."""
    clips = [clip for clip in side.clips if clip.seconds * codec.frame_rate >= 1]
    if not clips:
        raise UserError(f"no clip in {side.path} has a frame of codec {codec.id}; give longer clips.")
    return clips


def _tokens(reader: ShardReader, most: int, frames: int, what: str) -> Iterator[Tensor]:
    """Yield the first frames of clips in shards, evenly spread; damaged ones are left out."""
    for number in track(_spread(len(reader), most), what, "clips"):
        (sample,) = reader.read(np.array([number]))
        if not isinstance(sample, UserError):
            yield torch.from_numpy(sample.tokens[:, :frames].astype(np.int64))


def _spread(total: int, most: int) -> list[int]:
    numbers: list[int] = np.linspace(0, total - 1, min(most, total)).astype(int).tolist()
    return numbers


def _first_codebook(tokens: Tensor) -> Tokens:
    first: Tokens = tokens[0].cpu().numpy()
    return first


class _Damaged(NamedTuple):
    """Clips that could not be read, and why the first one could not."""

    clips: int = 0
    first: str | None = None


def _search(train: ShardReader, clips: Sequence[Tokens]) -> tuple[list[NearestClip], _Damaged]:
    """Return the nearest training clip of each of `clips`, and the training clips that could not be read."""
    search, damaged = NearestSearch(clips), _Damaged()
    total = len(train)
    with ProgressBar("nearest training clips", "clips", total, transient=True) as bar:
        for first in range(0, total, _BLOCK):
            for sample in train.read(np.arange(first, min(total, first + _BLOCK))):
                if isinstance(sample, UserError):
                    damaged = _Damaged(damaged.clips + 1, damaged.first or str(sample))
                else:
                    search.add(sample.key, sample.tokens[0])
            bar.update(min(total, first + _BLOCK))
    return search.found, damaged
