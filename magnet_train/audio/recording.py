"""Open an audio file safely, and read its samples unconverted, a block at a time.

Everything that a header says is bounded before it is used, and every failure is one sentence.
Samples: float32 [samples, channels], full scale -1..1.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from magnet_train.audio.containers import Part, PartFile, parts_of
from magnet_train.audio.file_kinds import explained, why_not_a_file
from magnet_train.errors import UserError

Samples = npt.NDArray[np.float32]

LOWEST_RATE, HIGHEST_RATE = 100, 768_000  # Hz; any other rate is a damaged header
MOST_CHANNELS = 64  # seventh-order ambisonics
LARGEST_FLOAT = 32.0  # 30 dB above full scale: above every recording, below floats at the scale of integers
_BLOCK_SECONDS = 10.0
_BLOCK_VALUES = 2**24  # samples times channels
_LONGEST = 30 * 86_400.0  # seconds; a header that gives more is wrong
_UNKNOWN_FRAMES = 2**62  # libsndfile gives its largest number as the length if no header has one
_FLOATS = ("FLOAT", "DOUBLE")
_INTEGER_BITS = (8, 16, 24, 32)


def require_audio_file(path: str | Path) -> None:
    """Refuse a path that is not a file with content, without opening it.

    Raises:
        UserError: The path does not exist, or is an empty file, a pipe, a device, a folder or the like.
    """
    problem = why_not_a_file(path)
    if problem == "does not exist":
        raise UserError(f"there is no audio file {path}; check the path.")
    if problem is not None:
        raise UserError(f"{path} {problem}; give an audio file instead.")


class Recording:
    """An audio file and its parts, each of which libsndfile can open.

    Raises:
        UserError: The file does not exist, is empty or not a regular file, or cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        require_audio_file(path)
        with explained(path):
            self._size = os.path.getsize(path)
            self.parts = parts_of(path)

    @contextlib.contextmanager
    def open(self, part: Part) -> Iterator[soundfile.SoundFile]:
        """Open one of the parts.

        Raises:
            UserError: The part is not audio, or its sample rate or number of channels is out of range.
        """
        with contextlib.ExitStack() as stack:
            with explained(self.path):
                if part.is_whole_file(self._size):
                    file = soundfile.SoundFile(os.fsencode(self.path))  # the name may not be text
                else:
                    file = soundfile.SoundFile(PartFile(stack.enter_context(open(self.path, "rb")), part))
                stack.enter_context(file)
            if not LOWEST_RATE <= file.samplerate <= HIGHEST_RATE:
                raise UserError(
                    f"the header of {self.path} gives {file.samplerate} samples a second; correct its sample rate."
                )
            if file.channels > MOST_CHANNELS:
                raise UserError(
                    f"the header of {self.path} gives {file.channels} channels; correct it, or give at most "
                    f"{MOST_CHANNELS} channels."
                )
            yield file

    def seconds(self) -> float:
        """Return the duration by the headers; a part whose headers have none is read to its end."""
        total = 0.0
        for number, part in enumerate(self.parts):
            try:
                with self.open(part) as file:
                    frames = frames_in(file)
                    total += (sum(map(len, blocks(file))) if frames is None else frames) / file.samplerate
            except UserError:
                if not number:
                    raise
        return total


def header_seconds(path: str | Path) -> float:
    """Return the duration that the first header of a file gives, without a scan; 0 if it gives no plausible one."""
    if why_not_a_file(path) is not None:
        return 0.0
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:
            seconds = file.frames / file.samplerate
    except (soundfile.SoundFileError, OSError, ValueError, TypeError, MemoryError):
        return 0.0
    return float(seconds) if seconds <= _LONGEST else 0.0


def is_float(file: soundfile.SoundFile) -> bool:
    """Whether the samples are floats, which need not be within full scale."""
    return file.subtype in _FLOATS


def frames_in(file: soundfile.SoundFile) -> int | None:
    """Return the number of samples of each channel by the header; None if the header has none."""
    return None if file.frames >= _UNKNOWN_FRAMES else int(file.frames)


def blocks(file: soundfile.SoundFile, frames: int | None = None) -> Iterator[Samples]:
    """Read from the current position to the end, or a number of samples of each channel.

    Damage ends a block early; the samples after it are read if the decoder can resume.
    """
    left = _UNKNOWN_FRAMES if frames is None else frames
    largest = max(1, min(round(_BLOCK_SECONDS * file.samplerate), _BLOCK_VALUES // file.channels))
    while left > 0:
        samples = _read(file, min(left, largest))
        if not len(samples):
            return
        left -= len(samples)
        yield samples


def _read(file: soundfile.SoundFile, frames: int) -> Samples:
    """Read a block, and keep the samples that were decoded before an error."""
    buffer = np.full((frames, file.channels), np.nan, dtype=np.float32)
    try:
        samples: Samples = file.read(out=buffer)
        return samples
    except soundfile.SoundFileError:
        unread = np.isnan(buffer[:, -1])
        return buffer[: int(unread.argmax()) if unread.any() else frames]


class Levels:
    """The range of the samples so far, and whether floats are integers in disguise."""

    def __init__(self) -> None:
        self.peak = 0.0  # of floats alone
        self.swing = 0.0  # distance of the lowest from the highest sample of a channel
        self._range: Samples | None = None  # lowest and highest sample of each channel, [2, channels]
        self._integers = True

    def add(self, samples: Samples, floats: bool) -> None:
        """Take a block into account.

        Args:
            samples: At full scale -1..1, unless they are floats at another one.
            floats: Whether the file holds floats.
        """
        low, high = samples.min(axis=0), samples.max(axis=0)
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
