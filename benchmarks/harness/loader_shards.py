"""The shards that are read: made-up clips, or the first of somebody's own.

Shapes: tokens int64 [K, T].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from datamodules.shards.index import open_index, write_index
from datamodules.shards.manifest import MANIFEST_NAME, Manifest, read_manifest, write_manifest
from datamodules.shards.writer import ShardWriter
from magnet_train.tokens import CodecInfo

_CODEC = CodecInfo("made up", "ab" * 32, sample_rate=32000, channels=1, frame_rate=50.0, n_q=4, card=2048)
_WORDS = ("slow", "warm", "piano", "soft strings", "brushed drums", "deep bass", "large hall", "a loop of")


def make_shards(
    folder: Path, clips: int, frames: int, track: Callable[[range], Iterable[int]] = iter
) -> Path:
    """Write made-up clips with captions and metadata, unless they are there already.

    Args:
        folder: Made if it is missing.
        clips: How many.
        frames: Length of each.
        track: Passes the numbers of the clips on, and may show how far it is.

    Raises:
        UserError: Other shards are there, or there is no room.
    """
    if (folder / MANIFEST_NAME).exists():
        there = read_manifest(folder)
        if there.samples == clips and sum(shard.frames for shard in there.shards) == clips * frames:
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
            tokens = random.integers(0, _CODEC.card, (_CODEC.n_q, frames))
            writer.add(f"{number:07d}", tokens, metadata)
    return folder


def first_shards(folder: Path, clips: int, links: Path) -> Path:
    """Narrow a folder down to its first shards that hold so many clips together.

    Args:
        folder: Shards with manifest and index.
        clips: How many suffice; a shard is taken whole.
        links: Folder to make with links to those shards, should there be more.

    Returns:
        `folder` itself if it holds no more, else `links`.

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
