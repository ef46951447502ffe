"""Replace a part of an audio file and copy every other sample bit for bit, at the file's own rate, channels and bits.

Samples: [samples, channels] in the file's own type.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from torch import Tensor

from magnet_train.audio.pyav import AvFile
from magnet_train.audio.recording import Recording, blocks, explained, frames_in
from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import atomic_write

# Types of samples that are kept: their bits, and the type that holds them.
_INTEGERS = {
    "PCM_S8": (8, "int16"),
    "PCM_U8": (8, "int16"),
    "PCM_16": (16, "int16"),
    "PCM_24": (24, "int32"),
    "PCM_32": (32, "int32"),
}
_FLOATS = {"FLOAT": "float32", "DOUBLE": "float64"}
_IN_FLAC = {"PCM_U8": "PCM_S8", "PCM_S8": "PCM_S8", "PCM_16": "PCM_16", "PCM_24": "PCM_24"}
_LARGEST_WAV = 2**32 - 2**16  # bytes
_MISSING = 0.1  # seconds that a header may promise in excess: counts are rounded, and mp3 pads
_BLOCK = 2**16  # samples of each channel
_PEAK_TIME = slice(12, 16)  # of a PEAK chunk

Samples = npt.NDArray[Any]


@dataclass(frozen=True)
class SampleFormat:
    """Format of a recording's samples, and of a file that holds them unchanged."""

    path: Path
    sample_rate: int  # Hz
    channels: int
    samples: int  # of each channel
    dtype: str  # numpy type that holds them exactly
    container: str  # WAV, RF64 or FLAC
    subtype: str  # libsndfile's name for the type of the written samples

    @property
    def suffix(self) -> str:
        """The suffix of a written file."""
        return ".flac" if self.container == "FLAC" else ".wav"

    def __str__(self) -> str:
        bits = {"FLOAT": "32-bit float", "DOUBLE": "64-bit float"}.get(self.subtype)
        channels = {1: "mono", 2: "stereo"}.get(self.channels, f"{self.channels} channels")
        return (
            f"{self.sample_rate / 1000:g} kHz, {channels}, {bits or f'{_INTEGERS[self.subtype][0]}-bit'} "
            f"{self.suffix[1:].upper()}"
        )


