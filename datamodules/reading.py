"""Read any clip of a folder of shards with one `pread`.

Shapes: tokens int16 or uint16 [K, T], the whole clip.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.index import IndexRows, open_index
from datamodules.manifest import read_manifest
from datamodules.npy import TokenArray, tokens_from_npy
from datamodules.problems import MalformedError
from datamodules.scan import check_tokens, parse_metadata
from datamodules.tar import member_name, split_name
from magnet_train.errors import UserError

_MOST_OPEN_FILES = 256


class Sample(NamedTuple):
    """One clip as it lies in a shard."""

    key: str
    tokens: TokenArray
    metadata: dict[str, Any]


class ShardReader:
    """Give the clips of a folder by number.

    Opening compares the size of each tar with the manifest, so a truncated shard stops a run at its start
    instead of losing clips in silence. Pickling carries only the folder's name; a worker maps the index anew.

    Args:
        folder: Shards, `manifest.json` and the index sidecar.

    Raises:
        UserError: Something is missing, of another size than the manifest says, or of a later format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self._check_sizes()
        self.index: IndexRows = open_index(folder, self.manifest)
        self._files: dict[int, int] = {}  # shard number -> descriptor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> Sample:
        """Read one clip.

        Raises:
            UserError: Its bytes are not what the index promises; names shard and key.
        """
        row = self.index[number]
        npy_header, npy_offset = int(row["npy_header"]), int(row["npy_offset"])
        json_offset = int(row["json_offset"])
        npy_end, json_end = npy_offset + int(row["npy_bytes"]), json_offset + int(row["json_bytes"])
        start = min(npy_header, json_offset)  # neighbours in the tar: one read for both
        shard = int(row["shard"])
        key = f"number {number}"
        try:
            data = self._read(shard, start, max(npy_end, json_end) - start)
            key, _ = split_name(member_name(data[npy_header - start : npy_offset - start]))
            tokens = tokens_from_npy(data[npy_offset - start : npy_end - start])
            check_tokens(tokens, self.manifest.codec)
            metadata = parse_metadata(data[json_offset - start : json_end - start])
        except (MalformedError, OSError) as error:
            file = self.folder / self.manifest.shards[shard].file
            raise UserError(
                f"clip {key} in {file} is damaged: {error}; run `magnet-train verify {self.folder}` and "
                "copy the shard again."
            ) from error
        return Sample(key, tokens, metadata)

    def key(self, number: int) -> str:
        """Read only the key of one clip."""
        row = self.index[number]
        start = int(row["npy_header"])
        headers = self._read(int(row["shard"]), start, int(row["npy_offset"]) - start)
        return split_name(member_name(headers))[0]

    def close(self) -> None:
        """Close the tars; the next read opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]

    def __del__(self) -> None:
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)

    def _read(self, shard: int, start: int, size: int) -> bytes:
        descriptor = self._files.get(shard)
        if descriptor is None:
            if len(self._files) >= _MOST_OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            descriptor = os.open(self.folder / self.manifest.shards[shard].file, os.O_RDONLY)
            self._files[shard] = descriptor
        data = os.pread(descriptor, size, start)
        if len(data) < size:
            raise MalformedError(f"the file ends at byte {start + len(data)}")
        return data

    def _check_sizes(self) -> None:
        for shard in self.manifest.shards:
            path = self.folder / shard.file
            if not path.is_file():
                raise UserError(f"{path} is missing though the manifest lists it; copy it again.")
            size = path.stat().st_size
            if size != shard.bytes:
                state = "truncated" if size < shard.bytes else "changed"
                raise UserError(
                    f"{path} has {size} bytes and the manifest says {shard.bytes}: it is {state}; copy it "
                    f"again or run `magnet-train verify {self.folder}`."
                )
