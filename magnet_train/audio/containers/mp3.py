"""MP3: files joined end to end, and frames that no header counts.

libsndfile reads as many frames as the first one says (a Xing, Info or VBRI header), and where there is none as
many as the bit rate of the first one lets it guess, half of some files.

Source: ISO/IEC 11172-3, section 2.4.1.3, and 13818-3 for the lower rates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, NamedTuple

from magnet_train.audio.containers.part import Part, bytes_at

_BIT_RATES = {  # kbit/s of layer III by index
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG 1
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG 2 and 2.5
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_SURE = 3  # frames in a row that make a sync word a frame
_FURTHEST_SYNC = 2**20  # bytes that are searched for the next frame
_VBRI_PLACE = 36


class _Frame(NamedTuple):
    """A frame header: its version (3 is MPEG 1), rate (Hz), whether it is mono, and the frame's bytes."""

    version: int
    rate: int
    mono: bool
    length: int

    @property
    def kind(self) -> tuple[int, int, bool]:
        """What the frames of one stream have in common."""
        return self.version, self.rate, self.mono

    @property
    def xing_place(self) -> int:
        """Where in a frame a Xing or Info header stands."""
        if self.version == 3:
            return 21 if self.mono else 36
        return 13 if self.mono else 21


@dataclass
class _Stream:
    """Frames of one kind, one after another.

    Args:
        start: Place of the first one.
        header: The first 4 bytes of it.
        frame: The same, understood.
        promised: Frames that its header counts, None without one.
        frames: Those that are there, without the one that holds the header.
        cut: Whether the last one breaks off.
    """

    start: int
    header: bytes
    frame: _Frame
    promised: int | None
    frames: int = 0
    cut: bool = False

    def part(self, start: int, end: int) -> Part:
        """Make a part of it, with a header that counts its frames if its own does not."""
        if self.promised is not None and self.frames <= self.promised:
            return Part(start, end)
        cut = self.cut and self.promised is None
        return Part(self.start, end, prefix=_counting_frame(self.header, self.frame, self.frames), cut=cut)


def mp3_parts(file: IO[bytes], size: int) -> list[Part]:
    """Walk through the frames; none if they are not layer III or have no bit rate."""
    streams: list[_Stream] = []
    place = _skip_tags(file, 0)
    while place < size:
        frame = _frame_at(file, place)
        if frame is None:
            place = _resync(file, _skip_tags(file, place), size)
            if place < 0:
                break
            continue
        data = bytes_at(file, place, 60)
        promised = _count_in_header(data, frame)
        if not streams or promised is not None or frame.kind != streams[-1].frame.kind:
            streams.append(_Stream(place, data[:4], frame, promised, int(promised is None)))
        else:
            streams[-1].frames += 1
        place += frame.length
        if place > size:
            streams[-1].cut = True
            streams[-1].frames -= 1
    streams = [stream for stream in streams if stream.frames > 0]
    starts = [0, *(stream.start for stream in streams[1:]), size]
    return [stream.part(*starts[index : index + 2]) for index, stream in enumerate(streams)]


def _frame_at(file: IO[bytes], place: int) -> _Frame | None:
    header = bytes_at(file, place, 4)
    return _parse(header) if len(header) == 4 else None


def _parse(header: bytes) -> _Frame | None:
    if header[0] != 0xFF or header[1] & 0xE6 != 0xE2:  # sync, layer III
        return None
    version, rate_index = header[1] >> 3 & 3, header[2] >> 2 & 3
    bit_rate_index = header[2] >> 4
    if version == 1 or rate_index == 3 or bit_rate_index in (0, 15):
        return None
    rate = _RATES[version][rate_index]
    slots = 144_000 if version == 3 else 72_000
    length = slots * _BIT_RATES[version == 3][bit_rate_index] // rate + (header[2] >> 1 & 1)
    return _Frame(version, rate, header[3] >> 6 == 3, length)


def _count_in_header(data: bytes, frame: _Frame) -> int | None:
    """Return how many frames a Xing, Info or VBRI header counts, 0 if it does not; None if it is none."""
    at = frame.xing_place
    if data[at : at + 4] in (b"Xing", b"Info"):
        counts = data[at + 7 : at + 8] and data[at + 7] & 1
        return int.from_bytes(data[at + 8 : at + 12], "big") if counts else 0
    if data[_VBRI_PLACE : _VBRI_PLACE + 4] == b"VBRI":
        return int.from_bytes(data[_VBRI_PLACE + 14 : _VBRI_PLACE + 18], "big")
    return None


def _counting_frame(header: bytes, frame: _Frame, frames: int) -> bytes:
    """Make a frame that says how many follow."""
    content = (
        header + bytes(frame.xing_place - 4) + b"Xing" + (1).to_bytes(4, "big") + frames.to_bytes(4, "big")
    )
    return content.ljust(frame.length, b"\x00")


def _skip_tags(file: IO[bytes], place: int) -> int:
    """Return the place behind an ID3v2 tag; an ID3v1 tag has no sync word and needs no skipping."""
    head = bytes_at(file, place, 10)
    if head[:3] != b"ID3" or len(head) < 10 or any(byte & 0x80 for byte in head[6:]):
        return place
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return place + 10 + size


def _resync(file: IO[bytes], place: int, size: int) -> int:
    """Return the next place at which several frames follow each other; -1 if there is none."""
    block = bytes_at(file, place, _FURTHEST_SYNC)
    at = -1
    while (at := block.find(b"\xff", at + 1)) >= 0:
        frame, here = _parse(block[at : at + 4].ljust(4, b"\x00")), place + at
        for _ in range(_SURE - 1):
            if frame is None:
                break
            here += frame.length
            follows = _frame_at(file, here)
            frame = follows if follows is None or follows.kind == frame.kind else None
        if frame is not None:
            return place + at
    return -1
