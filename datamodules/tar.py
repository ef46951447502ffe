"""A strict walk over a tar: checksums, sizes and the end-of-archive blocks.

The standard library's `tarfile` takes a damaged header or a missing tail for the end of the archive, so a
truncated shard silently loses its last samples. Here both are errors.

Source: POSIX.1-2017, pax, "ustar Interchange Format".
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from datamodules.problems import MalformedError

Bytes: TypeAlias = bytes | mmap.mmap

BLOCK = 512
_ZEROS = bytes(BLOCK)
_OCTAL = re.compile(rb" *([0-7]+)[ \0]*")
_PLAIN_FILE = (b"0", b"\0")
_LONG_NAME = (b"x", b"L")  # pax and GNU: a member that carries the name of the next one
_GLOBAL_PAX = b"g"


class Member(NamedTuple):
    """One file in a tar, by byte positions in the archive."""

    name: str
    header: int  # first of its header blocks, those with a long name included
    offset: int  # of its payload
    size: int  # of its payload


class _Header(NamedTuple):
    name: str
    size: int
    kind: bytes


def walk_tar(data: Bytes) -> Iterator[Member]:
    """Yield every file of a tar in order.

    Args:
        data: The whole archive, as bytes or memory-mapped.

    Raises:
        MalformedError: A header's checksum is wrong, the archive is cut short, something follows its end, or
            it holds anything but plain files.
    """
    position = 0
    first_header = 0
    long_name: str | None = None
    while True:
        block = data[position : position + BLOCK]
        if len(block) < BLOCK:
            raise MalformedError(f"ends at byte {len(data)} without end-of-archive blocks: it is truncated")
        if block == _ZEROS:
            _check_end(data, position)
            return
        header = _parse_header(block, position)
        offset = position + BLOCK
        position = offset + -(-header.size // BLOCK) * BLOCK
        if position > len(data):
            raise MalformedError(f"ends at byte {len(data)} inside member {header.name}: it is truncated")
        if header.kind in _LONG_NAME:
            long_name = _long_name(data[offset : offset + header.size], header.kind) or long_name
        elif header.kind in _PLAIN_FILE:
            yield Member(long_name or header.name, first_header, offset, header.size)
            first_header, long_name = position, None
        elif header.kind != _GLOBAL_PAX:
            raise MalformedError(
                f"member {header.name} is no plain file (type {header.kind.decode('latin-1')!r})"
            )


def member_name(headers: bytes) -> str:
    """Return the name that the header blocks before a payload give it."""
    long_name: str | None = None
    position = 0
    while position < len(headers):
        header = _parse_header(headers[position : position + BLOCK], position)
        payload = headers[position + BLOCK : position + BLOCK + header.size]
        if header.kind in _PLAIN_FILE:
            return long_name or header.name
        if header.kind in _LONG_NAME:
            long_name = _long_name(payload, header.kind) or long_name
        position += BLOCK + -(-header.size // BLOCK) * BLOCK
    raise MalformedError("no header stands before the payload")


def split_name(name: str) -> tuple[str, str]:
    """Split a member's name into key and extension where webdataset does: at the first dot of the file name.

    >>> split_name("album/song.npy")
    ('album/song', 'npy')
    """
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension


def _parse_header(block: bytes, position: int) -> _Header:
    if len(block) < BLOCK:
        raise MalformedError(f"header at byte {position} is cut short")
    stored = _number(block[148:156], "checksum", position)
    if stored != sum(block[:148]) + 8 * ord(" ") + sum(block[156:]):
        raise MalformedError(f"checksum of the header at byte {position} is wrong")
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return _Header(
        name=_decode(prefix + b"/" + name if prefix else name, position),
        size=_number(block[124:136], "size", position),
        kind=block[156:157],
    )


def _number(field: bytes, what: str, position: int) -> int:
    if field[0] & 0x80:  # GNU's base 256, for sizes of 8 GiB and more
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    match = _OCTAL.fullmatch(field)
    if match is None:
        raise MalformedError(f"{what} in the header at byte {position} is no number")
    return int(match[1], 8)


def _long_name(payload: bytes, kind: bytes) -> str | None:
    """Return the path in a pax or GNU long-name payload, None where pax says something else."""
    if kind == b"L":
        return _decode(payload.rstrip(b"\0"), 0)
    path = None
    while payload:
        length, space, _ = payload.partition(b" ")
        if not (space and length.isdigit() and len(length) < int(length) <= len(payload)):
            raise MalformedError("unreadable pax header")
        record, payload = payload[: int(length)], payload[int(length) :]
        name, _, value = record[len(length) + 1 : -1].partition(b"=")
        if name == b"path":
            path = _decode(value, 0)
        elif name == b"size":
            raise MalformedError("pax sizes (members of 8 GiB and more) are not supported")
    return path


def _decode(name: bytes, position: int) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedError(f"member name {name!r} (header at byte {position}) is not UTF-8") from error


def _check_end(data: Bytes, position: int) -> None:
    """Require two blocks of zeros and, after them, only zeros up to a whole block."""
    if data[position + BLOCK : position + 2 * BLOCK] != _ZEROS:
        raise MalformedError(f"ends at byte {len(data)} with half an end-of-archive mark: it is truncated")
    if len(data) % BLOCK:
        raise MalformedError(
            f"has {len(data)} bytes, not a whole number of {BLOCK}-byte blocks: it is truncated"
        )
    for start in range(position, len(data), 2**20):
        if any(data[start : start + 2**20]):
            raise MalformedError(f"holds data after the end-of-archive mark at byte {position}")
