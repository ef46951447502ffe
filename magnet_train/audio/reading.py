"""Read audio files, whole or in blocks, at the sample rate and channels that a model needs.

Shapes: audio float32 [channels, samples], full scale -1..1.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from magnet_train.audio.containers import Part
from magnet_train.audio.recording import Decoder, Recording, Samples, explained, frames_in, seek
from magnet_train.audio.recording import blocks as blocks_of
from magnet_train.audio.resampling import resample_blocks
from magnet_train.errors import UserError
from magnet_train.storage.file_source import FileSource

_TOLERANCE = 0.1  # seconds that may be missing: counts are rounded, and mp3 pads
_LARGEST_FLOAT = 32.0  # 30 dB above full scale: above every recording, below floats at the scale of integers
_INTEGER_BITS = (8, 16, 24, 32)
_FULL_SCALE = 32767 / 32768  # the largest sample of 16 bits


class WrongScaleError(UserError):
    """A file of floats at the scale of integers."""


class _Levels:
    """Range of the samples so far, and whether all floats are whole numbers."""

    def __init__(self) -> None:
        self.peak = 0.0  # of floats alone
        self.swing = 0.0  # largest peak-to-peak range of a channel
        self.samples = self.at_full_scale = 0  # in all channels
        self._range: Samples | None = None  # lowest and highest sample of each channel, [2, channels]
        self._integers = True

    def add(self, samples: Samples, floats: bool) -> None:
        """Take a block into account, whose file holds `floats` or integers."""
        low, high = samples.min(axis=0), samples.max(axis=0)
        self.samples += samples.size
        if max(high.max(), -low.min()) >= _FULL_SCALE:
            self.at_full_scale += int((np.abs(samples) >= _FULL_SCALE).sum())
        if self._range is not None and self._range.shape[1] == len(low):
            low, high = np.minimum(low, self._range[0]), np.maximum(high, self._range[1])
        self._range = np.stack([low, high])
        self.swing = max(self.swing, float((high.astype(np.float64) - low).max()))
        if floats:
            self.peak = max(self.peak, float(np.abs(self._range).max()))
            self._integers = self._integers and bool((samples == np.rint(samples)).all())

    @property
    def looks_like_integers(self) -> bool:
        """Whether all floats are whole numbers and some are not 0, 1 or -1."""
        return self._integers and self.peak > 1

    @property
    def bits(self) -> int | None:
        """Bits of the smallest integers that can hold the floats; None if 32 are too few."""
        return next((bits for bits in _INTEGER_BITS if self.peak <= 2 ** (bits - 1)), None)


class AudioStream:
    """Iterate over the blocks of an audio file, converted for a model, in bounded memory.

    Concatenated, the blocks are what `read_audio` returns. Recordings joined end to end are all read.

    Args:
        path: The file, or its bytes; any rate, any number of channels.
        sample_rate: Rate of the blocks (Hz).
        channels: 1 (the mean of all) or 2 (mono doubled; of more than two, the first: front left and right).
        start: Where to begin (s).
        end: Where to stop (s); None, or a time beyond the end, reads to the end.
        rescale: Scale floats at the scale of integers to -1..1; otherwise they are an error.

    Raises:
        UserError: While iterating: the file does not exist, is not audio, or has no samples, non-finite
            samples, a rate or number of channels out of range, or floats at the wrong scale.
    """

    def __init__(
        self,
        path: FileSource,
        sample_rate: int,
        channels: int,
        start: float = 0.0,
        end: float | None = None,
        *,
        rescale: bool = False,
    ) -> None:
        if channels not in (1, 2):
            raise ValueError(f"channels must be 1 or 2, got {channels}")
        self.path, self.sample_rate, self.channels = path, sample_rate, channels
        self.start, self.end = start, end
        self._rescale = rescale
        self._digest = hashlib.blake2b(digest_size=16)
        self._levels = _Levels()
        self._seconds = 0.0  # read so far
        self._expected = 0.0  # seconds from start to end by the headers
        self._cut = False

    def __iter__(self) -> Iterator[Tensor]:
        """Yield float32 [channels, samples], about ten seconds at a time."""
        recording = Recording(self.path)
        scale = self._find_scale(recording) if self._rescale else 1.0
        offset = 0.0  # of a part, in seconds
        for part in recording.parts:
            if self.end is not None and offset >= self.end:
                break
            with contextlib.ExitStack() as stack:
                try:
                    file = stack.enter_context(recording.open(part))
                except UserError:
                    if not self._seconds:
                        raise
                    self._cut = True  # the parts before this one were read
                    continue
                blocks = self._blocks(file, part, offset, scale)
                yield from resample_blocks(blocks, file.samplerate, self.sample_rate)
                offset += (frames_in(file) or 0) / file.samplerate
        if not self._seconds:
            where = f" after {self.start:g} s" if self.start else ""
            raise UserError(f"{self.path} contains no audio samples{where}; remove it or record it again.")
        if self._levels.looks_like_integers and not self._rescale:
            raise self._wrong_scale(self._levels)

    @property
    def digest(self) -> str:
        """Hash of rate, channels and decoded samples so far: equal for a wav and its flac."""
        return self._digest.hexdigest()

    @property
    def swing(self) -> float:
        """Largest peak-to-peak range of a channel so far; 0 for a constant of any level."""
        return self._levels.swing

    @property
    def full_scale(self) -> float:
        """Share of the samples so far at or beyond full scale, where clipping leaves them; 0..1."""
        return self._levels.at_full_scale / max(1, self._levels.samples)

    @property
    def shortfall(self) -> str | None:
        """Describe, after iteration, how much of the file could be read; None if nothing seems to be missing."""
        if self._expected - self._seconds > _TOLERANCE:
            return (
                f"{self._seconds:.1f} s could be read of the {self._expected:.1f} s that its header promises"
            )
        if self._cut and self.end is None:
            return f"{self._seconds:.1f} s could be read, and the file breaks off there"
        return None

    def _blocks(self, file: Decoder, part: Part, offset: float, scale: float) -> Iterator[Tensor]:
        """Yield the samples of a part at their own rate, float32 [channels, samples]."""
        rate, total = file.samplerate, frames_in(file)
        first = max(0, round((self.start - offset) * rate))
        last = None if self.end is None else round((self.end - offset) * rate)
        if total is not None:
            kept = 1 - part.missing
            promised = total / kept if kept > 0 else total
            self._expected += max(0.0, promised if last is None else min(promised, last) - first) / rate
            first = min(total, first)
            last = total if last is None else min(total, last)
        if first:
            with explained(self.path):
                seek(file, first)
        self._cut = part.cut
        self._digest.update(f"{rate} {file.channels}".encode())
        for samples in blocks_of(file, None if last is None else last - first):
            self._seconds += len(samples) / rate
            self._digest.update(samples.data)
            if not np.isfinite(samples).all():
                raise UserError(f"{self.path} contains samples that are NaN or infinite; render it again.")
            self._levels.add(samples, _is_float(file))
            if self._levels.peak > _LARGEST_FLOAT and not self._rescale:
                raise self._wrong_scale(self._levels)
            scaled = samples if scale == 1.0 else samples / np.float32(scale)
            yield _with_channels(torch.from_numpy(scaled.T.copy()), self.channels)

    def _find_scale(self, recording: Recording) -> float:
        """Return the divisor for floats at the scale of integers, and 1 for all other samples."""
        levels = _Levels()
        for part in recording.parts:
            with recording.open(part) as file:
                if _is_float(file):
                    for samples in blocks_of(file):
                        levels.add(samples, True)
        if levels.bits is None:
            raise self._wrong_scale(levels)
        return 2.0 ** (levels.bits - 1) if levels.peak > _LARGEST_FLOAT or levels.looks_like_integers else 1.0

    def _wrong_scale(self, levels: _Levels) -> WrongScaleError:
        found = f"{self.path} holds floats up to {levels.peak:g}"
        if levels.bits is None:
            return WrongScaleError(f"{found}, beyond any scale of audio; render it again.")
        return WrongScaleError(
            f"{found}, the scale of {levels.bits}-bit integers; divide them by {2 ** (levels.bits - 1)} (tokenize does "
            "so with --rescale)."
        )


def read_audio(path: FileSource, sample_rate: int, channels: int) -> Tensor:
    """Read a whole audio file, float32 [channels, samples]; see `AudioStream`. Warns if a part could not be read."""
    stream = AudioStream(path, sample_rate, channels)
    audio = torch.cat(list(stream), dim=-1)
    if stream.shortfall is not None:
        warnings.warn(f"{path}: {stream.shortfall}", stacklevel=2)
    return audio


def _is_float(file: Decoder) -> bool:
    return file.subtype in ("FLOAT", "DOUBLE")  # whose samples need not be within full scale


def _with_channels(audio: Tensor, channels: int) -> Tensor:
    if audio.shape[0] == channels:
        return audio
    if channels == 1:
        return audio.mean(dim=0, keepdim=True)
    return audio.expand(2, -1) if audio.shape[0] == 1 else audio[:2]
