"""Containers of chunks, each with its size before it (WAV, RF64, AIFF, W64, CAF), and AU, whose header has one size.

libsndfile believes the size of the samples. Programs that write into a pipe leave 0 or the largest size there, and
those that were stopped leave a size that is too small.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import IO, NamedTuple

from magnet_train.audio.containers.part import Part, bytes_at

_CRUMBS = 256  # bytes; fewer than these behind the samples are a tag or padding
# Sizes from here on mean "unknown" where the file is shorter: sox, ffmpeg and arecord each have their own.
_PLACEHOLDER = 0x7FFF0000
_MOST_CHUNKS = 10_000


class _Layout(NamedTuple):
    """How the chunks of a container are laid out."""

    header: int  # bytes before the first chunk
    name: int  # bytes of a chunk's name
    size: str  # format of a chunk's size, as in `struct`
    samples: bytes  # first bytes of the name of the chunk with the samples
    align: int = 2  # chunks begin at multiples of this
    inclusive: bool = False  # whether the size counts name and size as well

    @property
    def head(self) -> int:
        """Bytes of name and size."""
        return self.name + struct.calcsize(self.size)


_LAYOUTS = {
    b"RIFF": _Layout(12, 4, "<I", b"data"),
    b"RF64": _Layout(12, 4, "<I", b"data"),
    b"RIFX": _Layout(12, 4, ">I", b"data"),
    b"FORM": _Layout(12, 4, ">I", b"SSND"),
    b"riff": _Layout(40, 16, "<Q", b"data", align=8, inclusive=True),
    b"caff": _Layout(8, 4, ">q", b"data", align=1),
}
_AU = {b".snd": ">I", b"dns.": "<I"}


def chunk_parts(file: IO[bytes], size: int) -> list[Part]:
    """Find the recordings in a file of chunks; none if the container is another."""
    found: list[Part] = []
    start = 0
    while start < size and len(found) <= _MOST_CHUNKS:
        magic = bytes_at(file, start, 4)
        if magic in _LAYOUTS:
            part = _Chunks(file, size, start, magic).part()
        elif magic in _AU:
            part = _au_part(file, size, start, _AU[magic])
        else:
            break
        found.append(part)
        if part.end <= start:
            break
        start = part.end
    if found and size - found[-1].end <= _CRUMBS:
        found[-1] = replace(found[-1], end=size)
    return found


class _Chunks:
    """The chunks from `start`, where the container's `magic` is, to the next file or to `size`, the end of this one."""

    def __init__(self, file: IO[bytes], size: int, start: int, magic: bytes) -> None:
        self._file, self._size, self._start, self._magic = file, size, start, magic
        self._layout = _LAYOUTS[magic]

    def part(self) -> Part:
        """Walk through the chunks, and compare the size of the samples with the bytes that are there."""
        layout, part = self._layout, Part(self._start, self._size)
        place = self._start + layout.header
        for _ in range(_MOST_CHUNKS):
            if bytes_at(self._file, place, 4) == self._magic and place + layout.header <= self._size:
                return replace(part, end=place)  # the next file, joined to this one
            head = bytes_at(self._file, place, layout.head)
            if len(head) < layout.head:
                break
            body, length = place + layout.head, self._length(head)
            if head.startswith(layout.samples):
                if self._magic == b"RF64" and length == 0xFFFFFFFF:
                    length = int.from_bytes(bytes_at(self._file, self._start + 28, 8), "little")
                part = self._with_samples(part, place, length)
                if part.patch[1] or part.missing:
                    break
            if length < 0 or body + length > self._size:
                break
            place = self._next_chunk(body + length)
        return part

    def _length(self, head: bytes) -> int:
        """Return the bytes of a chunk after its head; below 0 for sizes that are impossible or unknown."""
        length = int(struct.unpack(self._layout.size, head[self._layout.name :])[0])
        return length - self._layout.head if self._layout.inclusive else length

    def _with_samples(self, part: Part, place: int, length: int) -> Part:
        """Return the part corrected for its chunk of samples, which begins at `place`."""
        layout, body = self._layout, place + self._layout.head
        available = self._size - body
        largest = 2 ** (8 * (layout.head - layout.name) - 1) - 1
        to_the_end = (place + layout.name, struct.pack(layout.size, min(available, largest)))
        if not 0 <= length <= available:
            known = 0 < length < (2**62 if layout.head - layout.name == 8 else _PLACEHOLDER)
            missing = 1 - available / length if known else 0.0
            # libsndfile refuses a CAF that is too short, and reads the others to the end by itself.
            patch = to_the_end if self._magic == b"caff" else part.patch
            return replace(part, missing=missing, patch=patch)
        behind = self._next_chunk(body + length)
        if layout.inclusive or self._size - behind <= _CRUMBS or self._is_chunk(behind):
            return part
        if not any(bytes_at(self._file, behind, _CRUMBS)):
            return part  # padding
        return replace(part, patch=to_the_end)

    def _next_chunk(self, place: int) -> int:
        """Return the offset of the next chunk; some writers do not align it."""
        aligned = place + (self._start - place) % self._layout.align
        unaligned = aligned != place and not self._is_name(aligned) and self._is_name(place)
        return place if unaligned else aligned

    def _is_chunk(self, place: int) -> bool:
        """Whether a chunk, or the next file, begins here."""
        head = bytes_at(self._file, place, self._layout.head)
        if head[:4] == self._magic:
            return True
        if len(head) < self._layout.head or not self._is_name(place):
            return False
        return 0 <= self._length(head) <= self._size - place

    def _is_name(self, place: int) -> bool:
        name = bytes_at(self._file, place, 4)
        return len(name) == 4 and all(32 <= byte < 127 for byte in name)


def _au_part(file: IO[bytes], size: int, start: int, word: str) -> Part:
    part = Part(start, size)
    head = bytes_at(file, start, 12)
    if len(head) < 12:
        return part
    offset, length = (int(number) for (number,) in struct.iter_unpack(word, head[4:]))
    behind = start + offset + length
    available = size - start - offset
    if available <= 0 or (length > available and length >= _PLACEHOLDER):
        return part
    if length > available:
        return replace(part, missing=1 - available / length)
    if bytes_at(file, behind, 4) in _AU:
        return replace(part, end=behind)
    if size - behind > _CRUMBS and any(bytes_at(file, behind, _CRUMBS)):
        return replace(part, patch=(start + 8, b"\xff" * 4))
    return part
