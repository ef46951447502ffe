"""Open an audio file safely, and read its samples unconverted, a block at a time.

Everything that a header says is bounded before it is used, and every failure is one sentence.
Samples: float32 [samples, channels], full scale -1..1.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile

from magnet_train.audio.containers import Part, PartFile, parts_of
from magnet_train.audio.pyav import AvFile, needs_av
from magnet_train.errors import UserError, cannot_read
from magnet_train.storage.file_source import FileSource, StoredBytes, open_source, size_of

Samples = npt.NDArray[np.float32]
Decoder: TypeAlias = soundfile.SoundFile | AvFile

LOWEST_RATE, HIGHEST_RATE = 100, 768_000  # Hz; any other rate is a damaged header
MOST_CHANNELS = 64  # seventh-order ambisonics
_BLOCK_SECONDS = 10.0
_BLOCK_VALUES = 2**24  # samples times channels
_LONGEST = 30 * 86_400.0  # seconds; a header that gives more is wrong
_UNKNOWN_FRAMES = 2**62  # libsndfile gives its largest number as the length if no header has one

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe (fifo)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_DOWNLOAD = "download it again or remove it"
_CONVERT = "convert it with `ffmpeg -i IN OUT.flac`"
# First bytes of common files that are not read as audio: what they are, and what to do.
_BEGINNINGS = (
    (rb"(\xef\xbb\xbf)?\s*(?i:<!doctype html|<html|<head|<body|<\?xml)", "a web page", _DOWNLOAD),
    (rb"PK\x03\x04", "a zip archive", _DOWNLOAD),
    (rb"%PDF", "a PDF", _DOWNLOAD),
    (rb"\x89PNG", "a PNG picture", _DOWNLOAD),
    (rb"\xff\xd8\xff", "a JPEG picture", _DOWNLOAD),
    (rb"GIF8", "a GIF picture", _DOWNLOAD),
    (rb"\x1f\x8b", "a gzip file", _DOWNLOAD),
    (rb"0&\xb2u\x8ef\xcf\x11", "a WMA file", _CONVERT),
    (rb"MAC ", "a Monkey's Audio file", _CONVERT),
    (rb"wvpk", "a WavPack file", _CONVERT),
    (rb"version https://git-lfs", "a git-lfs pointer and not the file itself", _DOWNLOAD),
)
_UNREADABLE = (
    soundfile.SoundFileError,
    UserError,
    OSError,
    ArithmeticError,
    ValueError,
    TypeError,
    MemoryError,
)
# Messages of libsndfile that do not give the reason.
_REASONS = {
    "SF_INFO struct incomplete": "its header has an impossible sample rate, number of channels or length",
    "File does not exist or is not a regular file": "it contains no MP3 frames that can be decoded",
}


def require_audio_file(path: FileSource) -> None:
    """Raise `UserError` if a path is not a file with content, without opening it."""
    problem = _why_not_a_file(path)
    if problem == "does not exist":
        raise UserError(f"there is no audio file {path}; check the path.")
    if problem is not None:
        raise UserError(f"{path} {problem}; give an audio file instead.")


def _why_not_a_file(path: FileSource) -> str | None:
    """Say why a path is not a file with content, without opening it: a pipe would block, a device may never end."""
    if isinstance(path, StoredBytes):
        return None if path.data else "is empty (0 bytes)"
    try:
        found = os.stat(path)
    except ValueError:
        return "is not a valid path: it contains a NUL character"
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "is a link in a loop of links"
        with contextlib.suppress(OSError):
            return f"is a link to {os.readlink(path)}, which does not exist"
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        return "does not exist" if missing else f"cannot be read ({error.strerror})"
    if stat.S_ISREG(found.st_mode):
        return None if found.st_size else "is empty (0 bytes)"
    kind = next((kind for is_kind, kind in _KINDS if is_kind(found.st_mode)), "something else")
    return f"is {kind}, not a file"


@contextlib.contextmanager
def explained(path: FileSource) -> Iterator[None]:
    """Turn errors of opening or reading an audio file into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise cannot_read(path, error) from error
    # a false header, or a headerless .raw
    except (soundfile.SoundFileError, MemoryError, TypeError, ValueError) as error:
        start = b""
        with contextlib.suppress(OSError), open_source(path) as file:
            start = file.read(512)
        for pattern, kind, remedy in _BEGINNINGS:
            if re.match(pattern, start, re.DOTALL):
                raise UserError(f"{path} is {kind}; {remedy}.") from error
        message = str(error).rsplit(": ", 1)[-1].rstrip(".")  # without the file's name
        reason = next((better for theirs, better in _REASONS.items() if theirs in message), message)
        raise UserError(
            f"cannot read {path} as audio ({reason}); convert it to wav, flac, ogg or mp3."
        ) from error


