"""FLAC: files joined end to end, and a count of samples that is unknown or too small.

Source: RFC 9639, sections 8.2 and 9.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO

from magnet_train.audio.containers.part import Part, find

_START = b"fLaC\x00\x00\x00\x22"  # or with 0x80 for the last block of metadata
_START_ALONE = b"fLaC\x80\x00\x00\x22"
_TAIL = 2**18  # bytes; the last frame begins within them
_TOTAL_BITS = 36


@dataclass(frozen=True)
class _StreamInfo:
    """What stands in STREAMINFO.

    Args:
        place: Of the 8 bytes that hold the following.
        block_size: Samples in each frame.
        channels: How many.
        bits: Of a sample.
        total: Samples in each channel, 0 if unknown.
    """

    place: int
    block_size: int
    channels: int
    bits: int
    total: int


def flac_parts(file: IO[bytes], size: int) -> list[Part]:
    """Find joined files, each with the right count of samples."""
    starts = [0]
    while (place := _next_start(file, starts[-1] + 4, size)) >= 0:
        starts.append(place)
    return [_part(file, start, end) for start, end in zip(starts, [*starts[1:], size], strict=True)]


def _next_start(file: IO[bytes], start: int, size: int) -> int:
    places = [find(file, magic, start, size) for magic in (_START, _START_ALONE)]
    return min((place for place in places if place >= 0), default=-1)


def _part(file: IO[bytes], start: int, end: int) -> Part:
    info = _stream_info(file, start)
    if info is None:
        return Part(start, end)
    last = _samples_to_the_last_frame(file, start, end, info)
    if last is None or info.total >= last:
        return Part(start, end)
    file.seek(info.place)
    packed = int.from_bytes(file.read(8), "big")
    packed = packed >> _TOTAL_BITS << _TOTAL_BITS | last
    return Part(start, end, ((info.place, packed.to_bytes(8, "big")),))


def _stream_info(file: IO[bytes], start: int) -> _StreamInfo | None:
    file.seek(start)
    head = file.read(26)
    if len(head) < 26 or head[4] & 0x7F:
        return None
    packed = int.from_bytes(head[18:26], "big")
    channels = (packed >> 41 & 7) + 1
    bits = (packed >> 36 & 31) + 1
    return _StreamInfo(
        start + 18, int.from_bytes(head[8:10], "big"), channels, bits, packed & (1 << _TOTAL_BITS) - 1
    )


def _samples_to_the_last_frame(file: IO[bytes], start: int, end: int, info: _StreamInfo) -> int | None:
    """Count the samples up to the end of the last frame, by the number in its header."""
    first = max(start + 42, end - _TAIL)
    file.seek(first)
    tail = file.read(end - first)
    place = len(tail)
    while (place := tail.rfind(b"\xff", 0, place)) >= 0:
        samples = _samples_after(tail[place : place + 16], info)
        if samples is not None:
            return samples
    return None


def _samples_after(header: bytes, info: _StreamInfo) -> int | None:
    """Read a frame header; None if it is not one of this stream."""
    if len(header) < 6 or header[1] not in (0xF8, 0xF9) or header[3] & 1:
        return None
    channels = header[3] >> 4
    bits = {0: info.bits, 1: 8, 2: 12, 4: 16, 5: 20, 6: 24, 7: 32}.get(header[3] >> 1 & 7)
    if bits != info.bits or channels > 10 or (2 if channels > 7 else channels + 1) != info.channels:
        return None
    length = 1 if header[4] < 0x80 else 8 - (~header[4] & 0xFF).bit_length()  # of the number, as in UTF-8
    if length == 0 or length > 7 or (header[4] >= 0x80 and length == 1):
        return None
    number = header[4] & (0x7F if length == 1 else (1 << 7 - length) - 1)
    for byte in header[5 : 4 + length]:
        number = number << 6 | byte & 0x3F
    place = 4 + length
    code = header[2] >> 4
    block_size = {1: 192, 2: 576, 3: 1152, 4: 2304, 5: 4608}.get(code, 1 << code if code > 7 else 0)
    if code in (6, 7):
        extra = code - 5
        block_size = int.from_bytes(header[place : place + extra], "big") + 1
        place += extra
    place += {12: 1, 13: 2, 14: 2}.get(header[2] & 15, 0)
    if not block_size or place >= len(header) or _crc8(header[:place]) != header[place]:
        return None
    return number + block_size if header[1] & 1 else number * info.block_size + block_size


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x07 if crc & 0x80 else crc << 1) & 0xFF
    return crc
