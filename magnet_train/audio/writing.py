"""Write WAV files, whole or not at all.

Shapes: audio float32 [channels, samples], full scale -1..1.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from torch import Tensor

from magnet_train.storage.atomic_io import atomic_write

_STEPS_16_BIT = 2**15  # on each side of zero


def write_audio(path: str | Path, audio: Tensor, sample_rate: int) -> None:
    """Write a 16-bit WAV file, whole or not at all.

    Audio beyond full scale is turned down as a whole, since clipping would be heard.

    Args:
        path: The file; folders above it are made.
        audio: float [channels, samples], channels 1 or 2.
        sample_rate: Its rate (Hz).

    Raises:
        UserError: There is no room, or the folder cannot be written to.
        ValueError: Samples are not numbers, or the shape is not [channels, samples].
    """
    if audio.ndim != 2 or not audio.isfinite().all():
        raise ValueError(
            f"audio for {path} must be finite [channels, samples], got shape {list(audio.shape)}"
        )
    path = Path(path)
    audio = audio.detach().float().cpu()
    peak = float(audio.abs().max()) if audio.numel() else 0.0
    samples = (audio / max(peak, 1.0)).T.numpy()  # [samples, channels]
    with atomic_write(path) as file:
        file.write(encode_wav(samples, sample_rate))


def fits_16_bit(audio: Tensor) -> bool:
    """Tell whether 16 bits hold every sample exactly."""
    steps = audio * _STEPS_16_BIT
    return bool(((steps == steps.round()) & (steps >= -_STEPS_16_BIT) & (steps < _STEPS_16_BIT)).all())


def write_edit(path: str | Path, audio: Tensor, recording: Tensor, sample_rate: int) -> None:
    """Write a WAV of an edited recording, whole or not at all, in which what was not edited stays as it is.

    It has 16 bits where they hold the recording exactly, else 32-bit floats: those keep samples beyond full scale,
    where `write_audio` would turn all of it down.

    Args:
        path: The file.
        audio: float [channels, samples], the recording with a region made anew.
        recording: What it was, of that shape.
        sample_rate: Its rate (Hz).

    Raises:
        UserError: There is no room, or the folder cannot be written to.
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

    Not straight into a file: libsndfile would not say why it could not write to a disk.
    """
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, sample_rate, format="WAV", subtype="PCM_16")
    return encoded.getvalue()


def _encode_float_wav(samples: npt.NDArray[np.float32], sample_rate: int) -> bytes:
    """Encode float32 [samples, channels] as a 32-bit float WAV; libsndfile would put the time of day into it."""
    data = samples.astype("<f4").tobytes()
    channels = samples.shape[1]
    layout = struct.pack(
        "<HHIIHHH", 3, channels, sample_rate, 4 * channels * sample_rate, 4 * channels, 32, 0
    )
    chunks = [(b"fmt ", layout), (b"fact", struct.pack("<I", len(samples))), (b"data", data)]
    body = b"WAVE" + b"".join(name + struct.pack("<I", len(chunk)) + chunk for name, chunk in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body
