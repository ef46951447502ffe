"""A recording within a file, and a file object that shows it alone."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BLOCK = 2**20  # bytes searched at a time


@dataclass(frozen=True)
class Part:
    """One recording within an audio file.

    Args:
        start: Its first byte.
        end: The byte after its last.
        patches: What its header should have said, by place in the file.
        prefix: What has to stand before it.
        missing: Share of the bytes its header promises that are not there, 0..1.
        cut: Whether it breaks off, without a promise of how long it was.
    """

    start: int
    end: int
    patches: tuple[tuple[int, bytes], ...] = ()
    prefix: bytes = b""
    missing: float = 0.0
    cut: bool = False

    def is_whole_file(self, size: int) -> bool:
        """Whether a file of `size` bytes can be read as it is."""
        return self.start == 0 and self.end == size and not self.patches and not self.prefix


class PartFile(io.RawIOBase):
    """Show one part of an open file as if it were a file of its own, with its patches.

    Args:
        file: The whole, opened for reading in binary.
        part: What to show.
    """

    def __init__(self, file: IO[bytes], part: Part) -> None:
        self._file, self._part = file, part
        self._size = len(part.prefix) + part.end - part.start
        self._place = 0

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """It can be read from any place."""
        return True

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, as in any file."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill a buffer from here on; returns how many bytes there were."""
        target = memoryview(buffer).cast("B")
        prefix = self._part.prefix[self._place : self._place + len(target)]
        target[: len(prefix)] = prefix
        first = self._part.start + max(0, self._place - len(self._part.prefix))
        self._file.seek(first)
        data = self._file.read(max(0, min(len(target) - len(prefix), self._part.end - first)))
        target[len(prefix) : len(prefix) + len(data)] = data
        for place, patch in self._part.patches:
            for index, byte in enumerate(patch, start=place - first):
                if 0 <= index < len(data):
                    target[len(prefix) + index] = byte
        self._place += len(prefix) + len(data)
        return len(prefix) + len(data)


def find(file: IO[bytes], needle: bytes, start: int, end: int) -> int:
    """Return the first place of some bytes in a part of a file, -1 if they are not there."""
    while start < end:
        file.seek(start)
        block = file.read(min(_BLOCK, end - start))
        place = block.find(needle)
        if place >= 0:
            return start + place
        if len(block) < len(needle):
            break
        start += len(block) - len(needle) + 1
    return -1


def bytes_at(file: IO[bytes], place: int, length: int) -> bytes:
    """Read some bytes, fewer at the end of the file."""
    file.seek(place)
    return file.read(length)
