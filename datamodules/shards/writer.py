"""Write clips into tars, and a folder of shards whole or not at all.

Shapes: tokens integers [K, T].
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from datamodules.shards.index import INDEX_DTYPE, IndexRows, write_index
from datamodules.shards.manifest import Manifest, ShardEntry, write_manifest
from datamodules.shards.scan import check_tokens, parse_metadata, scan_shard
from datamodules.shards.tar import BLOCK
from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import explain_disk_errors, partial_path, publish
from magnet_train.tokens import CodecInfo, tokens_to_npy

SHARD_BYTES = 64 * 2**20
_KEY = re.compile(r"[^./\\\0]{1,90}")  # a file name without dots that a plain tar header holds
_RECORD = 20 * BLOCK  # tars are filled up to whole records


def sample_bytes(
    key: str, tokens: npt.NDArray[np.integer[Any]], metadata: Mapping[str, Any], codec: CodecInfo
) -> bytes:
    """Encode one clip as the tar members KEY.json and KEY.npy; the same clip gives the same bytes.

    Args:
        key: No dots or slashes, since webdataset splits names there.
        tokens: Ids 0..card-1, [K, T] with T >= 1.
        metadata: JSON primitives; `text` is the caption.
        codec: Who made the tokens.

    Returns:
        Headers and payloads in whole blocks, without an end-of-archive mark.

    Raises:
        ValueError: A key that cannot be stored, tokens that are not this codec's, or metadata
            that `metadata_bytes` refuses.
    """
    from webdataset.writer import TarWriter  # pulls in torch, which readers of shards do not need

    if not _KEY.fullmatch(key) or len(key.encode()) > 90:
        raise ValueError(f"key {key!r} has dots or slashes or is longer than 90 bytes")
    check_tokens(tokens, codec)
    payload = metadata_bytes(metadata)
    buffer = io.BytesIO()
    # a fixed time and no encoder: nothing but the clip itself decides the bytes
    tar = TarWriter(buffer, encoder=False, mtime=0)
    tar.write({"__key__": key, "json": payload, "npy": tokens_to_npy(tokens, codec.card)})
    size: int = tar.tarstream.offset
    tar.close()
    return buffer.getvalue()[:size]


def metadata_bytes(metadata: Mapping[str, Any]) -> bytes:
    """Encode the JSON of one clip, and require that it can be read back.

    Raises:
        ValueError: It is no JSON, or larger, deeper or with a longer caption than `parse_metadata` takes.
    """
    # "replace": file names need not be text, and stand in the metadata as `source`
    payload = json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    parse_metadata(payload)
    return payload


def end_of_archive(size: int) -> bytes:
    """Return the zeros that end a tar whose members take `size` bytes."""
    return bytes(2 * BLOCK + -(size + 2 * BLOCK) % _RECORD)


class ShardWriter:
    """Collect clips into tars with webdataset; as a context manager, finish on success and undo on failure.

    A tar carries a temporary name until it is complete and has been read back; index and manifest come last.
    If the block raises, whatever was written is removed again.

    Args:
        folder: Made if it is missing.
        codec: Who made the tokens.
        shard_bytes: A tar is closed once it is this large.

    Raises:
        UserError: The folder holds shards already, or cannot be written to.
    """

    def __init__(self, folder: Path, codec: CodecInfo, *, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder = folder
        self.codec = codec
        self.shard_bytes = shard_bytes
        self._entries: list[ShardEntry] = []
        self._rows: list[IndexRows] = [np.empty(0, dtype=INDEX_DTYPE)]
        self._keys: set[str] = set()
        self._stream: IO[bytes] | None = None
        self._size = 0  # bytes in the open tar
        self._manifest: Manifest | None = None
        self._made_folders = [path for path in (folder, *folder.parents) if not path.exists()]
        if any(folder.glob("*.tar")):
            raise UserError(f"{folder} holds shards already; name another folder or remove them.")
        with explain_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def samples(self) -> int:
        """Clips added so far."""
        return len(self._keys)

    def add(self, key: str, tokens: npt.NDArray[np.integer[Any]], metadata: Mapping[str, Any]) -> None:
        """Append one clip.

        Args:
            key: Unique in the folder; no dots or slashes, since webdataset splits names there.
            tokens: Ids 0..card-1, [K, T] with T >= 1.
            metadata: JSON primitives; `text` is the caption.

        Raises:
            ValueError: A key that cannot be stored or is there already, or tokens that are not this codec's.
            UserError: No room on disk.
        """
        if key in self._keys:
            raise ValueError(f"key {key!r} was added before")
        data = sample_bytes(key, tokens, metadata, self.codec)
        with explain_disk_errors(self._path()):
            if self._stream is None:
                self._stream, self._size = partial_path(self._path()).open("wb"), 0
            self._stream.write(data)
        self._keys.add(key)
        self._size += len(data)
        if self._size >= self.shard_bytes:
            self._finish_shard()

    def close(self) -> Manifest:
        """Finish the last tar, then write index and manifest; a second call only gives the manifest again.

        Returns:
            What was written.

        Raises:
            UserError: No room on disk, or no clip was added.
        """
        if self._manifest is not None:
            return self._manifest
        if not self.samples:
            raise UserError(f"no clip to write to {self.folder}; give at least one usable file.")
        self._finish_shard()
        digest = write_index(self.folder, np.concatenate(self._rows))
        manifest = Manifest(self.codec, tuple(self._entries), digest)
        write_manifest(self.folder, manifest)
        self._manifest = manifest
        return manifest

    def discard(self) -> None:
        """Remove everything this writer wrote, and the folders it made if nothing else is in them."""
        if self._stream is not None:
            with contextlib.suppress(OSError):  # a full disk fails once more when buffers are flushed
                self._stream.close()
            self._stream = None
        partial_path(self._path()).unlink(missing_ok=True)
        for entry in self._entries:
            (self.folder / entry.file).unlink(missing_ok=True)
        for name in ("index.npy", "manifest.json"):
            (self.folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            for made in self._made_folders:
                made.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.discard()
            return
        try:
            self.close()
        except BaseException:
            self.discard()
            raise

    def _path(self) -> Path:
        return self.folder / f"shard-{len(self._entries):06d}.tar"

    def _finish_shard(self) -> None:
        if self._stream is None:
            return
        path = self._path()
        partial = partial_path(path)
        with explain_disk_errors(path):
            self._stream.write(end_of_archive(self._size))
            self._stream.close()
            self._stream = None
            scan = scan_shard(partial, len(self._entries), self.codec)
            if scan.problems:
                raise UserError(
                    f"{path} reads back otherwise than written: {scan.problems[0]}; check the disk."
                )
            publish(partial, path)
        found = scan.entry
        self._entries.append(ShardEntry(path.name, found.bytes, found.samples, found.frames, found.sha256))
        self._rows.append(scan.rows)
