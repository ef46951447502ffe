"""Encode clips as members of a tar, and read a written tar back.

Shapes: tokens integers [K, T].
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.shards.scan import ShardScan, check_tokens, parse_metadata, scan_shard
from datamodules.shards.tar import BLOCK
from magnet_train.errors import UserError
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
