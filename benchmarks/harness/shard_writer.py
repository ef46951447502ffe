"""Write a folder of shards from clips in memory, for tests and benchmarks.

Shapes: tokens integers [K, T].
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from datamodules.shards.index import INDEX_DTYPE, INDEX_NAME, IndexRows, write_index
from datamodules.shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, write_manifest
from datamodules.shards.writer import end_of_archive, sample_bytes, scan_written
from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import atomic_write, explain_disk_errors
from magnet_train.tokens import CodecInfo


class ShardWriter:
    """Write a folder of shards from clips in memory; `tokenize` uses `ShardJob`.

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
