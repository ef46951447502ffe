"""A picture of a sound, for people who look at a run before they listen."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

WINDOW = 1024  # samples
RANGE_DB = 80.0


def draw_spectrogram(audio: Tensor, path: Path) -> None:
    """Write a PNG: time to the right, frequency up to half the sample rate, 80 dB below the loudest is dark.

    Args:
        audio: float [channels, samples].
        path: File to write.
    """
    import matplotlib.image  # here: half a second, and validation may have no prompts

    mono = audio.float().mean(dim=0)
    window = torch.hann_window(WINDOW)
    hop = max(WINDOW // 4, len(mono) // 1024)  # at most about a thousand columns
    power = torch.stft(mono, WINDOW, hop, window=window, return_complex=True).abs().square()  # [F, T]
    decibels = 10.0 * torch.log10(power / power.max().clamp(min=1e-10) + 1e-10)
    shown = decibels.clamp(min=-RANGE_DB).flip(0)
    matplotlib.image.imsave(path, shown.numpy(), vmin=-RANGE_DB, vmax=0.0, cmap="magma")