def sample_format(path: str | Path, container: str | None = None) -> SampleFormat:
    """Return the format of a recording's samples and of a file for them.

    WAV and FLAC keep container and sample type. The decoded samples of lossy formats go into a WAV.

    Args:
        path: The recording.
        container: "wav" or "flac" in place of the recording's own.

    Raises:
        UserError: It cannot be read, joins recordings of different kinds, or the container cannot hold its samples.
    """
    recording, kinds, samples = Recording(path), set(), 0
    for part in recording.parts:
        with recording.open(part) as file:
            kinds.add((file.samplerate, file.channels, file.subtype))
            frames = frames_in(file)
            samples += sum(map(len, blocks(file))) if frames is None else frames
            in_flac = isinstance(file, soundfile.SoundFile) and file.format == "FLAC"
    if len(kinds) > 1:
        raise UserError(f"{path} joins recordings of different rates or channels; save it as one WAV.")
    ((rate, channels, subtype),) = kinds
    if subtype not in _INTEGERS and subtype not in _FLOATS:
        subtype = "FLOAT"
    bits, dtype = _INTEGERS.get(subtype, (32, _FLOATS.get(subtype, "float32")))
    if container == "flac" or (container is None and in_flac):
        if subtype not in _IN_FLAC or channels > 8:
            raise UserError(
                f"a FLAC file cannot hold the samples of {path} ({subtype}, {channels} channels); use --format wav."
            )
        return SampleFormat(Path(path), rate, channels, samples, dtype, "FLAC", _IN_FLAC[subtype])
    size = samples * channels * (8 if subtype == "DOUBLE" else bits // 8)
    kind, subtype = "RF64" if size > _LARGEST_WAV else "WAV", "PCM_U8" if subtype == "PCM_S8" else subtype
    return SampleFormat(Path(path), rate, channels, samples, dtype, kind, subtype)


def write_spliced(path: str | Path, source: SampleFormat, part: Tensor, begin: int, weight: Tensor) -> None:
    """Write a recording with a part replaced, atomically and in bounded memory.

    Args:
        path: The file to write.
        source: The recording and its format.
        part: float32 [channels, samples] at the recording's rate, full scale -1..1.
        begin: Its first sample in the recording.
        weight: float32 [samples], weight of the part: 0 keeps the recording's sample, 1 replaces it.

    Raises:
        UserError: The recording breaks off, the disk is full, or the folder cannot be written to.
    """
    place = 0
    with atomic_write(Path(path)) as file:
        sink = _Sink(file)
        with soundfile.SoundFile(
            sink, "w", source.sample_rate, source.channels, source.subtype, format=source.container
        ) as written:
            for block in _samples_of(source):
                written.write(_mixed(block, source, part, begin - place, weight))
                place += len(block)
                sink.check()
        sink.check()
        if place < source.samples - _MISSING * source.sample_rate:
            raise UserError(
                f"{source.path} breaks off after {place / source.sample_rate:.1f} s of "
                f"{source.samples / source.sample_rate:.1f} s; save its readable part as another file."
            )
        sink.forget_time()


def _samples_of(source: SampleFormat) -> Iterator[Samples]:
    recording = Recording(source.path)
    for part in recording.parts:
        with recording.open(part) as file, explained(source.path):
            if source.dtype == "float32" or isinstance(file, AvFile):
                yield from blocks(file)
                continue
            while len(block := file.read(_BLOCK, dtype=source.dtype, always_2d=True)):
                yield block


def _mixed(block: Samples, source: SampleFormat, part: Tensor, offset: int, weight: Tensor) -> Samples:
    """Return a block with the part that begins `offset` samples after its beginning."""
    first, end = max(0, offset), min(len(block), offset + part.shape[-1])
    if first >= end:
        return block
    within = slice(first - offset, end - offset)
    share = weight[within, None]
    old, new = _as_float(block[first:end]), part[:, within].T
    mixed = _as_type(old + share * (new - old), source)
    block[first:end] = np.where(share.numpy() == 0, block[first:end], mixed)
    return block


def _as_float(samples: Samples) -> Tensor:
    scale = 1 if samples.dtype.kind == "f" else 2.0 ** (8 * samples.itemsize - 1)
    return torch.from_numpy((samples / scale).astype(np.float32))


def _as_type(audio: Tensor, source: SampleFormat) -> Samples:
    """Round to the type of the recording's samples; its integers lie in the upper bits of a wider type."""
    if source.subtype not in _INTEGERS:
        return audio.numpy().astype(source.dtype)
    bits, steps = _INTEGERS[source.subtype][0], 2.0 ** (_INTEGERS[source.subtype][0] - 1)
    rounded = (audio.double() * steps).round().clamp(-steps, steps - 1).numpy()
    unused = 8 * np.dtype(source.dtype).itemsize - bits
    return rounded.astype(source.dtype) << unused


class _Sink:
    """A file for libsndfile, which does not report why it cannot write."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self._error = error
        return len(data)

    def check(self) -> None:
        """Raise the error that stopped a write, if any."""
        if self._error is not None:
            raise self._error

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def forget_time(self) -> None:
        """Zero the time in the PEAK chunk that libsndfile writes into a float WAV, so that equal audio gives equal files."""
        self._file.flush()
        with open(self._file.name, "rb") as written:
            head = written.read(256)
        if (peak := head.find(b"PEAK")) >= 0:
            self._file.seek(peak + _PEAK_TIME.start)
            self._file.write(bytes(_PEAK_TIME.stop - _PEAK_TIME.start))
