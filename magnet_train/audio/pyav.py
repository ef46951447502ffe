"""Decode MP4, WebM, Matroska, AAC and WMA with PyAV, the extra `av`, for what libsndfile does not read.

Samples: float32 [samples, channels], full scale -1..1.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from magnet_train.errors import UserError, first_line, require_extra
from magnet_train.storage.file_source import FileSource, open_source

Samples = npt.NDArray[np.float32]

# First bytes, kind of file, and ffmpeg's demuxer for it; none of these follows references to other files.
_FORMATS = (
    (rb"....(ftyp|moov|mdat|wide)", "an MP4 or M4A file", "mov"),
    (rb"\xff[\xf0\xf1\xf8\xf9]", "an AAC file", "aac"),
    (rb"\x1aE\xdf\xa3", "a WebM or Matroska file", "matroska"),
    (rb"0&\xb2u\x8ef\xcf\x11", "a WMA file", "asf"),
)
_PREROLL = 1.0  # seconds decoded before the first sample after a seek: codecs overlap their blocks
_UNKNOWN_FRAMES = 2**62  # what libsndfile reports for a header without a length


def needs_av(start: bytes) -> bool:
    """Return whether a file with these first bytes (8 or more) is to be opened with `AvFile`."""
    return _format_of(start) is not None


def _format_of(start: bytes) -> tuple[str, str] | None:
    found = ((kind, name) for pattern, kind, name in _FORMATS if re.match(pattern, start, re.DOTALL))
    return next(found, None)


class AvFile:
    """The first audio stream of a file, with the properties and methods of `soundfile.SoundFile` that we use.

    Raises:
        UserError: PyAV is not installed, or the file cannot be decoded or has no audio.
    """

    subtype = "COMPRESSED"  # unlike "FLOAT", its scale is not checked

    def __init__(self, source: FileSource) -> None:
        self._source = source
        self._file: IO[bytes] = open_source(source)
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise
        self._first = 0  # sample to begin with
        self._blocks = self._decode()
        self._left: Samples = np.empty((0, self.channels), np.float32)

    def _open(self) -> None:
        found = _format_of(self._file.read(16))
        if found is None:
            raise ValueError(f"{self._source} is not a file for PyAV")
        kind, name = found
        require_extra("av", "av", f"{self._source}, {kind},")
        import av

        self._file.seek(0)
        try:
            self._container = av.open(self._file, format=name, metadata_errors="ignore")
        except (av.error.FFmpegError, ValueError, MemoryError) as error:
            raise self._unreadable(first_line(error)) from error
        self._stream: Any = next(iter(self._container.streams.audio), None)
        if self._stream is None or self._stream.codec_context is None:
            self._container.close()
            if self._stream is not None:
                raise self._unreadable("its codec is unknown")
            raise UserError(f"{self._source}, {kind}, has no audio; remove it.")
        self.samplerate = int(self._stream.codec_context.sample_rate or 0)
        self.channels = int(self._stream.codec_context.channels or 0)
        self._has_exact_times = name == "mov"  # Matroska rounds them to 1 ms
        # For AAC ffmpeg guesses the length from the bit rate.
        self.frames = self._count() if name != "aac" else _UNKNOWN_FRAMES

    def _unreadable(self, reason: str) -> UserError:
        return UserError(f"cannot read {self._source} as audio ({reason}); download it again or convert it.")

    def _count(self) -> int:
        """Return the number of samples by the header; Matroska rounds it up."""
        seconds = 0.0
        if self._stream.duration:
            seconds = float(self._stream.duration * self._stream.time_base)
        elif self._container.duration:
            seconds = self._container.duration / 1e6
        return round(seconds * self.samplerate) if seconds > 0 else _UNKNOWN_FRAMES

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._blocks.close()
        self._container.close()
        self._file.close()

    def seek(self, frames: int) -> None:
        """Go to a sample, before the first `read`."""
        self._first = frames

    def read(self, out: Samples) -> Samples:
        """Fill `out` [samples, channels] and return the part of it that was filled; damage ends the file."""
        filled = 0
        while filled < len(out):
            if not len(self._left):
                self._left = next(self._blocks, self._left)
                if not len(self._left):
                    break
            taken = self._left[: len(out) - filled]
            out[filled : filled + len(taken)] = taken
            self._left = self._left[len(taken) :]
            filled += len(taken)
        return out[:filled]

    def _decode(self) -> Generator[Samples, None, None]:
        """Yield blocks from sample `_first` on."""
        import av

        resampler = av.AudioResampler(
            format="fltp", layout=self._stream.codec_context.layout, rate=self.samplerate
        )
        place = None if self._skip_ahead() else 0  # of the next sample, None until its time was read
        try:
            for frame in self._container.decode(self._stream):
                if place is None:
                    place = self._place_of(frame)
                for piece in resampler.resample(frame):
                    samples: Samples = piece.to_ndarray().T
                    wanted = samples[max(0, self._first - place) :]
                    place += len(samples)
                    if len(wanted):
                        yield wanted
        except (av.error.FFmpegError, ValueError, MemoryError):
            return  # what was decoded before the damage is kept

    def _skip_ahead(self) -> bool:
        """Seek to shortly before sample `_first`; returns whether that was possible."""
        seconds = self._first / max(1, self.samplerate) - _PREROLL
        if not self._has_exact_times or seconds <= 0:
            return False
        self._container.seek(round(seconds / self._stream.time_base), stream=self._stream)
        return True

    def _place_of(self, frame: Any) -> int:
        time = (frame.pts or 0) - (self._stream.start_time or 0)
        return max(0, round(float(time * frame.time_base) * self.samplerate))
