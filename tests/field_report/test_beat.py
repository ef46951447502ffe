"""A22 and A23 of the field report: loops and clips of several windows keep the beat.

tests/magnet_train/apps/quickstart/test_beat.py measures a trained model; these tests are about the decoding alone.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from magnet_train.decoding.sliding_window import close_loop, continue_tokens

BEAT = 21  # frames; neither a window of 64 frames nor half of it is a multiple
FRAMES = 10 * BEAT


class OnTheBeat:
    """A model whose clips start on the beat: it fills token t of its window with t modulo BEAT."""

    def __call__(self, prompt: Tensor, keep: Tensor, progress: object) -> Tensor:
        beat = (torch.arange(prompt.shape[-1]) % BEAT).expand(prompt.shape)
        return torch.where(keep if keep.dim() == 3 else keep[:, None], prompt, beat)


def features(tokens: Tensor) -> Tensor:
    return F.one_hot(tokens[:, 0], BEAT).float().transpose(1, 2)


@pytest.mark.case("A22")
def test_a_loop_keeps_its_beat_at_the_seam() -> None:
    beat = (torch.arange(FRAMES) % BEAT).expand(1, 1, -1)
    for window in (64, FRAMES):
        loop = close_loop(beat, torch.zeros(1, 1, FRAMES, dtype=torch.bool), window, 6, OnTheBeat(), features)
        assert torch.equal(loop, beat)


@pytest.mark.case("A23")
def test_a_long_clip_keeps_its_beat_from_window_to_window() -> None:
    clip = continue_tokens(torch.zeros(1, 1, FRAMES, dtype=torch.int64), 0, 64, OnTheBeat(), features)
    assert torch.equal(clip[0, 0], torch.arange(FRAMES) % BEAT)
