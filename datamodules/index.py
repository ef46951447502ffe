"""The index sidecar: where in which tar each clip lies, so that any clip is one read away.

One fixed-size row for each clip in a `.npy` that is memory-mapped: a million clips open at once and are
shared by all workers of a machine.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from datamodules.manifest import Manifest
from magnet_train.errors import UserError, cannot_read
from magnet_train.whole_files import whole_file

INDEX_NAME = "index.npy"
INDEX_DTYPE = np.dtype(
    [
        ("shard", "<u4"),  # place in the manifest's list
        ("frames", "<u4"),
        ("npy_bytes", "<u4"),
        ("json_bytes", "<u4"),
        ("npy_header", "<u8"),  # first tar header block of the .npy member: holds the key
        ("npy_offset", "<u8"),  # payloads, from the start of the tar
        ("json_offset", "<u8"),
        ("key_hash", "<u8"),  # finds duplicates and splits off validation without reading a single key
    ]
)
IndexRows: TypeAlias = npt.NDArray[Any]  # of INDEX_DTYPE
_CHECKED_AT_ONCE = 2**16  # rows; keeps the memory flat


def key_hash(key: str) -> int:
    """Hash a sample's key to 64 bits, evenly spread and the same everywhere."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def write_index(folder: Path, rows: IndexRows) -> str:
    """Write the sidecar in one step and return its sha256.

    Raises:
        UserError: No room or no permission.
    """
    buffer = io.BytesIO()
    np.save(buffer, rows.astype(INDEX_DTYPE, copy=False), allow_pickle=False)
    data = buffer.getvalue()
    with whole_file(folder / INDEX_NAME) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def open_index(folder: Path, manifest: Manifest) -> IndexRows:
    """Memory-map the sidecar and check that it fits the manifest.

    Returns:
        Read-only rows of INDEX_DTYPE, one for each clip.

    Raises:
        UserError: It is missing, damaged, or belongs to other shards.
    """
    path = folder / INDEX_NAME
    remedy = f"make it again with `magnet-train verify {folder} --write-index`."
    try:
        rows: IndexRows = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {remedy}") from error
    except PermissionError as error:
        raise cannot_read(path, error) from error
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is unreadable ({error}); {remedy}") from error
    if rows.dtype != INDEX_DTYPE or rows.ndim != 1:
        raise UserError(f"{path} is not an index of this version; {remedy}")
    if len(rows) != manifest.samples:
        raise UserError(f"{path} has {len(rows)} clips and the manifest {manifest.samples}; {remedy}")
    rows = rows.view(np.ndarray)  # the same mapped bytes; `memmap` costs a look-up in Python at every access
    if not _rows_fit(rows, manifest):
        raise UserError(f"{path} points outside its shards; {remedy}")
    return rows


def _rows_fit(rows: IndexRows, manifest: Manifest) -> bool:
    sizes = np.array([shard.bytes for shard in manifest.shards], dtype=np.uint64)
    for start in range(0, len(rows), _CHECKED_AT_ONCE):
        part = rows[start : start + _CHECKED_AT_ONCE]
        if int(part["shard"].max()) >= len(sizes):
            return False
        limits = sizes[part["shard"]]
        for offset, length in (("npy_offset", "npy_bytes"), ("json_offset", "json_bytes")):
            if (part[offset] + part[length] > limits).any():
                return False
        if (part["npy_header"] >= part["npy_offset"]).any():
            return False
    return True
