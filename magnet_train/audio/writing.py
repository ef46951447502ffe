"""Write WAV files atomically, and spectrograms as pictures.

Shapes: audio float [channels, samples], full scale -1..1.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from torch import Tensor

from magnet_train.storage.atomic_io import atomic_write

_STEPS_16_BIT = 2**15  # on each side of zero
_WINDOW = 1024  # samples of a spectrogram's frame
_RANGE_DB = 80.0


def write_audio(path: str | Path, audio: Tensor, sample_rate: int) -> None:
    """Write a 16-bit WAV file atomically; audio beyond full scale is scaled down as a whole, since clipping is audible.

    Args:
        path: The file; missing parent folders are created.
        audio: float [channels, samples], channels 1 or 2.
        sample_rate: Hz.

    Raises:
        UserError: The disk is full, or the folder cannot be written to.
        ValueError: Samples are not finite, or the shape is not [channels, samples].
    """
    if audio.ndim != 2 or not audio.isfinite().all():
        raise ValueError(
            f"audio for {path} must be finite [channels, samples], got shape {list(audio.shape)}"
        )
    audio = audio.detach().float().cpu()
    peak = float(audio.abs().max()) if audio.numel() else 0.0
    samples = (audio / max(peak, 1.0)).T.numpy()  # [samples, channels]
    with atomic_write(Path(path)) as file:
        file.write(encode_wav(samples, sample_rate))


def fits_16_bit(audio: Tensor) -> bool:
    """Return whether 16-bit integers represent every sample exactly."""
    steps = audio * _STEPS_16_BIT
    return bool(((steps == steps.round()) & (steps >= -_STEPS_16_BIT) & (steps < _STEPS_16_BIT)).all())


def write_edit(path: str | Path, audio: Tensor, recording: Tensor, sample_rate: int) -> None:
    """Write an edited recording as a WAV file atomically, and keep its unedited samples bit for bit.

    The file has 16-bit integers if they represent the recording exactly, else 32-bit floats, which keep samples
    beyond full scale; `write_audio` would scale them down.

    Args:
        path: The file.
        audio: float [channels, samples], the recording after editing.
        recording: The recording before editing, of the same shape.
        sample_rate: Hz.

    Raises:
        UserError: The disk is full, or the folder cannot be written to.
    """
    samples = audio.detach().float().cpu().T  # [samples, channels]
    if fits_16_bit(recording):
        steps = (samples * _STEPS_16_BIT).round().clamp(-_STEPS_16_BIT, _STEPS_16_BIT - 1)
        encoded = encode_wav(steps.to(torch.int16).numpy(), sample_rate)
    else:
        encoded = _encode_float_wav(samples.contiguous().numpy(), sample_rate)
    with atomic_write(Path(path)) as file:
        file.write(encoded)


def encode_wav(samples: npt.NDArray[np.float32 | np.int16], sample_rate: int) -> bytes:
    """Encode float32 or int16 [samples] or [samples, channels] as a 16-bit WAV.

    In memory, since libsndfile does not report why it cannot write to a disk.
    """
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, sample_rate, format="WAV", subtype="PCM_16")
    return encoded.getvalue()


def _encode_float_wav(samples: npt.NDArray[np.float32], sample_rate: int) -> bytes:
    """Encode float32 [samples, channels] as a 32-bit float WAV, without the time of day that libsndfile adds."""
    data = samples.astype("<f4").tobytes()
    channels = samples.shape[1]
    layout = struct.pack(
        "<HHIIHHH", 3, channels, sample_rate, 4 * channels * sample_rate, 4 * channels, 32, 0
    )
    chunks = [(b"fmt ", layout), (b"fact", struct.pack("<I", len(samples))), (b"data", data)]
    body = b"WAVE" + b"".join(name + struct.pack("<I", len(chunk)) + chunk for name, chunk in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


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
