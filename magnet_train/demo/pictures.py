"""Pictures of a clip: how it sounds, and in which order its tokens were found.

Shapes: audio float [channels, samples]; K codebooks, T frames.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from magnet_train.callbacks.spectrogram import WINDOW, draw_spectrogram


def draw_sound(audio: Tensor, path: Path) -> None:
    """Write the spectrogram as a PNG; a clip shorter than its window is followed by silence."""
    draw_spectrogram(torch.nn.functional.pad(audio, (0, max(0, WINDOW - audio.shape[-1]))), path)
