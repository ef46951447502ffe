"""Spectrograms as pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

WINDOW = 1024  # samples
RANGE_DB = 80.0


def draw_spectrogram(audio: Tensor, sample_rate: int, path: Path) -> None:
    """Write a spectrogram as a PNG: time (s) by frequency (kHz), with a range of 80 dB below the loudest.

    Args:
        audio: float [channels, samples]; zero-padded to one window.
        sample_rate: Hz.
        path: The file.
    """
    from matplotlib.figure import (
        Figure,  # here, since it takes half a second and validation may have no prompts
    )

    mono = audio.float().cpu().mean(dim=0)
    mono = torch.nn.functional.pad(mono, (0, max(0, WINDOW - len(mono))))
    hop = max(WINDOW // 4, len(mono) // 1024)  # at most about a thousand columns
    power = (
        torch.stft(mono, WINDOW, hop, window=torch.hann_window(WINDOW), return_complex=True).abs().square()
    )
    decibels = 10.0 * torch.log10(power / power.max().clamp(min=1e-10) + 1e-10)  # [F, T]
    figure = Figure(figsize=(7, 2.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(
        decibels.numpy(),
        origin="lower",
        aspect="auto",
        extent=(0, audio.shape[-1] / sample_rate, 0, sample_rate / 2000),
        vmin=-RANGE_DB,
        vmax=0.0,
        cmap="magma",
    )
    axes.set(xlabel="seconds", ylabel="kHz")
    figure.savefig(path, dpi=100)