class _ForwardFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile is skipped by mypy
    """A file without the seek that soundfile adds to each read: after a seek, two frames of an MP3 are noise."""

    def seekable(self) -> bool:
        return False


class Recording:
    """An audio file and its separately decodable parts; raises `UserError` if there is no such file."""

    def __init__(self, path: FileSource) -> None:
        self.path = path
        require_audio_file(path)
        with explained(path):
            self._size = size_of(path)
            self._needs_av = _starts_as_av(path)
            self.parts = [Part(0, self._size)] if self._needs_av else parts_of(path)

    @contextlib.contextmanager
    def open(self, part: Part) -> Iterator[Decoder]:
        """Open one of the parts; raises `UserError` if it is not audio, or has a rate or channels out of range."""
        with contextlib.ExitStack() as stack:
            with explained(self.path):
                if self._needs_av or part.is_whole_file(self._size):
                    file = _open_whole(self.path, self._needs_av)
                else:
                    file = _ForwardFile(PartFile(stack.enter_context(open_source(self.path)), part))
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


def _starts_as_av(path: FileSource) -> bool:
    with open_source(path) as file:
        return needs_av(file.read(16))


def _open_whole(path: FileSource, with_av: bool) -> Decoder:
    if with_av:
        return AvFile(path)
    if isinstance(path, StoredBytes):
        return _ForwardFile(open_source(path))
    return _ForwardFile(os.fsencode(path))  # the name may not be text


def audio_seconds(path: FileSource) -> float:
    """Return the duration of an audio file by its headers (s); a part whose headers have none is read to its end.

    Raises:
        UserError: The file does not exist, is not audio, or has a rate out of range.
    """
    recording, total = Recording(path), 0.0
    for number, part in enumerate(recording.parts):
        try:
            with recording.open(part) as file:
                frames = frames_in(file)
                total += (sum(map(len, blocks(file))) if frames is None else frames) / file.samplerate
        except UserError:
            if not number:
                raise
    return total


def header_of(path: FileSource) -> tuple[float, int]:
    """Return duration (s) and rate (Hz) that the first header of a file gives, without a scan; 0 if not plausible."""
    if _why_not_a_file(path) is not None:
        return 0.0, 0
    try:
        with _open_whole(path, _starts_as_av(path)) as file:
            seconds, rate = file.frames / file.samplerate, int(file.samplerate)
    except _UNREADABLE:
        return 0.0, 0
    return float(seconds) if seconds <= _LONGEST else 0.0, rate


def frames_in(file: Decoder) -> int | None:
    """Return the number of samples of each channel by the header; None if the header has none."""
    return None if file.frames >= _UNKNOWN_FRAMES else int(file.frames)


def seek(file: Decoder, sample: int) -> None:
    """Go to a sample of each channel; in an MP3, whose frames depend on those before, from a second earlier."""
    is_mp3 = isinstance(file, soundfile.SoundFile) and file.format == "MP3"
    before = min(sample, file.samplerate) if is_mp3 else 0
    file.seek(sample - before)
    if before:
        _read(file, before)


def blocks(file: Decoder, frames: int | None = None) -> Iterator[Samples]:
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


def _read(file: Decoder, frames: int) -> Samples:
    """Read a block, and keep the samples that were decoded before an error."""
    buffer = np.full((frames, file.channels), np.nan, dtype=np.float32)
    try:
        samples: Samples = file.read(out=buffer)
        return samples
    except soundfile.SoundFileError:
        unread = np.isnan(buffer[:, -1])
        return buffer[: int(unread.argmax()) if unread.any() else frames]
