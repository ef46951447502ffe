"""A recording within a file, and a file object that contains it alone."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BLOCK = 2**20  # bytes searched at a time
_OVERLAP = 7  # bytes: one less than the longest pattern that is searched for


@dataclass(frozen=True)
class Part:
    """One recording within an audio file."""

    start: int  # first byte
    end: int  # the byte after the last
    patch: tuple[int, bytes] = (0, b"")  # offset in the file, and bytes that correct the header
    prefix: bytes = b""  # to insert before the first byte
    missing: float = 0.0  # share of the bytes promised by the header that the file lacks, 0..1
    cut: bool = False  # whether the recording is truncated and its full length unknown

    def is_whole_file(self, size: int) -> bool:
        """Whether a decoder can read a file of `size` bytes unchanged."""
        return self.start == 0 and self.end == size and not self.patch[1] and not self.prefix


class PartFile(io.RawIOBase):
    """One part of a file opened in binary, patched, as if it were a file of its own."""

    def __init__(self, file: IO[bytes], part: Part) -> None:
        self._file, self._part = file, part
        self._size = len(part.prefix) + part.end - part.start
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer).cast("B")
        prefix = self._part.prefix[self._place : self._place + len(target)]
        first = self._part.start + max(0, self._place - len(self._part.prefix))
        data = bytearray(bytes_at(self._file, first, min(len(target) - len(prefix), self._part.end - first)))
        place, patch = self._part.patch
        for offset, byte in enumerate(patch, start=place - first):
            if 0 <= offset < len(data):
                data[offset] = byte
        read = len(prefix) + len(data)
        target[:read] = prefix + data
        self._place += read
        return read


def find(file: IO[bytes], pattern: re.Pattern[bytes], start: int, end: int) -> int:
    """Return the offset of the first match, of at most 8 bytes, between two offsets of a file, or -1."""
    while start < end:
        block = bytes_at(file, start, min(_BLOCK, end - start))
        match = pattern.search(block)
        if match:
            return start + match.start()
        if len(block) <= _OVERLAP:
            break
        start += len(block) - _OVERLAP
    return -1


def bytes_at(file: IO[bytes], place: int, length: int) -> bytes:
    """Read `length` bytes at an offset, fewer at the end of the file; none if `length` is below 0."""
    file.seek(place)
    return file.read(max(0, length))
