"""Walk a tar strictly: checksums, sizes, names and the end-of-archive blocks are all checked.

The standard library's `tarfile` takes a damaged header or a missing tail for the end of the archive, so a truncated
shard silently loses its last samples, and it reads a name of any size into memory. Here all three are errors. A header
takes half the time of `tarfile.TarInfo.frombuf`.

Source: POSIX.1-2017, pax, "ustar Interchange Format".
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from datamodules.shards.files import MalformedError

BLOCK = 512
MAX_HEADER_BYTES = 64 * 2**10  # before one payload; in practice one block, or three to five with a long name
_ZEROS = bytes(BLOCK)
_OCTAL = re.compile(rb" *([0-7]+)[ \0]*")
_OTHER_NUMBERS = ((100, 108), (108, 116), (116, 124), (136, 148), (329, 337), (337, 345))  # mode ... devices
_PAX_RECORD = re.compile(rb"([0-9]{1,9}) ([^=]+)=")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_END_READ_BYTES = 2**20  # read at a time after the end-of-archive mark
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)
# members that carry the name of the next one, or pax records of all that follow
_NAME_TYPES = (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE)
_FORBIDDEN_PAX = (b"size", b"GNU.sparse.")  # the payload would not be what the header describes
_MAX_NAME_BYTES = 4096
_QUOTED = 60  # characters of a name in an error


class _Header(NamedTuple):
    name: str
    size: int
    type: bytes


class Member(NamedTuple):
    """One file in a tar, by byte positions in the archive."""

    name: str
    header: int  # first of its header blocks, those with a long name included
    offset: int  # of its payload
    size: int  # of its payload


class Archive(Protocol):
    """The bytes of a tar."""

    size: int

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from offset `start`; raise MalformedError if there are fewer."""
        ...


class BytesArchive:
    """A tar in memory."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from offset `start`."""
        return self.data[start : start + size]


def walk_tar(archive: Archive) -> Iterator[Member]:
    """Yield every file of a tar in order.

    Raises:
        MalformedError: A header is damaged, the archive is truncated, data follow its end, or it holds anything
            but regular files with printable names.
    """
    position = 0
    first_header = 0
    long_name: str | None = None
    while True:
        if position + BLOCK > archive.size:
            raise MalformedError(
                f"ends at byte {archive.size} without end-of-archive blocks: it is truncated"
            )
        block = archive.read(position, BLOCK)
        if block == _ZEROS:
            _check_end(archive, position)
            return
        header = _parse_header(block, position)
        offset = position + BLOCK
        position = offset + -(-header.size // BLOCK) * BLOCK
        if offset - first_header > MAX_HEADER_BYTES:
            raise MalformedError(f"has more than {MAX_HEADER_BYTES} bytes of headers at byte {first_header}")
        if position > archive.size:
            raise MalformedError(
                f"ends at byte {archive.size} inside member {header.name[:_QUOTED]}: it is truncated"
            )
        if header.type in _REGULAR:
            yield Member(long_name or header.name, first_header, offset, header.size)
            first_header, long_name = position, None
        elif header.type in _NAME_TYPES:
            if header.size > MAX_HEADER_BYTES:
                raise MalformedError(f"has a name of {header.size} bytes at byte {first_header}")
            long_name = _long_name(archive.read(offset, header.size), header.type) or long_name
        else:
            raise MalformedError(
                f"member {header.name[:_QUOTED]} is not a regular file (type {header.type.decode('latin-1')!r})"
            )


def member_name(headers: bytes) -> str:
    """Return the name in the header blocks before a payload.

    Raises:
        MalformedError: They are damaged.
    """
    long_name: str | None = None
    position = 0
    while position < len(headers):
        header = _parse_header(headers[position : position + BLOCK], position)
        payload = headers[position + BLOCK : position + BLOCK + header.size]
        if header.type in _REGULAR:
            return long_name or header.name
        if header.type in _NAME_TYPES:
            long_name = _long_name(payload, header.type) or long_name
        position += BLOCK + -(-header.size // BLOCK) * BLOCK
    raise MalformedError("no header stands before the payload")


def split_name(name: str) -> tuple[str, str]:
    """Split a member's name into key and extension as webdataset does: at the first dot of the file name.

    >>> split_name("album/song.npy")
    ('album/song', 'npy')
    """
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension


def _parse_header(block: bytes, position: int) -> _Header:
    if len(block) < BLOCK:
        raise MalformedError(f"the header at byte {position} is cut short")
    checksum = _number(block[148:156], "checksum", position)
    if checksum != sum(block[:148]) + 8 * ord(" ") + sum(block[156:]):
        raise MalformedError(f"the checksum of the header at byte {position} is wrong")
    if not all(_is_number(block[start:end]) for start, end in _OTHER_NUMBERS):
        raise MalformedError(f"the header at byte {position} has a field that is not a number")
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return _Header(
        name=_checked_name(prefix + b"/" + name if prefix else name, position),
        size=_number(block[124:136], "size", position),
        type=block[156:157],
    )


def _is_number(field: bytes) -> bool:
    """Return whether `tarfile`, and so webdataset, can read a number that is not used here."""
    if field[0] & 0x80:
        return field[0] in (0x80, 0xFF)
    return not field.partition(b"\0")[0].strip().strip(b"01234567")


def _number(field: bytes, what: str, position: int) -> int:
    if field[0] == 0x80:  # GNU's base 256, for sizes of 8 GiB and more
        return int.from_bytes(field[1:], "big")
    match = _OCTAL.fullmatch(field)
    if match is None:
        raise MalformedError(f"the {what} in the header at byte {position} is not a number")
    return int(match[1], 8)


def _long_name(payload: bytes, kind: bytes) -> str | None:
    """Return the path in a pax or GNU long-name payload, None if its pax records have no path."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return _checked_name(payload.rstrip(b"\0"), 0)
    path = None
    position = 0
    while position < len(payload):
        match = _PAX_RECORD.match(payload, position)
        end = position + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(payload) or payload[end - 1 : end] != b"\n":
            raise MalformedError("unreadable pax header")
        name = match[2]
        if name.startswith(_FORBIDDEN_PAX) or (kind == tarfile.XGLTYPE and name == b"path"):
            raise MalformedError(f"pax header {name[:_QUOTED].decode('latin-1')!r} is not supported")
        if name == b"path":
            path = _checked_name(payload[match.end() : end - 1], 0)
        position = end
    return path


def _checked_name(name: bytes, position: int) -> str:
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedError(
            f"member name {name[:_QUOTED]!r} (header at byte {position}) is not UTF-8"
        ) from error
    if len(name) > _MAX_NAME_BYTES:
        raise MalformedError(f"member name {text[:_QUOTED]!r}... has {len(name)} bytes")
    if _CONTROL.search(text):
        raise MalformedError(
            f"member name {text[:_QUOTED]!r} (header at byte {position}) has control characters"
        )
    return text


def _check_end(archive: Archive, position: int) -> None:
    """Require two blocks of zeros and, after them, only zeros up to a whole block."""
    if archive.size < position + 2 * BLOCK:
        raise MalformedError(f"ends at byte {archive.size} with half an end-of-archive mark: it is truncated")
    if archive.size % BLOCK:
        raise MalformedError(
            f"has {archive.size} bytes, not a whole number of {BLOCK}-byte blocks: it is truncated"
        )
    for start in range(position, archive.size, _END_READ_BYTES):
        data = archive.read(start, min(_END_READ_BYTES, archive.size - start))
        if data.count(0) < len(data):
            raise MalformedError(f"holds data after the end-of-archive mark at byte {position}")
