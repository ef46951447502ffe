"""Read every byte of one shard: the one place that knows what a sound shard is.

The writer takes its index rows from here, `verify` its problems, and adopting foreign tars both.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.index import INDEX_DTYPE, IndexRows, key_hash
from datamodules.manifest import ShardEntry
from datamodules.npy import tokens_from_npy
from datamodules.problems import MalformedError, Problem
from datamodules.tar import Bytes, Member, split_name, walk_tar
from magnet_train.tokens import CodecInfo


@dataclass
class ShardScan:
    """What one shard holds.

    Args:
        entry: Sizes, counts and hash as found.
        rows: Index rows [samples] of the sound samples, `shard` set to the number asked for.
        problems: Everything that is wrong with it.
    """

    entry: ShardEntry
    rows: IndexRows
    problems: list[Problem] = field(default_factory=list)


def scan_shard(path: Path, number: int, codec: CodecInfo) -> ShardScan:
    """Check a whole tar: structure, names, and dtype, shape, range and JSON of every sample.

    Args:
        path: The tar.
        number: Its place in the manifest, for the index rows.
        codec: Gives n_q and card; the tokens have to fit.

    Returns:
        What was found; a bad sample is a problem in the list and never an exception.
    """
    problems: list[Problem] = []
    rows: list[tuple[int, ...]] = []
    size, digest = 0, ""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            data: Bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
            digest = hashlib.sha256(data).hexdigest()
            for key, members in _group_members(path.name, data, problems):
                try:
                    rows.append((number, *_check_sample(key, members, data, codec)))
                except MalformedError as error:
                    problems.append(Problem(path.name, key, str(error)))
    except OSError as error:
        problems.append(no_access(path.name, error))
    found = np.array(rows, dtype=INDEX_DTYPE)
    entry = ShardEntry(path.name, size, len(found), int(found["frames"].sum(dtype=np.int64)), digest)
    return ShardScan(entry, found, problems)


def no_access(name: str, error: OSError) -> Problem:
    """Describe a file that is there and cannot be read."""
    what = f"cannot be read ({error.strerror or error})"
    if isinstance(error, PermissionError):
        return Problem(name, None, what, remedy="correct its permissions")
    return Problem(name, None, what)


def parse_metadata(payload: bytes) -> dict[str, Any]:
    """Decode the JSON of a sample.

    Raises:
        MalformedError: Not JSON, not an object, or `text` is not a string.
    """
    try:
        record = json.loads(payload.decode())  # as text: guessing the encoding takes longer than the rest
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"its .json is unreadable ({error})") from error
    if not isinstance(record, dict):
        raise MalformedError(f"its .json is a {type(record).__name__}, not an object")
    if not isinstance(record.get("text", ""), str):
        raise MalformedError(f"its text is a {type(record['text']).__name__}, not a string")
    return record


def check_tokens(tokens: npt.NDArray[np.integer[Any]], codec: CodecInfo) -> None:
    """Require tokens [K, T] to be what `codec` can say.

    Raises:
        MalformedError: Wrong K, no frames, or an id outside 0..card-1.
    """
    n_q, frames = tokens.shape
    if n_q != codec.n_q:
        raise MalformedError(f"{n_q} codebooks instead of {codec.n_q}")
    if frames == 0:
        raise MalformedError("no frames")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= codec.card:
        raise MalformedError(f"tokens {low}..{high} leave 0..{codec.card - 1}")


def _group_members(shard: str, data: Bytes, problems: list[Problem]) -> list[tuple[str, dict[str, Member]]]:
    """Put members that follow each other with one key together, as webdataset does."""
    groups: list[tuple[str, dict[str, Member]]] = []
    seen: set[str] = set()
    try:
        for member in walk_tar(data):
            key, extension = split_name(member.name)
            if extension not in ("npy", "json"):
                problems.append(Problem(shard, key, f"member {member.name} is neither .npy nor .json"))
                continue
            if groups and groups[-1][0] == key and extension not in groups[-1][1]:
                groups[-1][1][extension] = member
                continue
            if key in seen:
                twice = Problem(shard, key, "is there twice (duplicate key)")
                if problems[-1:] != [twice]:  # once, not for each of its members
                    problems.append(twice)
                continue
            seen.add(key)
            groups.append((key, {extension: member}))
    except MalformedError as error:
        where = f"after key {groups[-1][0]} " if groups else ""
        problems.append(Problem(shard, None, f"{where}the tar {error}"))
    return groups


def _check_sample(key: str, members: dict[str, Member], data: Bytes, codec: CodecInfo) -> tuple[int, ...]:
    """Return an index row without its shard number."""
    for extension in ("npy", "json"):
        if extension not in members:
            raise MalformedError(f"its .{extension} is missing")
    npy, meta = members["npy"], members["json"]
    if not key.rpartition("/")[2]:
        raise MalformedError("its name is empty")
    if key.startswith("/") or ".." in key.split("/"):
        raise MalformedError("its name leads out of the folder")
    tokens = tokens_from_npy(data[npy.offset : npy.offset + npy.size])
    check_tokens(tokens, codec)
    parse_metadata(data[meta.offset : meta.offset + meta.size])
    return (tokens.shape[1], npy.size, meta.size, npy.header, npy.offset, meta.offset, key_hash(key))
