"""Read and write audio files. The only file that imports torchaudio (for resampling).

Shapes: audio float32 [channels, samples], full scale -1..1.
"""

from __future__ import annotations

import contextlib
import os
from fractions import Fraction
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from magnet_train.errors import UserError

# Sample rates whose ratio has larger terms get the nearest ratio with smaller ones: the filter bank has
# target x source taps, gigabytes for 22051 -> 32000 Hz. The pitch moves by less than a cent.
_LARGEST_RATIO_TERM = 2000
_LOWEST_RATE = 100  # Hz; below it the ratio would round to zero, and nothing could be heard


def read_audio(path: str | Path, sample_rate: int, channels: int) -> Tensor:
    """Read a wav, flac, ogg or mp3 file as a model wants it.

    Args:
        path: The file; any rate, any number of channels.
        sample_rate: Rate of the answer (Hz).
        channels: 1 (the mean of all) or 2 (mono doubled; of more than two, the first: front left and right).

    Returns:
        float32 [channels, samples].

    Raises:
        UserError: The file is absent, is no audio, has no samples, samples that are no numbers or a rate
            that is none of audio.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no audio file {path}; check the path.")
    try:
        samples, file_rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, MemoryError, TypeError) as error:  # a lying header; headerless .raw
        raise UserError(
            f"cannot read {path} as audio ({_reason(error)}); convert it to wav, flac, ogg or mp3."
        ) from error
    if file_rate < _LOWEST_RATE:
        raise UserError(f"{path} says it has {file_rate} samples a second; correct its sample rate.")
    audio = torch.from_numpy(samples.T.copy())
    if not audio.shape[1]:
        raise UserError(f"{path} holds no audio samples; remove it or record it again.")
    if not audio.isfinite().all():
        raise UserError(f"{path} holds samples that are not numbers; render it again.")
    return resample(_with_channels(audio, channels), file_rate, sample_rate)


def resample(audio: Tensor, source_rate: int, target_rate: int) -> Tensor:
    """Change the rate of audio.

    Args:
        audio: float32 [..., samples].
        source_rate: Rate of `audio` (Hz).
        target_rate: Rate of the answer (Hz).

    Returns:
        float32 [..., samples * target_rate / source_rate, rounded up].
    """
    if source_rate == target_rate:
        return audio
    from torchaudio.functional import resample as windowed_sinc

    ratio = Fraction(source_rate, target_rate).limit_denominator(_LARGEST_RATIO_TERM)
    resampled: Tensor = windowed_sinc(audio, ratio.numerator, ratio.denominator)
    return resampled


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
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(str(partial), samples, sample_rate, format="WAV", subtype="PCM_16")
        os.replace(partial, path)
    except (OSError, soundfile.SoundFileError) as error:
        raise UserError(
            f"cannot write {path} ({_reason(error)}); make room or choose another folder."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _with_channels(audio: Tensor, channels: int) -> Tensor:
    if channels not in (1, 2):
        raise ValueError(f"channels must be 1 or 2, got {channels}")
    if audio.shape[0] == channels:
        return audio
    if channels == 1:
        return audio.mean(dim=0, keepdim=True)
    return audio.expand(2, -1) if audio.shape[0] == 1 else audio[:2]


def _reason(error: Exception) -> str:
    """Return libsndfile's words without its file name and full stop."""
    return str(error).rsplit(": ", 1)[-1].rstrip(".")
