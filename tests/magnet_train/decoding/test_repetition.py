"""Where a clip repeats itself: on a whole number of beats, however the features look in between."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from magnet_train.decoding.sliding_window import find_repeat


def beats(period: int, frames: int = 96, dim: int = 8, noise: float = 0.0, seed: int = 0) -> Tensor:
    """Return one bar of random features again and again, with noise of its own in each frame, [1, D, frames]."""
    generator = torch.Generator().manual_seed(seed)
    bar = torch.randn(1, dim, period, generator=generator)
    clip = bar.repeat(1, 1, frames // period + 1)[..., :frames]
    return clip + noise * torch.randn(clip.shape, generator=generator)


@pytest.mark.parametrize("period", [5, 9, 17, 21, 30])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_offset_is_a_whole_number_of_periods(period: int, noise: float) -> None:
    clip = beats(period, noise=noise)
    first = 24
    offset = first + find_repeat(clip[..., :36], clip[..., first:])
    assert int(offset) % period == 0


def test_each_clip_of_a_batch_has_its_own() -> None:
    clips = torch.cat([beats(11), beats(17), torch.zeros(1, 8, 96)])
    offset = 24 + find_repeat(clips[..., :36], clips[..., 24:])
    assert int(offset[0]) % 11 == 0
    assert int(offset[1]) % 17 == 0
    assert int(offset[2]) == 24 + 37 // 2  # silence repeats everywhere: the middle


def test_of_repeats_that_are_as_good_the_latest_is_taken() -> None:
    clip = beats(9)
    assert int(find_repeat(clip[..., :20], clip[..., 9:60])) == 27  # 36 frames on: 9 + 27 + 20 <= 60
