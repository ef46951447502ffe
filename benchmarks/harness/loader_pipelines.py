"""The same batches by three ways: this package's loader, and webdataset as documented and decoded by hand.

Shapes: tokens int64 [B, K, T], card where a clip is shorter.
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

from datamodules.shards.index import open_index
from datamodules.shards.manifest import Manifest, read_manifest
from datamodules.shards.npy import TokenArray
from datamodules.token_datamodule import TokenDataModule
from magnet_train.errors import UserError


class Clips(NamedTuple):
    """What every way delivers at a time: B keys, B captions, and tokens int64 [B, K, T]."""

    keys: list[str]
    texts: list[str]
    tokens: Tensor


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is read and how.

    Args:
        folder: Shards with manifest and index.
        frames: Length of every row, T; longer clips are cropped and shorter ones padded.
        batch: Rows, B.
    """

    folder: Path
    frames: int
    batch: int

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
        """Codes that a row holds on average, padding left out."""
        return self.manifest.codec.n_q * float(np.minimum(self.clip_frames, self.frames).mean())


def ours(setting: BenchmarkConfig, workers: int = 0) -> Iterator[Clips]:
    """Read for ever, shuffled over the whole set; tokens are checked and the dice for masks thrown as in training."""
    data = TokenDataModule(
        setting.folder,
        val_shards=setting.folder,  # so that no clip is held out
        segment_duration=setting.frames / setting.manifest.codec.frame_rate,
        batch_size=setting.batch,
        num_workers=workers,
    )
    data.setup()
    for made in data.train_dataloader():
        yield Clips(made["key"], made["text"], made["tokens"])


def default_decode(setting: BenchmarkConfig) -> Iterator[Clips]:
    """Read for ever, from front to back, decoding as webdataset's documentation does."""
    return _collated(_webdataset(setting).decode().to_tuple("__key__", "json", "npy"), setting)


def decode_by_hand(setting: BenchmarkConfig) -> Iterator[Clips]:
    """Read for ever, from front to back; the npy is taken as its codec makes it and its header skipped, not parsed."""
    codec = setting.manifest.codec
    dtype = "<i2" if codec.card <= 2**15 else "<u2"

    def decode(sample: dict[str, Any]) -> tuple[str, dict[str, Any], TokenArray]:
        npy = sample["npy"]
        start = 10 + int.from_bytes(npy[8:10], "little")
        tokens = np.frombuffer(npy, dtype, offset=start).reshape(codec.n_q, -1)
        return sample["__key__"], json.loads(sample["json"]), tokens

    return _collated(_webdataset(setting).map(decode), setting)


OTHERS: dict[str, Callable[[BenchmarkConfig], Iterator[Clips]]] = {
    "webdataset, .decode()": default_decode,
    "webdataset, decoded by hand": decode_by_hand,
}


def require_same_clips(setting: BenchmarkConfig) -> None:
    """Read every clip whole by each way.

    Raises:
        UserError: Keys, captions or tokens differ, or a clip is damaged.
    """
    whole = replace(setting, frames=int(setting.clip_frames.max()))
    expected = _digests(ours(whole), whole)
    for name, way in OTHERS.items():
        found = _digests(way(whole), whole)
        different = sorted(expected.items() ^ found.items())
        if different:
            raise UserError(
                f"{name} gives another clip {different[0][0]} of {setting.folder} than our loader, so there is "
                f"no ratio; check the shards with `magnet-train verify {setting.folder}`."
            )


def _webdataset(setting: BenchmarkConfig) -> Any:
    return wds.WebDataset([str(tar) for tar in setting.tars], shardshuffle=False).repeat()


def _collated(
    samples: Iterable[tuple[str, dict[str, Any], TokenArray]], setting: BenchmarkConfig
) -> Iterator[Clips]:
    stream = iter(samples)
    mask_id = setting.manifest.codec.mask_id
    while rows := list(itertools.islice(stream, setting.batch)):
        keys, metadata, tokens = zip(*rows, strict=True)
        equally_long = [_fit(clip, setting.frames, mask_id) for clip in tokens]
        stacked = torch.from_numpy(np.stack(equally_long).astype(np.int64))
        yield Clips(list(keys), [str(record.get("text", "")) for record in metadata], stacked)


def _fit(clip: TokenArray, frames: int, mask_id: int) -> TokenArray:
    missing = frames - clip.shape[1]
    if missing > 0:
        return np.pad(clip.astype(np.int64), ((0, 0), (0, missing)), constant_values=mask_id)
    return clip[:, :frames]


def _digests(batches: Iterator[Clips], setting: BenchmarkConfig) -> dict[str, bytes]:
    """Hash caption and tokens of every clip once, by its key."""
    found = {}
    for batch in itertools.islice(batches, -(-setting.manifest.samples // setting.batch)):
        for key, text, tokens in zip(*batch, strict=True):
            content = hashlib.blake2b(tokens.numpy(), digest_size=16)
            content.update(text.encode())
            found[key] = content.digest()
    return found
