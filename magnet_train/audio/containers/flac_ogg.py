"""Find the streams of FLAC and Ogg files that are joined end to end, truncated, or declare a wrong number of samples.

Source: RFC 9639 (FLAC), sections 8.2 and 9.1; RFC 3533 (Ogg), section 6.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import IO, NamedTuple

from magnet_train.audio.containers.part import Part, bytes_at, find

_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # 0x80: STREAMINFO is the only block of metadata
_INFO_END = 42  # bytes of the marker and STREAMINFO
_TAIL = 2**18  # bytes; the last frame begins within them
_LONGEST_FRAME_HEADER = 16  # bytes
_TOTAL_BITS = 36
_BLOCK_SIZES = {1: 192, **{code: 576 << code - 2 for code in range(2, 6)}}  # samples, by code

_PAGE = re.compile(b"OggS")
_HEADER = 27  # bytes, the last of which counts the segments
_FIRST, _LAST = 2, 4  # flags: of a page that begins a stream, of one that ends it


def ogg_parts(file: IO[bytes], size: int) -> list[Part]:
    """Find the links of a chain; each begins with the first pages of its streams."""
    found: list[Part] = []
    place = 0
    beginning = ended = False
    while place < size:
        header = bytes_at(file, place, _HEADER)
        is_page = _PAGE.match(header) is not None
        if not is_page or len(header) < _HEADER:
            place = find(file, _PAGE, place + is_page, size)
            if place < 0:
                break
            if size - place < _HEADER:
                ended = False
                break
            continue
        flags = header[5]
        if flags & _FIRST and not beginning:
            if found:
                found[-1] = replace(found[-1], end=place, cut=not ended)
            found.append(Part(place if found else 0, size))
        beginning = bool(flags & _FIRST)
        place += _HEADER + header[26] + sum(file.read(header[26]))
        ended = bool(flags & _LAST) and place <= size
    if found:
        found[-1] = replace(found[-1], cut=not ended)
    return found


class _StreamInfo(NamedTuple):
    """STREAMINFO: the samples of a frame, channels, bits of a sample, and samples of a channel (0: unknown)."""

    place: int  # of the 8 bytes that hold `channels`, `bits` and `total`
    block_size: int
    channels: int
    bits: int
    total: int


def flac_parts(file: IO[bytes], size: int) -> list[Part]:
    """Find joined files, each with the right count of samples."""
    starts = [0]
    while (place := find(file, _START, starts[-1] + 4, size)) >= 0:
        starts.append(place)
    return [_part(file, start, end) for start, end in zip(starts, [*starts[1:], size], strict=True)]


def _part(file: IO[bytes], start: int, end: int) -> Part:
    info = _stream_info(file, start)
    samples = _samples_by_the_last_frame(file, start, end, info) if info else None
    if info is None or samples is None or samples <= info.total:
        return Part(start, end)
    packed = int.from_bytes(bytes_at(file, info.place, 8), "big") >> _TOTAL_BITS << _TOTAL_BITS | samples
    return Part(start, end, patch=(info.place, packed.to_bytes(8, "big")))


def _stream_info(file: IO[bytes], start: int) -> _StreamInfo | None:
    head = bytes_at(file, start, 26)
    if len(head) < 26 or head[4] & 0x7F:
        return None
    packed = int.from_bytes(head[18:26], "big")
    return _StreamInfo(
        place=start + 18,
        block_size=int.from_bytes(head[8:10], "big"),
        channels=(packed >> 41 & 7) + 1,
        bits=(packed >> _TOTAL_BITS & 31) + 1,
        total=packed & (1 << _TOTAL_BITS) - 1,
    )


def _samples_by_the_last_frame(file: IO[bytes], start: int, end: int, info: _StreamInfo) -> int | None:
    """Count the samples up to the end of the last frame, by the number in its header."""
    first = max(start + _INFO_END, end - _TAIL)
    tail = bytes_at(file, first, end - first)
    place = len(tail)
    while (place := tail.rfind(b"\xff", 0, place)) >= 0:
        samples = _samples_by_frame(tail[place : place + _LONGEST_FRAME_HEADER], info)
        if samples is not None:
            return samples
    return None


def _samples_by_frame(header: bytes, info: _StreamInfo) -> int | None:
    """Return the samples up to the end of a frame; None if the bytes are not a frame header of this stream."""
    if len(header) < 6 or header[1] not in (0xF8, 0xF9) or header[3] & 1:
        return None
    channels = header[3] >> 4
    bits = {0: info.bits, 1: 8, 2: 12, 4: 16, 5: 20, 6: 24, 7: 32}.get(header[3] >> 1 & 7)
    if bits != info.bits or channels > 10 or (2 if channels > 7 else channels + 1) != info.channels:
        return None
    ones = 8 - (~header[4] & 0xFF).bit_length()  # leading ones: the number is written as in UTF-8
    if ones in (1, 8):
        return None
    number = header[4] & 0x7F >> ones
    place = 4 + max(ones, 1)
    for byte in header[5:place]:
        number = number << 6 | byte & 0x3F
    code = header[2] >> 4
    block_size = _BLOCK_SIZES.get(code, 1 << code if code > 7 else 0)
    if code in (6, 7):
        block_size = int.from_bytes(header[place : place + code - 5], "big") + 1
        place += code - 5
    place += {12: 1, 13: 2, 14: 2}.get(header[2] & 15, 0)  # a sample rate that has no code
    if not block_size or place >= len(header) or _crc8(header[:place]) != header[place]:
        return None
    return block_size + (number if header[1] & 1 else number * info.block_size)


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x07 if crc & 0x80 else crc << 1) & 0xFF
    return crc
