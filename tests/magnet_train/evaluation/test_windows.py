"""Clips of any length become windows: nothing twice, nothing at random, and a broken clip takes no other along."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from magnet_train.errors import UserError
from magnet_train.evaluation import as_noise, cut, through_windows


@pytest.mark.parametrize(
    ("samples", "lengths"),
    [(3, [3]), (10, [10]), (14, [10]), (15, [10, 5]), (20, [10, 10]), (24, [10, 10]), (27, [10, 10, 7])],
)
@pytest.mark.parametrize("block", [1, 4, 10, 100])
def test_windows_follow_one_another(samples, lengths, block):
    audio = torch.arange(samples, dtype=torch.float32)
    windows = list(cut(audio[None].split(block, dim=1), 10))
    assert [len(window) for window in windows] == lengths
    assert torch.equal(torch.cat(windows), audio[: sum(lengths)])


def test_noise_is_as_long_and_as_loud_and_of_its_clip_alone():
    blocks = [torch.full((1, 40_000), 0.5), torch.full((1, 40_000), 0.01), torch.zeros(1, 7)]
    noise = list(as_noise(blocks, "a.wav", seed=1))
    assert [block.shape[-1] for block in noise] == [40_000, 40_000, 7]
    assert [float(block.square().mean().sqrt()) for block in noise[:2]] == pytest.approx(
        [0.5, 0.01], rel=0.02
    )
    assert not noise[2].any()
    again, other_clip, other_seed = (
        next(as_noise(blocks, *which)) for which in (("a.wav", 1), ("b.wav", 1), ("a.wav", 2))
    )
    assert torch.equal(noise[0], again)
    assert not torch.equal(noise[0], other_clip)
    assert not torch.equal(noise[0], other_seed)
    assert abs(float(torch.corrcoef(torch.stack([noise[0], noise[1]]))[0, 1])) < 0.03  # white, not repeated


class Counter:
    """A model that says of each window its first sample, and how many windows it was given."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, windows: Sequence[torch.Tensor]) -> np.ndarray:
        self.batches.append(len(windows))
        return np.array([[float(window[0])] for window in windows])


def breaks_after(blocks: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    yield from blocks
    raise UserError("b.wav is damaged.")


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_each_clip_gets_its_own_windows_back(batch_size):
    audio = [torch.arange(25.0), torch.arange(100.0, 105.0), torch.arange(200.0, 240.0)]
    model, done = Counter(), []
    found = through_windows([[clip] for clip in audio], model, 10, batch_size, lambda: done.append(1))
    assert [rows[:, 0].tolist() for rows in found] == [[0, 10, 20], [100], [200, 210, 220, 230]]
    assert max(model.batches) <= batch_size
    assert sum(model.batches) == 8
    assert len(done) == 3


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_a_clip_that_breaks_off_is_left_out_alone(batch_size):
    clips = [[torch.arange(20.0)], breaks_after([torch.arange(15.0)]), [torch.arange(50.0, 60.0)]]
    first, broken, last = through_windows(clips, Counter(), 10, batch_size)
    assert first[:, 0].tolist() == [0, 10]
    assert isinstance(broken, UserError)
    assert last[:, 0].tolist() == [50]
