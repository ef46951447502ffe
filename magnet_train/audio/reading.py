"""Read audio files, whole or in blocks, at the rate and channels that a model wants.

Shapes: audio float32 [channels, samples], full scale -1..1.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from soundfile import SoundFile
from torch import Tensor

from magnet_train.audio.containers import Part
from magnet_train.audio.levels import LARGEST_FLOAT, Levels
from magnet_train.audio.recording import Recording, explained, frames_in, is_float
from magnet_train.audio.recording import blocks as blocks_of
from magnet_train.audio.resampling import resample_blocks
from magnet_train.errors import UserError

_TOLERANCE = 0.1  # seconds that may be missing: counts are rounded, and mp3 pads


class WrongScaleError(UserError):
    """A file of floats at the scale of integers."""


class AudioStream:
    """Read an audio file as a model wants it, a block at a time: memory does not grow with it.

    Joined, the blocks are what `read_audio` returns. What was joined end to end is read from end to end.

    Args:
        path: The file; any rate, any number of channels.
        sample_rate: Rate of the answer (Hz).
        channels: 1 (the mean of all) or 2 (mono doubled; of more than two, the first: front left and right).
        start: Seconds to leave out at the beginning.
        end: Where to stop, in seconds; None, or what lies behind the end, reads to the end.
        rescale: Whether floats at the scale of integers are brought to -1..1; they are refused otherwise.

    Raises:
        UserError: While iterating: the file is absent, is not audio, has no samples, samples that are not
            finite, a rate or a number of channels that cannot be, or floats at the wrong scale.
    """

    def __init__(
        self,
        path: str | Path,
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
        self._levels = Levels()
        self._seconds = 0.0  # read
        self._expected = 0.0  # seconds that the headers promise, from start to end
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
                    self._cut = True  # what lies before it was read
                    continue
                blocks = self._blocks(file, part, offset, scale)
                yield from resample_blocks(blocks, file.samplerate, self.sample_rate)
                offset += (frames_in(file) or 0) / file.samplerate
        if not self._seconds:
            raise UserError(
                f"{self.path} holds no audio samples{self._where()}; remove it or record it again."
            )
        if self._levels.looks_like_integers and not self._rescale:
            raise self._wrong_scale(self._levels)

    @property
    def digest(self) -> str:
        """Hash of rate, channels and samples read so far, as decoded: the same for a wav and its flac."""
        return self._digest.hexdigest()

    @property
    def swing(self) -> float:
        """Distance of the lowest from the highest sample of a channel so far; 0 of a constant, whatever its level."""
        return self._levels.swing

    @property
    def shortfall(self) -> str | None:
        """Say, once all was read, how much of it could be; None if nothing is known to be missing."""
        if self._expected - self._seconds > _TOLERANCE:
            return (
                f"{self._seconds:.1f} s could be read of the {self._expected:.1f} s that its header promises"
            )
        if self._cut and self.end is None:
            return f"{self._seconds:.1f} s could be read, and the file breaks off there"
        return None

    def _blocks(self, file: SoundFile, part: Part, offset: float, scale: float) -> Iterator[Tensor]:
        """Yield what the file holds at its own rate, float32 [channels, samples]."""
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
                file.seek(first)
        self._cut = part.cut
        self._digest.update(f"{rate} {file.channels}".encode())
        for samples in blocks_of(file, None if last is None else last - first):
            self._seconds += len(samples) / rate
            self._digest.update(samples.data)
            if not np.isfinite(samples).all():
                raise UserError(f"{self.path} holds samples that are not numbers; render it again.")
            self._levels.add(samples, is_float(file))
            if self._levels.peak > LARGEST_FLOAT and not self._rescale:
                raise self._wrong_scale(self._levels)
            scaled = samples if scale == 1.0 else samples / np.float32(scale)
            yield _with_channels(torch.from_numpy(scaled.T.copy()), self.channels)

    def _find_scale(self, recording: Recording) -> float:
        """Return what floats at the scale of integers have to be divided by, 1 for any others."""
        levels = Levels()
        for part in recording.parts:
            with recording.open(part) as file:
                if is_float(file):
                    for samples in blocks_of(file):
                        levels.add(samples, True)
        if levels.bits is None:
            raise self._wrong_scale(levels)
        return 2.0 ** (levels.bits - 1) if levels.peak > LARGEST_FLOAT or levels.looks_like_integers else 1.0

    def _wrong_scale(self, levels: Levels) -> WrongScaleError:
        holds = f"{self.path} holds floats up to {levels.peak:g}"
        if levels.bits is None:
            return WrongScaleError(f"{holds}, beyond any scale of audio; render it again.")
        return WrongScaleError(
            f"{holds}, the scale of {levels.bits}-bit integers; divide them by {2 ** (levels.bits - 1)} (tokenize does "
            "so with --rescale)."
        )

    def _where(self) -> str:
        return f" after {self.start:g} s" if self.start else ""


def audio_seconds(path: str | Path) -> float:
    """Say how long an audio file is, by its headers.

    Raises:
        UserError: The file is absent, is not audio or has a rate that cannot be.
    """
    return Recording(path).seconds()


def read_audio(path: str | Path, sample_rate: int, channels: int) -> Tensor:
    """Read an audio file as a model wants it.

    Args:
        path: The file; any rate, any number of channels.
        sample_rate: Rate of the answer (Hz).
        channels: 1 (the mean of all) or 2 (mono doubled; of more than two, the first: front left and right).

    Returns:
        float32 [channels, samples].

    Raises:
        UserError: The file is absent, is not audio, has no samples, samples that are not finite, a rate or a
            number of channels that cannot be, or floats at the wrong scale.

    Warns:
        UserWarning: It could be read in part only.
    """
    stream = AudioStream(path, sample_rate, channels)
    audio = torch.cat(list(stream), dim=-1)
    if stream.shortfall is not None:
        warnings.warn(f"{path}: {stream.shortfall}", stacklevel=2)
    return audio


def _with_channels(audio: Tensor, channels: int) -> Tensor:
    if audio.shape[0] == channels:
        return audio
    if channels == 1:
        return audio.mean(dim=0, keepdim=True)
    return audio.expand(2, -1) if audio.shape[0] == 1 else audio[:2]
