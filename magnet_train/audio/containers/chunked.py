"""Files made of chunks with a size before each (WAV, RF64, AIFF, W64, CAF), and AU, whose header has one size.

libsndfile believes the size of the samples. Programs that write into a pipe leave it 0 or as large as can be, and
those that were stopped leave it too small.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import IO

from magnet_train.audio.containers.part import Part, bytes_at

# Less than this behind the samples is a tag or padding.
_CRUMBS = 256  # bytes
# Sizes from here on stand for "unknown" where the file is shorter: sox, ffmpeg and arecord each have their own.
_PLACEHOLDER = 0x7FFF0000
_MOST_CHUNKS = 10_000


@dataclass(frozen=True)
class _Layout:
    """How the chunks of a container look.

    Args:
        header: Bytes before the first chunk.
        name: Bytes of a chunk's name.
        size: Its size, as `struct` writes it.
        samples: The name of the chunk that holds the samples begins so.
        align: Chunks begin at multiples of this.
        inclusive: Whether the size counts name and size as well.
    """

    header: int
    name: int
    size: str
    samples: bytes
    align: int = 2
    inclusive: bool = False

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


def chunked_parts(file: IO[bytes], size: int) -> list[Part]:
    """Find the recordings in a file of chunks; none if it is no such file."""
    found: list[Part] = []
    start = 0
    while start < size:
        magic = bytes_at(file, start, 4)
        if magic in _LAYOUTS:
            part = _chunks(file, start, size, magic, _LAYOUTS[magic])
        elif magic in _AU:
            part = _au(file, start, size, _AU[magic])
        else:
            break
        found.append(part)
        if part.end <= start or len(found) > _MOST_CHUNKS:
            break
        start = part.end
    if found and size - found[-1].end <= _CRUMBS:
        found[-1] = replace(found[-1], end=size)
    return found


def _chunks(file: IO[bytes], start: int, size: int, magic: bytes, layout: _Layout) -> Part:
    part = Part(start, size)
    place = start + layout.header
    for _ in range(_MOST_CHUNKS):
        if bytes_at(file, place, 4) == magic and place + layout.header <= size:
            return replace(part, end=place)  # the next file, joined to this one
        head = bytes_at(file, place, layout.head)
        if len(head) < layout.head:
            break
        length = int(struct.unpack(layout.size, head[layout.name :])[0])
        length -= layout.head if layout.inclusive else 0
        body = place + layout.head
        if head.startswith(layout.samples):
            if magic == b"RF64" and length == 0xFFFFFFFF:
                length = int.from_bytes(bytes_at(file, start + 28, 8), "little")
            part = _with_samples(file, part, place, body, length, layout, size)
            if part.patches or part.missing:
                break
        if length < 0 or body + length > size:
            break
        place = _next_chunk(file, body + length, layout, start)
    return part


def _with_samples(
    file: IO[bytes], part: Part, place: int, body: int, length: int, layout: _Layout, size: int
) -> Part:
    """Compare the size of the samples with what is there."""
    there = size - body
    to_the_end = _size_field(place, there, layout)
    if length < 0 or length > there:
        known = 0 <= length < _PLACEHOLDER or (layout.name + 8 == layout.head and length < 2**62)
        missing = 1 - there / length if known and length > 0 else 0.0
        # libsndfile refuses a CAF that is too short, and goes to the end of the others by itself
        patches = (to_the_end,) if layout is _LAYOUTS[b"caff"] else ()
        return replace(part, missing=missing, patches=patches)
    behind = _next_chunk(file, body + length, layout, part.start)
    if layout.inclusive or size - behind <= _CRUMBS or _is_chunk(file, behind, size, layout, part.start):
        return part
    if not any(bytes_at(file, behind, _CRUMBS)):
        return part  # padding
    return replace(part, patches=(to_the_end,))


def _size_field(place: int, there: int, layout: _Layout) -> tuple[int, bytes]:
    largest = 2 ** (8 * struct.calcsize(layout.size) - 1) - 1
    return place + layout.name, struct.pack(layout.size, min(there, largest))


def _next_chunk(file: IO[bytes], place: int, layout: _Layout, start: int) -> int:
    """Return where the next chunk begins; some writers forget to align it."""
    aligned = place + (start - place) % layout.align
    if aligned != place and not _is_name(bytes_at(file, aligned, 4)) and _is_name(bytes_at(file, place, 4)):
        return place
    return aligned


def _is_chunk(file: IO[bytes], place: int, size: int, layout: _Layout, start: int) -> bool:
    """Whether a chunk, or the next file, begins here."""
    head = bytes_at(file, place, layout.head)
    if head[:4] == bytes_at(file, start, 4):
        return True
    if len(head) < layout.head or not _is_name(head[:4]):
        return False
    length = int(struct.unpack(layout.size, head[layout.name :])[0])
    return 0 <= length <= size - place


def _is_name(name: bytes) -> bool:
    return len(name) == 4 and all(32 <= byte < 127 for byte in name)


def _au(file: IO[bytes], start: int, size: int, word: str) -> Part:
    part = Part(start, size)
    head = bytes_at(file, start, 12)
    if len(head) < 12:
        return part
    offset, length = (int(number) for (number,) in struct.iter_unpack(word, head[4:]))
    body = start + offset
    there = size - body
    if (length >= _PLACEHOLDER and length > there) or there <= 0:
        return part
    if length > there:
        return replace(part, missing=1 - there / length)
    behind = body + length
    if bytes_at(file, behind, 4) in _AU:
        return replace(part, end=behind)
    if size - behind > _CRUMBS and any(bytes_at(file, behind, _CRUMBS)):
        return replace(part, patches=((start + 8, b"\xff" * 4),))
    return part
