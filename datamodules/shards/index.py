"""Index sidecar: the tar and byte offsets of each clip, so that one read gets any clip.

A `.npy` with one row of 48 bytes for each clip. It is read into memory and checked once; forked workers share the
copy. A memory-mapped file that shrinks would kill the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from datamodules.shards.files import MalformedError, PlainFile, ShrunkError
from datamodules.shards.manifest import WORK_NAME, Manifest
from datamodules.shards.tar import BLOCK, MAX_HEADER_BYTES
from magnet_train.errors import UserError, cannot_read
from magnet_train.storage.atomic_io import atomic_write

INDEX_NAME = "index.npy"
# Index of a manifest that has just replaced another; a killed `tokenize` may leave it there.
NEXT_INDEX_NAME = f"{WORK_NAME}/ready/{INDEX_NAME}"
INDEX_DTYPE = np.dtype(
    [
        ("shard", "<u4"),  # place in the manifest's list
        ("frames", "<u4"),
        ("npy_bytes", "<u4"),
        ("json_bytes", "<u4"),
        ("npy_header", "<u8"),  # first tar header block of the .npy member: holds the key
        ("npy_offset", "<u8"),  # payloads, from the start of the tar
        ("json_offset", "<u8"),
        ("key_hash", "<u8"),  # finds duplicates and holds out validation clips without reading keys
    ]
)
IndexRows: TypeAlias = npt.NDArray[Any]  # of INDEX_DTYPE
MAX_NPY_BYTES = 2**28  # of one clip: a week at 50 frames a second and 4 codebooks
MAX_JSON_BYTES = 2**20  # of one clip
MAX_NPY_HEADER_BYTES = 10_000  # numpy's own limit
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>[\s\S]{2})(?P<literal>\{'descr': "
    + re.escape(repr(np.lib.format.dtype_to_descr(INDEX_DTYPE)).encode())
    + rb", 'fortran_order': False, 'shape': \((?P<clips>[0-9]{1,18}),\), \} *\n)"
)
# Checked at a time, so that a sparse file fails before it takes memory.
_ROWS_AT_ONCE = 2**16


def key_hash(key: str) -> int:
    """Hash a sample's key to 64 evenly spread bits, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def write_index(folder: Path, rows: IndexRows) -> str:
    """Write the sidecar atomically and return its sha256; a UserError says why the disk refuses."""
    buffer = io.BytesIO()
    np.save(buffer, rows.astype(INDEX_DTYPE, copy=False), allow_pickle=False)
    data = buffer.getvalue()
    with atomic_write(folder / INDEX_NAME) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def open_index(folder: Path, manifest: Manifest) -> IndexRows:
    """Read the sidecar as `read_index` does, but raise UserError if it is missing, damaged, or of other shards."""
    path = folder / INDEX_NAME
    remedy = f"make it again with `magnet-train verify {folder} --write_index`"
    try:
        return read_index(folder, manifest)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {remedy}.") from error
    except OSError as error:
        raise cannot_read(path, error, remedy) from error
    except MalformedError as error:
        raise UserError(f"{path} {error}; {remedy}.") from error


def read_index(folder: Path, manifest: Manifest) -> IndexRows:
    """Read the sidecar: read-only rows, one for each clip, checked to be the manifest's and within their shards.

    Raises:
        MalformedError: It is damaged or belongs to other shards.
        OSError: It is missing or cannot be read.
    """
    try:
        return _read_file(folder / INDEX_NAME, manifest)
    except (MalformedError, OSError) as error:
        for name in (NEXT_INDEX_NAME, INDEX_NAME):  # twice: it may be moved meanwhile
            with contextlib.suppress(MalformedError, OSError):
                return _read_file(folder / name, manifest)
        raise error


def max_index_bytes(manifest: Manifest) -> int:
    """Return the largest size that the sidecar of these shards can have."""
    return MAX_NPY_HEADER_BYTES + INDEX_DTYPE.itemsize * manifest.samples


def _read_file(path: Path, manifest: Manifest) -> IndexRows:
    try:
        with PlainFile(path) as file:
            return _read_rows(file, manifest)
    except ShrunkError as error:
        raise MalformedError("became shorter while it was read") from error


def _read_rows(file: PlainFile, manifest: Manifest) -> IndexRows:
    beginning = file.read(0, min(file.size, MAX_NPY_HEADER_BYTES))
    header = _HEADER.match(beginning)
    if header is None or int.from_bytes(header["length"], "little") != len(header["literal"]):
        raise MalformedError("is unreadable (it is not an index of this version)")
    samples, start = manifest.samples, header.end()
    if int(header["clips"]) != samples:
        raise MalformedError(f"has {int(header['clips'])} clips and the manifest {samples}")
    expected = start + samples * INDEX_DTYPE.itemsize
    if file.size != expected:
        raise MalformedError(f"is unreadable (it has {file.size} bytes instead of {expected})")
    sizes = np.array([shard.bytes for shard in manifest.shards], dtype=np.uint64)
    digest = hashlib.sha256(beginning[:start])
    rows = np.empty(samples, dtype=INDEX_DTYPE)
    for first in range(0, samples, _ROWS_AT_ONCE):
        part = rows[first : first + _ROWS_AT_ONCE]
        data = file.read(start + first * INDEX_DTYPE.itemsize, part.nbytes)
        digest.update(data)
        part[:] = np.frombuffer(data, dtype=INDEX_DTYPE)
        if not _rows_fit(part, sizes):
            raise MalformedError("points outside its shards")
        if not _tokens_fit(part, manifest.codec.n_q):
            raise MalformedError(f"lists clips that are not of {manifest.codec.n_q} codebooks")
    if digest.hexdigest() != manifest.index_sha256:
        raise MalformedError("is not the manifest's (sha256 differs)")
    rows.flags.writeable = False
    return rows


def _rows_fit(rows: IndexRows, sizes: npt.NDArray[np.uint64]) -> bool:
    """Return whether both members of each clip lie within their shard and side by side, so that one read gets both."""
    if int(rows["shard"].max()) >= len(sizes):
        return False
    limits = sizes[rows["shard"]]
    ends = []
    for name, most in (("npy", MAX_NPY_BYTES), ("json", MAX_JSON_BYTES)):
        offset, length = rows[f"{name}_offset"], rows[f"{name}_bytes"].astype(np.uint64)
        # compared before they are added: sums of 64 bits wrap
        if (length > most).any() or (offset > limits).any() or (length > limits - offset).any():
            return False
        ends.append(offset + length)
    header, json, npy = rows["npy_header"], rows["json_offset"], rows["npy_offset"]
    if (header >= npy).any() or (npy - header > MAX_HEADER_BYTES).any():
        return False
    gap = np.where(json < npy, header - ends[1], json - ends[0])  # wraps to a huge number if they overlap
    return not (gap > MAX_HEADER_BYTES + BLOCK).any()


def _tokens_fit(rows: IndexRows, n_q: int) -> bool:
    """Return whether each npy file has the size of its tokens [n_q, frames] and a header."""
    tokens = rows["frames"].astype(np.uint64) * (2 * n_q)
    header = rows["npy_bytes"] - tokens  # wraps to a huge number if the tokens are larger than the file
    return not ((rows["frames"] == 0) | (header > MAX_NPY_HEADER_BYTES + BLOCK)).any()
