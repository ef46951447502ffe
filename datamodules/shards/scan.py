"""Check every byte of one shard: the one definition of a sound shard.

`tokenize` and `ShardWriter` take their index rows from here, `verify` its issues, and adopting foreign tars both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.shards.files import MalformedError, PlainFile, ShrunkError
from datamodules.shards.index import INDEX_DTYPE, MAX_JSON_BYTES, MAX_NPY_BYTES, IndexRows, key_hash
from datamodules.shards.manifest import ShardEntry
from datamodules.shards.npy import tokens_from_npy
from datamodules.shards.tar import Archive, Member, split_name, walk_tar
from magnet_train.storage.plain_text import parse_object
from magnet_train.tokens import CodecInfo

# Metadata that training may append to a caption.
METADATA_FIELDS = ("genre", "moods", "instrument", "keywords", "key", "bpm")
# Characters; for a million of them a text tokenizer takes a minute and gigabytes.
MAX_CAPTION_LENGTH = 10_000
_MAX_ISSUES = 1000  # of one shard; enough to describe a broken tar
_ROWS_AT_ONCE = 2**14  # Python tuples take seven times the memory of a row


@dataclass(frozen=True)
class Issue:
    """One thing that is wrong with a folder of shards."""

    shard: str  # file name within the folder
    key: str | None  # sample within the shard, or None for the shard as a whole
    what: str  # description of the damage
    remedy: str = "copy it again or tokenize again"

    def __str__(self) -> str:
        where = self.shard if self.key is None else f"{self.shard}, key {self.key}"
        return f"{where}: {self.what}"


@dataclass
class ShardScan:
    """Contents of one shard."""

    entry: ShardEntry  # sizes, counts and hash as found
    rows: IndexRows  # [samples], of the sound samples, `shard` set to the requested number
    issues: list[Issue] = field(default_factory=list)


def scan_shard(path: Path, number: int, codec: CodecInfo) -> ShardScan:
    """Check a whole tar: structure, names, and dtype, shape, range and JSON of every sample.

    Args:
        path: The tar.
        number: Its place in the manifest, for the index rows.
        codec: Gives n_q and card; the tokens have to fit.

    Returns:
        What was found; damage is listed in `issues` and never raised.
    """
    issues: list[Issue] = []
    rows = [np.empty(0, dtype=INDEX_DTYPE)]
    pending: list[tuple[int, ...]] = []
    size, digest = 0, ""
    try:
        with PlainFile(path) as file:
            size, digest = file.size, file.sha256()
            for key, members in _group_members(path.name, file, issues):
                try:
                    pending.append((number, *_check_sample(key, members, file, codec)))
                except MalformedError as error:
                    issues.append(Issue(path.name, key, str(error)))
                if len(issues) >= _MAX_ISSUES:
                    issues.append(Issue(path.name, None, "has more issues, which are not listed"))
                    break
                if len(pending) >= _ROWS_AT_ONCE:
                    rows.append(np.array(pending, dtype=INDEX_DTYPE))
                    pending = []
    except ShrunkError as error:
        issues.append(Issue(path.name, None, f"{error}: it became shorter while it was read"))
    except OSError as error:
        issues.append(unreadable_issue(path.name, error))
    found = np.concatenate([*rows, np.array(pending, dtype=INDEX_DTYPE)])
    entry = ShardEntry(path.name, size, len(found), int(found["frames"].sum(dtype=np.int64)), digest)
    return ShardScan(entry, found, issues)


def unreadable_issue(name: str, error: OSError) -> Issue:
    """Describe a file that exists and cannot be read."""
    what = f"cannot be read ({error.strerror or error})"
    if isinstance(error, PermissionError):
        return Issue(name, None, what, remedy="correct its permissions")
    return Issue(name, None, what)


def parse_metadata(payload: bytes) -> dict[str, Any]:
    """Decode the JSON of a sample.

    Raises:
        MalformedError: Larger than 1 MiB, not strict JSON, not an object, `text` is not a string, or the caption and
            the fields that may be appended to it are longer than `MAX_CAPTION_LENGTH`.
    """
    if len(payload) > MAX_JSON_BYTES:
        raise MalformedError(f"its .json has {len(payload)} bytes, more than {MAX_JSON_BYTES}")
    try:
        record = parse_object(payload)
    except ValueError as error:
        raise MalformedError(f"its .json is unreadable ({error})") from error
    if not isinstance(record.get("text", ""), str):
        raise MalformedError(f"its text is a {type(record['text']).__name__}, not a string")
    if len(payload) <= MAX_CAPTION_LENGTH:  # so no caption in it can be longer
        return record
    for fields in (("text",), ("text", *METADATA_FIELDS)):
        length = sum(len(str(record[name])) for name in fields if name in record)
        if length > MAX_CAPTION_LENGTH:
            verb = "has" if len(fields) == 1 else "have"
            names = " and ".join(filter(None, ("text", ", ".join(fields[1:]))))
            raise MalformedError(f"its {names} {verb} {length} characters, more than {MAX_CAPTION_LENGTH}")
    return record


def check_key(key: str) -> None:
    """Require the name of a sample to be a possible file name within the folder.

    Raises:
        MalformedError: It is empty, or leads out of the folder.
    """
    if not key.rpartition("/")[2]:
        raise MalformedError("its name is empty")
    if key.startswith("/") or ".." in key.split("/"):
        raise MalformedError("its name leads out of the folder")


def check_tokens(tokens: npt.NDArray[np.integer[Any]], codec: CodecInfo) -> None:
    """Require tokens [K, T] to be ids of `codec`.

    Raises:
        MalformedError: Wrong K, no frames, or an id outside 0..card-1.
    """
    n_q, frames = tokens.shape
    if n_q != codec.n_q:
        raise MalformedError(f"{n_q} codebooks instead of {codec.n_q}")
    if frames == 0:
        raise MalformedError("no frames")
    # of 16 bits read as unsigned, a negative id is a large one: one pass finds both
    if tokens.itemsize == 2 and np.maximum.reduce(tokens.view(np.uint16), axis=None) < codec.card:
        return
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= codec.card:
        raise MalformedError(f"tokens {low}..{high} leave 0..{codec.card - 1}")


def _group_members(
    shard: str, archive: Archive, issues: list[Issue]
) -> Iterator[tuple[str, dict[str, Member]]]:
    """Group consecutive members of one key, as webdataset does, and note duplicates and foreign members."""
    last: tuple[str, dict[str, Member]] | None = None
    seen: set[int] = set()
    try:
        for member in walk_tar(archive):
            key, extension = split_name(member.name)
            if extension not in ("npy", "json"):
                issues.append(Issue(shard, key, f"member {member.name} is neither .npy nor .json"))
            elif last is not None and last[0] == key and extension not in last[1]:
                last[1][extension] = member
            elif (hashed := key_hash(key)) in seen:
                duplicate = Issue(shard, key, "is there twice (duplicate key)")
                if issues[-1:] != [duplicate]:  # once, not for each of its members
                    issues.append(duplicate)
            else:
                if last is not None:
                    yield last
                seen.add(hashed)
                last = (key, {extension: member})
            if len(issues) >= _MAX_ISSUES:
                break
        if last is not None:
            yield last
    except MalformedError as error:
        if last is not None:
            yield last
        where = f" after key {last[0]}" if last else ""
        issues.append(Issue(shard, None, f"the tar is damaged{where}: {error}"))


def _check_sample(
    key: str, members: dict[str, Member], archive: Archive, codec: CodecInfo
) -> tuple[int, ...]:
    """Return an index row without its shard number."""
    for extension in ("npy", "json"):
        if extension not in members:
            raise MalformedError(f"its .{extension} is missing")
    npy, meta = members["npy"], members["json"]
    check_key(key)
    for extension, most in (("npy", MAX_NPY_BYTES), ("json", MAX_JSON_BYTES)):
        if members[extension].size > most:
            raise MalformedError(f"its .{extension} has {members[extension].size} bytes, more than {most}")
    tokens = tokens_from_npy(archive.read(npy.offset, npy.size))
    check_tokens(tokens, codec)
    parse_metadata(archive.read(meta.offset, meta.size))
    return (tokens.shape[1], npy.size, meta.size, npy.header, npy.offset, meta.offset, key_hash(key))
