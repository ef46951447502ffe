"""Pictures of a clip: how it sounds, and in which order its tokens were found.

Shapes: audio float [channels, samples]; K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from magnet_train.callbacks.spectrogram import WINDOW, draw_spectrogram

GIVEN = (0.6, 0.6, 0.6, 1.0)  # grey: no colour of the scale


def draw_sound(audio: Tensor, path: Path) -> None:
    """Write the spectrogram as a PNG; a clip shorter than its window is followed by silence."""
    draw_spectrogram(torch.nn.functional.pad(audio, (0, max(0, WINDOW - audio.shape[-1]))), path)


def draw_order(order: Tensor, steps: Sequence[int], path: Path) -> None:
    """Write a PNG of K x T pixels, coarse codebook on top: light was found first, dark last, grey was given.

    Args:
        order: int64 [K, T], the step from 1 on that found a token, over all codebooks; 0 where it was given.
        steps: How many there were for each codebook.
        path: File to write.
    """
    import matplotlib.image  # here, as for the spectrogram: half a second

    before = torch.tensor(steps).cumsum(0)[:, None] - torch.tensor(steps)[:, None]  # [K, 1]
    late = (order - before - 1) / (torch.tensor(steps)[:, None] - 1).clamp(
        min=1
    )  # [K, T], 0..1 in each codebook
    pixels = matplotlib.colormaps["viridis_r"](late.clamp(0, 1).numpy())  # [K, T, 4]
    pixels[(order == 0).numpy()] = GIVEN
    matplotlib.image.imsave(path, pixels)
