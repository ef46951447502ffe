"""Open what was given as an audio file, and read its samples as they are, a block at a time.

Nothing that a file says of itself is believed without a bound, and whatever keeps it from being read is one
sentence. Samples are float32 [samples, channels], full scale -1..1.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from magnet_train.audio.containers import Part, PartFile, parts_of, remedy_for, what_it_is
from magnet_train.audio.file_kinds import why_not_a_file
from magnet_train.errors import UserError, cannot_read

Samples = npt.NDArray[np.float32]

LOWEST_RATE, HIGHEST_RATE = 100, 768_000  # Hz; what lies outside is a mistake in a header
MOST_CHANNELS = 64  # ambisonics of the seventh order
_BLOCK_SECONDS = 10.0
_BLOCK_VALUES = 2**24  # samples times channels
_LONGEST = 30 * 86_400.0  # seconds; a header that says more is not believed
_UNKNOWN_FRAMES = 2**62  # libsndfile's largest number stands for a length that no header tells
_FLOATS = ("FLOAT", "DOUBLE")

# What libsndfile says of some files is not the reason.
_REASONS = {
    "SF_INFO struct incomplete": "its header gives no possible sample rate, number of channels or length",
    "File does not exist or is not a regular file": "it holds no MP3 frames that can be decoded",
}


def require_audio_file(path: str | Path) -> None:
    """Refuse what cannot be opened as a file, without opening it.

    Raises:
        UserError: It is absent, empty, a pipe, a device, a folder or the like.
    """
    problem = why_not_a_file(path)
    if problem == "does not exist":
        raise UserError(f"there is no audio file {path}; check the path.")
    if problem is not None:
        raise UserError(f"{path} {problem}; give an audio file instead.")


class Recording:
    """An audio file: its parts, each of which libsndfile can open.

    Args:
        path: The file.

    Raises:
        UserError: It is absent, not a regular file, empty, or cannot be opened.
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
            UserError: It is not audio, or has a sample rate or a number of channels that cannot be.
        """
        with contextlib.ExitStack() as stack:
            with explained(self.path):
                if part.is_whole_file(self._size):
                    file = soundfile.SoundFile(os.fsencode(self.path))  # names need not be text
                else:
                    file = soundfile.SoundFile(PartFile(stack.enter_context(open(self.path, "rb")), part))
                stack.enter_context(file)
            if not LOWEST_RATE <= file.samplerate <= HIGHEST_RATE:
                raise UserError(
                    f"{self.path} says it has {file.samplerate} samples a second; correct its sample rate."
                )
            if file.channels > MOST_CHANNELS:
                raise UserError(
                    f"{self.path} says it has {file.channels} channels; correct its header, or give at most "
                    f"{MOST_CHANNELS}."
                )
            yield file

    def seconds(self) -> float:
        """Return how long it is by its headers; one whose headers do not tell is read to its end."""
        total = 0.0
        for number, part in enumerate(self.parts):
            try:
                with self.open(part) as file:
                    frames = file.frames
                    if frames >= _UNKNOWN_FRAMES:
                        frames = sum(map(len, blocks(file)))
                    total += frames / file.samplerate
            except UserError:
                if not number:
                    raise
        return total


def header_seconds(path: str | Path) -> float:
    """Return the length that the first header of a file gives, quickly; 0 if it gives none that can be."""
    if why_not_a_file(path) is not None:
        return 0.0
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:
            seconds = file.frames / file.samplerate
    except (soundfile.SoundFileError, OSError, ValueError, TypeError, MemoryError):
        return 0.0
    return float(seconds) if seconds <= _LONGEST else 0.0


def is_float(file: soundfile.SoundFile) -> bool:
    """Whether a file holds floats, whose scale nothing enforces."""
    return file.subtype in _FLOATS


def frames_in(file: soundfile.SoundFile) -> int | None:
    """Return how many frames a file says it has; None if it does not say."""
    return None if file.frames >= _UNKNOWN_FRAMES else int(file.frames)


def blocks(file: soundfile.SoundFile, frames: int | None = None) -> Iterator[Samples]:
    """Read from where a file is, up to its end or for some frames.

    Damage ends a block early; what follows it is read if the decoder finds its way.
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
    """Read a block; what was decoded before an error is kept."""
    buffer = np.full((frames, file.channels), np.nan, dtype=np.float32)
    try:
        samples: Samples = file.read(out=buffer)
        return samples
    except soundfile.SoundFileError:
        unread = np.isnan(buffer[:, -1])
        return buffer[: int(unread.argmax()) if unread.any() else frames]


@contextlib.contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Say in one sentence why an audio file cannot be opened or read.

    Raises:
        UserError: It cannot.
    """
    try:
        yield
    except OSError as error:
        raise cannot_read(path, error) from error
    # a header that lies, or a headerless .raw
    except (soundfile.SoundFileError, MemoryError, TypeError, ValueError) as error:
        kind = _kind_of(path)
        if kind is not None:
            raise UserError(f"{path} is {kind}; {remedy_for(kind)}.") from error
        raise UserError(
            f"cannot read {path} as audio ({_reason(error)}); convert it to wav, flac, ogg or mp3."
        ) from error


def _kind_of(path: str | Path) -> str | None:
    try:
        with open(path, "rb") as file:
            return what_it_is(file.read(512))
    except OSError:
        return None


def _reason(error: Exception) -> str:
    """Return libsndfile's words without its file name and full stop, or better ones."""
    words = str(error).rsplit(": ", 1)[-1].rstrip(".")
    return next((better for theirs, better in _REASONS.items() if theirs in words), words)
