"""The same batches three ways: by our loader, by webdataset as documented, and by webdataset decoded by hand.

Shapes: tokens int64 [B, K, T], padded with card where a clip is shorter.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset as wds
from torch import Tensor

from datamodules.shards.index import open_index, write_index
from datamodules.shards.manifest import MANIFEST_NAME, Manifest, read_manifest, write_manifest
from datamodules.shards.scan import TokenArray
from datamodules.token_datamodule import TokenDataModule
from harness.shard_writer import ShardWriter
from magnet_train.errors import UserError
from magnet_train.tokens import CodecInfo

_CODEC = CodecInfo("made up", "ab" * 32, sample_rate=32000, channels=1, frame_rate=50.0, n_q=4, card=2048)
_WORDS = ("slow", "warm", "piano", "soft strings", "brushed drums", "deep bass", "large hall", "a loop of")


class Clips(NamedTuple):
    """A batch: B keys, B captions, and tokens int64 [B, K, T]."""

    keys: list[str]
    texts: list[str]
    tokens: Tensor


@dataclass(frozen=True)
class LoaderConfig:
    """What a benchmark of the loader reads."""

    folder: Path  # of shards with manifest and index
    frames: int  # T; longer clips are cropped and shorter ones padded
    batch: int  # B

    @cached_property
    def manifest(self) -> Manifest:
        return read_manifest(self.folder)

    @cached_property
    def clip_frames(self) -> TokenArray:
        """Frames of each clip, [clips]."""
        frames: TokenArray = open_index(self.folder, self.manifest)["frames"]
        return frames

    @property
    def tars(self) -> list[Path]:
        return [self.folder / shard.file for shard in self.manifest.shards]

    @property
    def codes_per_clip(self) -> float:
        """Mean codes of a row, without padding."""
        return self.manifest.codec.n_q * float(np.minimum(self.clip_frames, self.frames).mean())


def ours(config: LoaderConfig, workers: int = 0) -> Iterator[Clips]:
    """Read without end, globally shuffled; tokens are checked and mask noise is drawn, as in training."""
    data = TokenDataModule(
        config.folder,
        val_shards=config.folder,  # so that no clip is held out
        segment_duration=config.frames / config.manifest.codec.frame_rate,
        batch_size=config.batch,
        num_workers=workers,
    )
    data.setup()
    for batch in data.train_dataloader():
        yield Clips(batch["key"], batch["text"], batch["tokens"])


def default_decode(config: LoaderConfig) -> Iterator[Clips]:
    """Read without end, from front to back, decoded as in webdataset's documentation."""
    return _collated(_webdataset(config).decode().to_tuple("__key__", "json", "npy"), config)


def decode_by_hand(config: LoaderConfig) -> Iterator[Clips]:
    """Read without end, from front to back; the npy header is skipped without parsing it."""
    codec = config.manifest.codec
    dtype = "<i2" if codec.card <= 2**15 else "<u2"

    def decode(sample: dict[str, Any]) -> tuple[str, dict[str, Any], TokenArray]:
        npy = sample["npy"]
        start = 10 + int.from_bytes(npy[8:10], "little")
        tokens = np.frombuffer(npy, dtype, offset=start).reshape(codec.n_q, -1)
        return sample["__key__"], json.loads(sample["json"]), tokens

    return _collated(_webdataset(config).map(decode), config)


OTHERS: dict[str, Callable[[LoaderConfig], Iterator[Clips]]] = {
    "webdataset, .decode()": default_decode,
    "webdataset, decoded by hand": decode_by_hand,
}


def require_same_clips(config: LoaderConfig) -> None:
    """Read every whole clip in each way.

    Raises:
        UserError: Keys, captions or tokens differ, or a clip is damaged.
    """
    whole = replace(config, frames=int(config.clip_frames.max()))
    expected = _digests(ours(whole), whole)
    for name, pipeline in OTHERS.items():
        different = sorted(expected.items() ^ _digests(pipeline(whole), whole).items())
        if different:
            raise UserError(
                f"{name} gives another clip {different[0][0]} of {config.folder} than our loader, so there is "
                f"no ratio; check the shards with `magnet-train verify {config.folder}`."
            )


def make_shards(
    folder: Path, clips: int, frames: int, track: Callable[[range], Iterable[int]] = iter
) -> Path:
    """Write made-up clips of `frames` frames with captions and metadata, unless the folder has them.

    Args:
        folder: Created if missing.
        clips: Number of clips.
        frames: Length of each.
        track: Passes the numbers of the clips on, to show progress.

    Raises:
        UserError: The folder has other shards, or the disk is full.
    """
    if (folder / MANIFEST_NAME).exists():
        manifest = read_manifest(folder)
        if manifest.samples == clips and sum(shard.frames for shard in manifest.shards) == clips * frames:
            return folder
    random = np.random.default_rng(0)
    with ShardWriter(folder, _CODEC) as writer:
        for number in track(range(clips)):
            metadata = {
                "text": " ".join(random.choice(_WORDS, 10)),
                "source": f"music/{number:07d}.flac",
                "genre": "ambient",
                "bpm": 90 + number % 60,
            }
            writer.add(f"{number:07d}", random.integers(0, _CODEC.card, (_CODEC.n_q, frames)), metadata)
    return folder


def first_shards(folder: Path, clips: int, links: Path) -> Path:
    """Link the first shards that hold at least `clips` clips into a new folder `links`.

    Returns:
        `links`, or `folder` itself if all of its shards are needed.

    Raises:
        UserError: The folder or its index is missing or damaged.
    """
    manifest = read_manifest(folder)
    ends = np.cumsum([shard.samples for shard in manifest.shards])
    taken = int(np.searchsorted(ends, clips)) + 1
    if taken >= len(manifest.shards):
        return folder
    links.mkdir()
    for shard in manifest.shards[:taken]:
        (links / shard.file).symlink_to((folder / shard.file).absolute())
    rows = open_index(folder, manifest)
    digest = write_index(links, rows[rows["shard"] < taken])
    write_manifest(links, Manifest(manifest.codec, manifest.shards[:taken], digest))
    return links


def _webdataset(config: LoaderConfig) -> Any:
    return wds.WebDataset([str(tar) for tar in config.tars], shardshuffle=False).repeat()


def _collated(
    samples: Iterable[tuple[str, dict[str, Any], TokenArray]], config: LoaderConfig
) -> Iterator[Clips]:
    stream = iter(samples)
    mask_id = config.manifest.codec.mask_id
    while rows := list(itertools.islice(stream, config.batch)):
        keys, metadata, tokens = zip(*rows, strict=True)
        equally_long = [_fit(clip, config.frames, mask_id) for clip in tokens]
        stacked = torch.from_numpy(np.stack(equally_long).astype(np.int64))
        yield Clips(list(keys), [str(record.get("text", "")) for record in metadata], stacked)


def _fit(clip: TokenArray, frames: int, mask_id: int) -> TokenArray:
    missing = frames - clip.shape[1]
    if missing > 0:
        return np.pad(clip.astype(np.int64), ((0, 0), (0, missing)), constant_values=mask_id)
    return clip[:, :frames]


def _digests(batches: Iterator[Clips], config: LoaderConfig) -> dict[str, bytes]:
    """Hash caption and tokens of every clip once, by key."""
    found = {}
    for batch in itertools.islice(batches, -(-config.manifest.samples // config.batch)):
        for key, text, tokens in zip(*batch, strict=True):
            found[key] = hashlib.blake2b(tokens.numpy().tobytes() + text.encode(), digest_size=16).digest()
    return found
