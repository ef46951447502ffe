"""Spectra in bands of the mel scale, and the distance between two.

Shapes: audio float [samples], power [bins, frames], log-mel spectra (dB) [MEL_BANDS, frames].
"""

from __future__ import annotations

import torch
from torch import Tensor

MEL_BANDS, MEL_WINDOW = 64, 0.032  # seconds
MEL_RANGE_DB = 60.0  # below the loudest band of the original; what is quieter counts as equally quiet
HOP = 0.01  # seconds


def power_spectrum(audio: Tensor, sample_rate: int, window: float) -> tuple[Tensor, Tensor]:
    """Return the power [bins, frames] in windows of `window` seconds and the frequencies of the bins (Hz)."""
    size = round(window * sample_rate)
    spectrum = torch.stft(
        audio, size, round(HOP * sample_rate), window=torch.hann_window(size), return_complex=True
    )
    return spectrum.abs().square(), torch.linspace(0, sample_rate / 2, size // 2 + 1)


def mel_filters(frequencies: Tensor) -> Tensor:
    """Return triangular bands of equal width on the mel scale, [MEL_BANDS, bins]; at low rates some are empty."""
    mels = 2595 * torch.log10(1 + frequencies / 700)
    centres = torch.linspace(0, float(mels[-1]), MEL_BANDS + 2)[1:-1]
    width = centres[1] - centres[0]
    return (1 - (mels - centres[:, None]).abs() / width).clamp(min=0)


def log_mel(audio: Tensor, sample_rate: int) -> Tensor:
    """Return the level (dB) in each band; at least a window of audio is needed."""
    power, frequencies = power_spectrum(audio, sample_rate, MEL_WINDOW)
    return 10 * torch.log10(mel_filters(frequencies) @ power + 1e-10)


def log_mel_distance(original: Tensor, other: Tensor) -> float:
    """Return the mean absolute difference of two log-mel spectra (dB), the longer one cut to the shorter."""
    frames = min(original.shape[1], other.shape[1])
    floor = original.max() - MEL_RANGE_DB
    pair = [levels[:, :frames].clamp(min=floor) for levels in (original, other)]
    return float((pair[0] - pair[1]).abs().mean())
