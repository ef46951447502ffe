"""Read and write audio files. Shapes: audio float32 [channels, samples], -1..1.

The only file that imports torchaudio, and only to resample: its newest release refuses newer torch.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from magnet_train.errors import UserError


def read_audio(path: str | Path, sample_rate: int, channels: int) -> Tensor:
    """Read wav, flac, ogg or mp3 at the wanted rate and number of channels.

    Args:
        path: The file.
        sample_rate: Wanted samples per second (Hz); the file is resampled to it.
        channels: 1 averages the file's channels, 2 doubles a mono file.

    Returns:
        float32 [channels, samples], at least one sample.

    Raises:
        UserError: The file cannot be read or is empty.
    """
    try:
        samples, file_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(f"{path} cannot be read as audio ({error}); convert it to wav, flac, ogg or mp3.") from error
    audio = torch.from_numpy(np.ascontiguousarray(samples.T))  # [file channels, samples]
    if audio.shape[-1] == 0:
        raise UserError(f"{path} holds no audio; remove it or record it again.")
    if audio.shape[0] != channels:
        audio = audio.mean(dim=0, keepdim=True).expand(channels, -1)
    if file_rate != sample_rate:
        from torchaudio.functional import resample

        audio = resample(audio, file_rate, sample_rate)
    return audio.contiguous()


def write_audio(path: str | Path, audio: Tensor, sample_rate: int) -> None:
    """Write a 16-bit WAV, whole or not at all.

    Args:
        path: The file; its folder exists.
        audio: float [channels, samples]; what leaves -1..1 is scaled down rather than clipped.
        sample_rate: Samples per second (Hz).

    Raises:
        UserError: The file cannot be written.
    """
    path = Path(path)
    audio = audio.detach().float().cpu()
    peak = float(audio.abs().max()) if audio.numel() else 0.0
    samples = (audio / max(peak, 1.0)).numpy().T  # [samples, channels]
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            soundfile.write(file, samples, sample_rate, format="WAV", subtype="PCM_16")
        os.replace(name, path)
    except (OSError, soundfile.SoundFileError) as error:
        raise UserError(f"{path} cannot be written ({error}); make room or choose another folder.") from error
    finally:
        Path(name).unlink(missing_ok=True)
