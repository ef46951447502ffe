"""Check every byte of one shard: the one definition of a sound shard and of a sound clip.

`tokenize` takes its index rows from here, `verify` its issues, and adopting foreign tars both.
Tokens are never a pickle: the `.npy` holds integers [K, T] and nothing else.

Shapes: tokens int16 or uint16 [K, T] with K codebooks and T frames.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from datamodules.shards.files import MalformedError, PlainFile, ShrunkError
from datamodules.shards.index import (
    INDEX_DTYPE,
    MAX_JSON_BYTES,
    MAX_NPY_BYTES,
    MAX_NPY_HEADER_BYTES,
    IndexRows,
    key_hash,
)
from datamodules.shards.manifest import ShardEntry
from datamodules.shards.tar import Archive, Member, split_name, walk_tar
from magnet_train.storage.plain_text import parse_object
from magnet_train.tokens import CodecInfo

TokenArray: TypeAlias = npt.NDArray[np.integer[Any]]

EXTENSIONS = ("npy", "json")  # of the members of a sample
# Metadata that training may append to a caption.
METADATA_FIELDS = ("genre", "moods", "instrument", "keywords", "key", "bpm")
# Characters; for a million of them a text tokenizer takes a minute and gigabytes.
MAX_CAPTION_LENGTH = 10_000
_MAX_ISSUES = 1000  # of one shard; enough to describe a broken tar
_NPY_HEADER = re.compile(
    rb"\{'descr': '(?P<dtype>[^']*)', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>(?:[0-9]{1,18}, ?)*(?:[0-9]{1,18})?)\),? *\} *\n?"
)
_DTYPES: dict[bytes, np.dtype[np.integer[Any]]] = {b"<i2": np.dtype("<i2"), b"<u2": np.dtype("<u2")}
_QUOTED = 60  # bytes of a header in an error


class Sample(NamedTuple):
    """One clip as stored in a shard."""

    key: str
    tokens: TokenArray
    metadata: dict[str, Any]


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


class ShardScan(NamedTuple):
    """Contents of one shard."""

    entry: ShardEntry  # sizes, counts and hash as found
    rows: IndexRows  # [samples], of the sound samples, `shard` set to the requested number
    issues: list[Issue]


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
    rows = np.empty(0, dtype=INDEX_DTYPE)
    size, digest = 0, ""
    try:
        with PlainFile(path) as file:
            size, digest = file.size, file.sha256()
            rows = np.fromiter(_index_rows(file, path.name, number, codec, issues), dtype=INDEX_DTYPE)
    except ShrunkError as error:
        issues.append(Issue(path.name, None, f"{error}: it became shorter while it was read"))
    except OSError as error:
        issues.append(unreadable_issue(path.name, error))
    frames = int(rows["frames"].sum(dtype=np.int64))
    return ShardScan(ShardEntry(path.name, size, len(rows), frames, digest), rows, issues)


def unreadable_issue(name: str, error: OSError) -> Issue:
    """Describe a file that exists and cannot be read."""
    what = f"cannot be read ({error.strerror or error})"
    if isinstance(error, PermissionError):
        return Issue(name, None, what, remedy="correct its permissions")
    return Issue(name, None, what)


def group_members(members: Iterable[Member]) -> Iterator[tuple[str, list[Member]]]:
    """Group consecutive members of one key, as webdataset does; of a longer group only three, one too many.

    Where the tar is damaged, the group before the damage is yielded first.
    """
    key = ""
    group: list[Member] = []
    try:
        for member in members:
            next_key, _ = split_name(member.name)
            if group and next_key != key:
                yield key, group
                group = []
            key, group = next_key, [*group, member][:3]
    except MalformedError:
        if group:
            yield key, group
        raise
    if group:
        yield key, group


def read_sample(
    key: str, members: Sequence[Member], archive: Archive, codec: CodecInfo
) -> tuple[Sample, Member, Member]:
    """Decode one clip from its group of members, and return it with its `.npy` and its `.json`.

    Raises:
        MalformedError: A member is missing, there twice or too large, or what `decode_sample` refuses.
    """
    found = {split_name(member.name)[1]: member for member in members}
    for extension, most in (("npy", MAX_NPY_BYTES), ("json", MAX_JSON_BYTES)):
        if extension not in found:
            raise MalformedError(f"its .{extension} is missing")
        if found[extension].size > most:
            raise MalformedError(f"its .{extension} has {found[extension].size} bytes, more than {most}")
    if len(members) > len(found):
        raise MalformedError("is there twice (duplicate key)")
    npy, meta = found["npy"], found["json"]
    payloads = archive.read(npy.offset, npy.size), archive.read(meta.offset, meta.size)
    return decode_sample(key, *payloads, codec), npy, meta


def decode_sample(key: str, npy: bytes, json: bytes, codec: CodecInfo) -> Sample:
    """Decode and check the tokens and the metadata of one clip.

    Raises:
        MalformedError: The key is empty or leads out of the folder, or a payload is not what format 1 allows.
    """
    if not key or key.endswith("/"):
        raise MalformedError("its name is empty")
    if key.startswith("/") or ".." in key.split("/"):
        raise MalformedError("its name leads out of the folder")
    tokens = tokens_from_npy(npy)
    check_tokens(tokens, codec)
    return Sample(key, tokens, parse_metadata(json))


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


def tokens_from_npy(payload: bytes) -> TokenArray:
    """Decode a `.npy` without copying: read-only tokens [K, T], int16 or uint16; `check_tokens` checks their range.

    Raises:
        MalformedError: Not an npy file, another dtype, shape or order, or too few or too many bytes.
    """
    if payload[:6] != b"\x93NUMPY" or len(payload) < 12:
        raise MalformedError("not a .npy file")
    version = payload[6]
    if version not in (1, 2, 3):
        raise MalformedError(f".npy version {version} is unknown")
    start = 10 if version == 1 else 12
    length = int.from_bytes(payload[8:start], "little")
    if length > MAX_NPY_HEADER_BYTES:
        raise MalformedError(f"its .npy header has {length} bytes, more than {MAX_NPY_HEADER_BYTES}")
    if len(payload) < start + length:
        raise MalformedError("its .npy header is cut short")
    dtype, n_q, frames = _parse_npy_header(payload[start : start + length])
    expected = start + length + dtype.itemsize * n_q * frames
    if len(payload) != expected:
        raise MalformedError(f".npy of shape [{n_q}, {frames}] needs {expected} bytes and has {len(payload)}")
    return np.ndarray((n_q, frames), dtype, payload, start + length)


@functools.lru_cache(maxsize=4096)  # clips of one length have the same header, byte for byte
def _parse_npy_header(header: bytes) -> tuple[np.dtype[np.integer[Any]], int, int]:
    """Return dtype, K and T."""
    match = _NPY_HEADER.fullmatch(header)
    if match is None:
        raise MalformedError(f"unreadable .npy header {header[:_QUOTED]!r}")
    dtype = _DTYPES.get(match["dtype"])
    if dtype is None:
        name = match["dtype"][:_QUOTED].decode("ascii", "replace")
        raise MalformedError(f"dtype {name!r} is neither int16 nor uint16")
    shape = [int(size) for size in match["shape"].replace(b" ", b"").split(b",") if size]
    if len(shape) != 2:
        raise MalformedError(f"shape {str(shape)[:_QUOTED]} is not [K, T]")
    if match["fortran"] == b"True" and min(shape) > 1:
        raise MalformedError("tokens are in Fortran order, not C order")
    return dtype, shape[0], shape[1]


def _index_rows(
    file: PlainFile, shard: str, number: int, codec: CodecInfo, issues: list[Issue]
) -> Iterator[tuple[int, ...]]:
    """Yield the index row of each sound sample, and note what is wrong with the others and with the tar."""
    seen: set[int] = set()
    key = None
    try:
        for key, members in group_members(_token_members(file, shard, issues)):
            try:
                sample, npy, meta = read_sample(key, members, file, codec)
                hashed = key_hash(key)
                if hashed in seen:
                    raise MalformedError("is there twice (duplicate key)")
            except MalformedError as error:
                issues.append(Issue(shard, key, str(error)))
                continue
            seen.add(hashed)
            frames = sample.tokens.shape[1]
            yield number, frames, npy.size, meta.size, npy.header, npy.offset, meta.offset, hashed
    except MalformedError as error:
        where = "" if key is None else f" after key {key}"
        issues.append(Issue(shard, None, f"the tar is damaged{where}: {error}"))
    if len(issues) >= _MAX_ISSUES:
        issues.append(Issue(shard, None, "has more issues, which are not listed"))


def _token_members(file: PlainFile, shard: str, issues: list[Issue]) -> Iterator[Member]:
    """Yield the members of samples, and note foreign ones; stops where there are too many issues."""
    for member in walk_tar(file):
        if len(issues) >= _MAX_ISSUES:
            return
        key, extension = split_name(member.name)
        if extension in EXTENSIONS:
            yield member
        else:
            issues.append(Issue(shard, key, f"member {member.name} is neither .npy nor .json"))
