"""Write audio files atomically, and spectrograms as pictures.

Shapes: audio float [channels, samples], full scale -1..1.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from torch import Tensor

from magnet_train.audio.resampling import integrated_loudness
from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import atomic_write

FORMATS = {".flac": "FLAC", ".mp3": "MP3", ".ogg": "OGG"}  # of libsndfile
LARGEST_PEAK = -1.0  # dB of full scale, of audio at a given loudness
_BLOCK = 2**16  # samples of each channel
_WINDOW = 1024  # samples of a spectrogram's frame
_RANGE_DB = 80.0


def write_audio(
    path: str | Path, audio: Tensor, sample_rate: int, loudness: float | None = None
) -> float | None:
    """Write an audio file atomically, in the format of its suffix.

    Samples have 16 bits. Audio beyond full scale is scaled down as a whole, since clipping is audible.

    Args:
        path: The file: .flac, .mp3, .ogg (Vorbis), else WAV; missing parent folders are created.
        audio: float [channels, samples], channels 1 or 2.
        sample_rate: Hz.
        loudness: Scale to this loudness (LUFS, ITU-R BS.1770), or less where a peak would exceed -1 dB of full
            scale; silence stays as it is.

    Returns:
        The loudness reached, None if none was asked for or the audio is silent.

    Raises:
        UserError: The disk is full, the folder cannot be written to, or the format cannot hold the sample rate.
        ValueError: Samples are not finite, or the shape is not [channels, samples].
    """
    if audio.ndim != 2 or not audio.isfinite().all():
        raise ValueError(
            f"audio for {path} must be finite [channels, samples], got shape {list(audio.shape)}"
        )
    audio, reached = audio.detach().float().cpu(), None
    if loudness is not None:
        audio, reached = _at_loudness(audio, sample_rate, loudness)
    peak = float(audio.abs().max()) if audio.numel() else 0.0
    samples = (audio / max(peak, 1.0)).T.numpy()  # [samples, channels]
    encoded = encode_wav(samples, sample_rate)
    if kind := FORMATS.get(Path(path).suffix.lower()):
        encoded = _convert(encoded, kind, path)
    with atomic_write(Path(path)) as file:
        file.write(encoded)
    return reached


def _at_loudness(audio: Tensor, sample_rate: int, target: float) -> tuple[Tensor, float | None]:
    measured = integrated_loudness(audio, sample_rate)
    if measured == -math.inf:
        return audio, None
    loudest = LARGEST_PEAK - 20 * math.log10(float(audio.abs().max()))
    gain = min(target - measured, loudest)  # dB
    return audio * 10 ** (gain / 20), measured + gain


def _convert(wav: bytes, kind: str, path: str | Path) -> bytes:
    """Encode the samples of a WAV of 16 bits in another format of libsndfile."""
    # Floats of the same value for the lossy ones: from integers, libsndfile 1.2.2 makes other mp3 files each time.
    dtype = "int16" if kind == "FLAC" else "float32"
    samples, sample_rate = soundfile.read(io.BytesIO(wav), dtype=dtype, always_2d=True)
    encoded = io.BytesIO()
    try:
        with soundfile.SoundFile(encoded, "w", sample_rate, samples.shape[1], format=kind) as file:
            for first in range(0, len(samples), _BLOCK):  # libsndfile's Vorbis fails at minutes in one piece
                file.write(samples[first : first + _BLOCK])
    except (soundfile.SoundFileError, ValueError) as error:  # the latter where libsndfile lacks the format
        reason = str(error).rsplit(": ", 1)[-1].rstrip(".")
        raise UserError(f"{path} cannot be written as {kind} ({reason}); choose wav or flac.") from error
    return encoded.getvalue()


def encode_wav(samples: npt.NDArray[np.float32 | np.int16], sample_rate: int) -> bytes:
    """Encode float32 or int16 [samples] or [samples, channels] as a 16-bit WAV.

    In memory, since libsndfile does not report why it cannot write to a disk.
    """
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, sample_rate, format="WAV", subtype="PCM_16")
    return encoded.getvalue()


def draw_spectrogram(audio: Tensor, sample_rate: int, path: Path) -> None:
    """Write a PNG of the level over time (s) and frequency (kHz), with a range of 80 dB below the loudest."""
    from matplotlib.figure import Figure  # takes half a second, and is optional

    mono = audio.float().cpu().mean(dim=0)
    mono = torch.nn.functional.pad(mono, (0, max(0, _WINDOW - len(mono))))
    hop = max(_WINDOW // 4, len(mono) // 1024)  # at most about a thousand columns
    spectrum = torch.stft(mono, _WINDOW, hop, window=torch.hann_window(_WINDOW), return_complex=True)
    power = spectrum.abs().square()  # [F, T]
    decibels = 10.0 * torch.log10(power / power.max().clamp(min=1e-10) + 1e-10)
    figure = Figure(figsize=(7, 2.4), layout="constrained")
    axes = figure.subplots()
    extent = (0, audio.shape[-1] / sample_rate, 0, sample_rate / 2000)
    look: dict[str, Any] = {"origin": "lower", "aspect": "auto", "cmap": "magma"}
    axes.imshow(decibels.numpy(), extent=extent, vmin=-_RANGE_DB, vmax=0.0, **look)
    axes.set(xlabel="seconds", ylabel="kHz")
    figure.savefig(path, dpi=100)
