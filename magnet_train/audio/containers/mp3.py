"""MP3: files joined end to end, and frames that no header counts.

libsndfile reads as many frames as the first one says (a Xing, Info or VBRI header). Without that header, it guesses the
number from the bit rate of the first frame: half of some files.

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
_SURE = 3  # consecutive frames that confirm a sync word
_FURTHEST_SYNC = 2**20  # bytes that are searched for the next frame
_COUNTS_END = 60  # bytes of a frame within which a header counts the frames
_VBRI_PLACE = 36


class _Frame(NamedTuple):
    """A frame header."""

    version: int  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    rate: int  # Hz
    mono: bool
    length: int  # bytes of the frame

    @property
    def kind(self) -> tuple[int, int, bool]:
        """What the frames of a stream have in common."""
        return self[:3]

    @property
    def xing_place(self) -> int:
        """Offset of a Xing or Info header in a frame."""
        if self.version == 3:
            return 21 if self.mono else 36
        return 13 if self.mono else 21


@dataclass
class _Stream:
    """Frames of one kind, one after another."""

    start: int
    header: bytes  # the first 4 bytes of the first frame
    frame: _Frame  # the first one
    promised: int | None  # frames that a header counts; None without one
    frames: int = 0  # frames that the file holds, without one that holds the header
    cut: bool = False  # whether the last frame is truncated

    def part(self, start: int, end: int) -> Part:
        """Make a part of the stream; unless its header counts all frames, a frame with a Xing header goes before it."""
        if self.promised is not None and self.frames <= self.promised:
            return Part(start, end)
        counts = b"Xing" + (1).to_bytes(4, "big") + self.frames.to_bytes(4, "big")
        counting_frame = (self.header.ljust(self.frame.xing_place, b"\0") + counts).ljust(
            self.frame.length, b"\0"
        )
        return Part(self.start, end, prefix=counting_frame, cut=self.cut and self.promised is None)


def mp3_parts(file: IO[bytes], size: int) -> list[Part]:
    """Walk through the frames; return no parts if they are not layer III or have no bit rate."""
    streams: list[_Stream] = []
    place = _skip_tag(file, 0)
    while place < size:
        data = bytes_at(file, place, _COUNTS_END)
        frame = _parse(data)
        if frame is None:
            place = _resync(file, _skip_tag(file, place))
            if place < 0:
                break
            continue
        promised = _counted_frames(data, frame)
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


def _parse(header: bytes) -> _Frame | None:
    """Read a frame header; None if the bytes are not one of layer III with a bit rate."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:  # sync, layer III
        return None
    version, rate_index = header[1] >> 3 & 3, header[2] >> 2 & 3
    bit_rate_index = header[2] >> 4
    if version == 1 or rate_index == 3 or bit_rate_index in (0, 15):
        return None
    rate = _RATES[version][rate_index]
    slots = 144_000 if version == 3 else 72_000
    length = slots * _BIT_RATES[version == 3][bit_rate_index] // rate + (header[2] >> 1 & 1)
    return _Frame(version, rate, header[3] >> 6 == 3, length)


def _counted_frames(data: bytes, frame: _Frame) -> int | None:
    """Return the frames that a Xing, Info or VBRI header counts, 0 if it does not count; None without a header."""
    place = frame.xing_place
    if data[place : place + 4] in (b"Xing", b"Info"):
        counts = data[place + 7 : place + 8] and data[place + 7] & 1
        return int.from_bytes(data[place + 8 : place + 12], "big") if counts else 0
    if data[_VBRI_PLACE : _VBRI_PLACE + 4] == b"VBRI":
        return int.from_bytes(data[_VBRI_PLACE + 14 : _VBRI_PLACE + 18], "big")
    return None


def _skip_tag(file: IO[bytes], place: int) -> int:
    """Return the offset behind an ID3v2 tag; an ID3v1 tag has no sync word and needs no skipping."""
    head = bytes_at(file, place, 10)
    if head[:3] != b"ID3" or len(head) < 10 or any(byte & 0x80 for byte in head[6:]):
        return place
    return place + 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])


def _resync(file: IO[bytes], place: int) -> int:
    """Return the next offset at which several frames follow each other, or -1."""
    block = bytes_at(file, place, _FURTHEST_SYNC + 3)
    offset = -1
    while (offset := block.find(b"\xff", offset + 1)) >= 0:
        frame, end = _parse(block[offset : offset + 4]), place + offset
        for _ in range(_SURE - 1):
            if frame is None:
                break
            end += frame.length
            following = _parse(bytes_at(file, end, 4))
            frame = following if following is None or following.kind == frame.kind else None
        if frame is not None:
            return place + offset
    return -1
