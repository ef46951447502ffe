"""Random access to the clips of a folder of shards, one `pread` each.

Shapes: tokens int16 or uint16 [K, T], the whole clip.
"""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datamodules.shards.files import MalformedError, PlainFile
from datamodules.shards.index import IndexRows, key_hash, open_index
from datamodules.shards.manifest import read_manifest
from datamodules.shards.scan import Sample, decode_sample
from datamodules.shards.tar import BLOCK, member_name, split_name
from magnet_train.errors import UserError, cannot_read

_MAX_OPEN_FILES = 256


class ShardReader:
    """Read the clips of a folder of shards by number.

    Opening compares the size of each tar with the manifest, so a truncated shard stops a run at its start. A pickle
    holds only the folder's name: a spawned worker reads the index again, a forked one shares it.

    Raises:
        UserError: A file is missing, of another size than in the manifest, or of a later format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self._check_sizes()
        self.index: IndexRows = open_index(folder, self.manifest)
        self._files: dict[int, PlainFile] = {}  # by shard number

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> Sample:
        """Read one clip; a UserError names shard and key of a damaged one."""
        (sample,) = self.read(np.array([number]))
        if isinstance(sample, UserError):
            raise sample
        return sample

    def read(self, numbers: npt.NDArray[np.int64]) -> list[Sample | UserError]:
        """Read several clips; for a damaged one, return the error that names shard and key in its place."""
        rows = self.index[numbers].tolist()
        return [self._sample(number, row) for number, row in zip(numbers.tolist(), rows, strict=True)]

    def __reduce__(self) -> tuple[type[ShardReader], tuple[Path]]:
        return ShardReader, (self.folder,)

    def _sample(self, number: int, row: tuple[int, ...]) -> Sample | UserError:
        shard, _, npy_bytes, json_bytes, npy_header, npy_offset, json_offset, expected = row
        start = min(npy_header, json_offset)  # neighbours in the tar: one read for both
        end = max(npy_offset + npy_bytes, json_offset + json_bytes)
        npy, json = npy_offset - start, json_offset - start
        key = f"number {number}"
        try:
            data = self._read(shard, start, end - start)
            key = _key(data[npy_header - start : npy], expected)
            payloads = data[npy : npy + npy_bytes], data[json : json + json_bytes]
            return decode_sample(key, *payloads, self.manifest.codec)
        except PermissionError as error:
            return cannot_read(self._path(shard), error)
        except (MalformedError, OSError) as error:
            damage = UserError(
                f"clip {key} in {self._path(shard)} is damaged: {error}; run `magnet-train verify {self.folder}` and "
                "copy the shard again."
            )
            damage.__cause__ = error
            return damage

    def _read(self, shard: int, start: int, size: int) -> bytes:
        file = self._files.get(shard)
        if file is None:
            if len(self._files) >= _MAX_OPEN_FILES:
                del self._files[next(iter(self._files))]
            file = self._files[shard] = PlainFile(self._path(shard))
        return file.read(start, size)

    def _path(self, shard: int) -> Path:
        return self.folder / self.manifest.shards[shard].file

    def _check_sizes(self) -> None:
        for shard in self.manifest.shards:
            path = self.folder / shard.file
            try:
                found = path.stat()
            except OSError as error:
                raise UserError(f"{path} is missing though the manifest lists it; copy it again.") from error
            if not stat.S_ISREG(found.st_mode):
                raise UserError(f"{path} is a folder, pipe or device, not a file; copy it again.")
            if found.st_size != shard.bytes:
                state = "truncated" if found.st_size < shard.bytes else "changed"
                raise UserError(
                    f"{path} has {found.st_size} bytes instead of the {shard.bytes} in the manifest: it is {state}; "
                    f"copy it again or run `magnet-train verify {self.folder}`."
                )


def _key(headers: bytes, expected: int) -> str:
    """Return the key in the header blocks of a clip's `.npy`, and require its hash to be the index's."""
    if len(headers) == BLOCK:  # a short name: the hash proves it, so the checksum need not be computed
        name = headers[:100].partition(b"\0")[0].decode("utf-8", "replace")
        is_plain = name[-4:] == ".npy" and name.count(".") == 1 and name.isprintable()
        if is_plain and key_hash(key := name[:-4]) == expected:
            return key
    key, _ = split_name(member_name(headers))
    if key_hash(key) != expected:
        raise MalformedError(f"the shard has key {key} where the index has another")
    return key
