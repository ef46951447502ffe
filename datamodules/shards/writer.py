"""Write clips into tars, and a folder of shards from clips in memory.

Shapes: tokens integers [K, T].
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from datamodules.shards.index import INDEX_DTYPE, INDEX_NAME, IndexRows, write_index
from datamodules.shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, write_manifest
from datamodules.shards.scan import ShardScan, check_tokens, parse_metadata, scan_shard
from datamodules.shards.tar import BLOCK
from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import atomic_write, explain_disk_errors
from magnet_train.tokens import CodecInfo, tokens_to_npy

_KEY = re.compile(r"[^./\\\0]{1,90}")  # a file name without dots that fits into a plain tar header
_RECORD = 20 * BLOCK  # tars are padded to whole records


def sample_bytes(
    key: str, tokens: npt.NDArray[np.integer[Any]], metadata: Mapping[str, Any], codec: CodecInfo
) -> bytes:
    """Encode one clip as the tar members KEY.json and KEY.npy, in whole blocks; equal clips give equal bytes.

    Args:
        key: No dots or slashes, where webdataset splits names.
        tokens: Ids 0..card-1, [K, T] with T >= 1.
        metadata: JSON primitives; `text` is the caption.
        codec: Codec that made the tokens.

    Raises:
        ValueError: A key that cannot be stored, tokens of another codec, or what `metadata_bytes` refuses.
    """
    from webdataset.writer import TarWriter  # imports torch, which readers of shards do not need

    if not _KEY.fullmatch(key) or len(key.encode()) > 90:
        raise ValueError(f"key {key!r} has dots or slashes or is longer than 90 bytes")
    check_tokens(tokens, codec)
    payload = metadata_bytes(metadata)
    buffer = io.BytesIO()
    # a fixed time and no encoder, so that the bytes depend on the clip alone
    tar = TarWriter(buffer, encoder=False, mtime=0)
    tar.write({"__key__": key, "json": payload, "npy": tokens_to_npy(tokens, codec.card)})
    size: int = tar.tarstream.offset
    tar.close()
    return buffer.getvalue()[:size]


def metadata_bytes(metadata: Mapping[str, Any]) -> bytes:
    """Encode the JSON of one clip; raises ValueError if it cannot be JSON or `parse_metadata` refuses it."""
    # "replace": file names, which stand in the metadata as `source`, need not be UTF-8
    payload = json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    parse_metadata(payload)
    return payload


def end_of_archive(size: int) -> bytes:
    """Return the zeros that end a tar whose members take `size` bytes."""
    return bytes(2 * BLOCK + -(size + 2 * BLOCK) % _RECORD)


def scan_written(path: Path, number: int, codec: CodecInfo, samples: int) -> ShardScan:
    """Read a tar back after writing it; a UserError says why it does not hold `samples` sound samples."""
    scan = scan_shard(path, number, codec)
    if scan.issues or scan.entry.samples != samples:
        what = scan.issues[0] if scan.issues else f"{scan.entry.samples} of {samples} samples"
        raise UserError(f"{path} does not read back as written: {what}; check the disk.")
    return scan


class ShardWriter:
    """Write a folder of shards from clips in memory, for tests, benchmarks and scripts; `tokenize` uses `ShardJob`.

    A context manager: a block that ends well writes index and manifest; one that raises removes what was written.

    Args:
        folder: Made if it is missing.
        codec: Codec that made the tokens.
        shard_bytes: A tar is closed once it has this size.

    Raises:
        UserError: The folder holds shards already, or cannot be written to.
    """

    def __init__(self, folder: Path, codec: CodecInfo, *, shard_bytes: int = 64 * 2**20) -> None:
        self.folder = folder
        self.codec = codec
        self.shard_bytes = shard_bytes
        self._entries: list[ShardEntry] = []
        self._rows: list[IndexRows] = [np.empty(0, dtype=INDEX_DTYPE)]
        self._keys: set[str] = set()
        self._samples: list[bytes] = []  # of the open shard
        self._size = 0  # of these samples, in bytes
        self._made_folders = [path for path in (folder, *folder.parents) if not path.exists()]
        if any(folder.glob("*.tar")):
            raise UserError(f"{folder} holds shards already; name another folder or remove them.")
        with explain_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def add(self, key: str, tokens: npt.NDArray[np.integer[Any]], metadata: Mapping[str, Any]) -> None:
        """Append one clip; raises ValueError for what `sample_bytes` refuses and for a key that was added before."""
        if key in self._keys:
            raise ValueError(f"key {key!r} was added before")
        self._samples.append(sample_bytes(key, tokens, metadata, self.codec))
        self._keys.add(key)
        self._size += len(self._samples[-1])
        if self._size >= self.shard_bytes:
            self._write_shard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.ExitStack() as undo:
            undo.callback(self._discard)
            if kind is None:
                self._finish()
                undo.pop_all()

    def _write_shard(self) -> None:
        path = self.folder / f"shard-{len(self._entries):06d}.tar"
        with atomic_write(path) as file:
            file.writelines(self._samples)
            file.write(end_of_archive(self._size))
        scan = scan_written(path, len(self._entries), self.codec, len(self._samples))
        self._entries.append(scan.entry)
        self._rows.append(scan.rows)
        self._samples, self._size = [], 0

    def _finish(self) -> None:
        if self._samples:
            self._write_shard()
        if not self._entries:
            raise UserError(f"no clip to write to {self.folder}; give at least one usable file.")
        digest = write_index(self.folder, np.concatenate(self._rows))
        write_manifest(self.folder, Manifest(self.codec, tuple(self._entries), digest))

    def _discard(self) -> None:
        for name in (MANIFEST_NAME, INDEX_NAME, *(path.name for path in self.folder.glob("shard-*.tar"))):
            (self.folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            for made in self._made_folders:
                made.rmdir()
