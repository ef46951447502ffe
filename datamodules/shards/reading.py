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
from datamodules.shards.manifest import MANIFEST_NAME, Manifest, read_manifest
from datamodules.shards.scan import Sample, decode_sample
from datamodules.shards.tar import BLOCK, member_name, split_name
from magnet_train.errors import UserError, cannot_read

_MAX_OPEN_FILES = 256


class ShardReader:
    """Read the clips of a folder of shards by number.

    Opening compares the size of each tar with the manifest, so a truncated shard stops a run at its start. A pickle
    holds only the folder's name: a spawned worker reads the index again, a forked one shares it. If `tokenize` changes
    the folder meanwhile, reading a shard that it replaced is an error.

    Args:
        folder: Folder of shards.
        index_sha256: Hash of the index that it must have; None accepts any.

    Raises:
        UserError: A file is missing, of another size than in the manifest, of a later format, or the index is another.
    """

    def __init__(self, folder: Path, index_sha256: str | None = None) -> None:
        self.folder = folder
        self._manifest_state = _state(folder / MANIFEST_NAME)
        self.manifest, self.index = _open(folder)
        if index_sha256 not in (None, self.manifest.index_sha256):
            raise self._changed()
        self._files: dict[int, PlainFile] = {}  # by shard number
        self._listed = set(self.manifest.shards)  # in the manifest as it was when last read

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

    def __reduce__(self) -> tuple[type[ShardReader], tuple[Path, str]]:
        return ShardReader, (self.folder, self.manifest.index_sha256)

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
            try:
                file = PlainFile(self._path(shard))
            finally:
                self._require_listed(shard)  # after opening: an open file cannot be replaced
            self._files[shard] = file
        return file.read(start, size)

    def _require_listed(self, shard: int) -> None:
        """Refuse a shard that the manifest no longer lists: its file may be gone, or another of the same name."""
        state = _state(self.folder / MANIFEST_NAME)
        if state != self._manifest_state:
            self._listed = set() if state is None else set(read_manifest(self.folder).shards)
            self._manifest_state = state
        if self.manifest.shards[shard] not in self._listed:
            raise self._changed()

    def _changed(self) -> UserError:
        return UserError(
            f"{self.folder} was changed by tokenize while it was in use; start again (a training run from its weights, with "
            "--init_from)."
        )

    def _path(self, shard: int) -> Path:
        return self.folder / self.manifest.shards[shard].file


def _open(folder: Path) -> tuple[Manifest, IndexRows]:
    """Read manifest and index and check the sizes of all tars; again where the manifest is replaced meanwhile."""
    manifest = read_manifest(folder)
    while True:
        try:
            _check_sizes(folder, manifest)
            return manifest, open_index(folder, manifest)
        except UserError:
            before, manifest = manifest, read_manifest(folder)
            if manifest == before:
                raise


def _check_sizes(folder: Path, manifest: Manifest) -> None:
    for shard in manifest.shards:
        path = folder / shard.file
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
                f"copy it again or run `magnet-train verify {folder}`."
            )


def _state(path: Path) -> tuple[int, ...] | None:
    """Return inode, size and time of a file, which change with its content; None if it is missing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


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
