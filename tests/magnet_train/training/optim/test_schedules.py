"""Schedules in optimizer steps, and optimizers that resume bit for bit."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

from magnet_train.training.optim import MovingAverage, WarmupCosine, WarmupInverseSquareRoot

OPTIMIZERS = {  # none, one and two moments; `class_path` takes any other
    "sgd": partial(torch.optim.SGD, lr=1e-2),
    "rmsprop": partial(torch.optim.RMSprop, lr=1e-3),
    "adamw": partial(torch.optim.AdamW, lr=1e-2),
}


def test_cosine_in_closed_form():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = WarmupCosine(optimizer, 4, 12)
    rates = []
    for _ in range(14):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:5] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert rates[8] == pytest.approx(1.0)
    assert rates[6] == pytest.approx(1 + math.cos(math.pi / 4))
    assert rates[12:] == pytest.approx([0.0, 0.0], abs=1e-12)


def test_inverse_square_root_in_closed_form():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = WarmupInverseSquareRoot(optimizer, 4, 0)
    rates = []
    for _ in range(17):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert (rates[2], rates[4], rates[16]) == (1.0, 2.0, 1.0)


@pytest.mark.parametrize("schedule", [WarmupCosine, WarmupInverseSquareRoot])
def test_schedules_count_optimizer_steps(schedule, build, train, tmp_path):
    """The same learning rates without and with accumulation, and on both sides of a resume."""
    whole = train(build(schedule=schedule), 8).rates
    assert len(whole) == 8
    assert train(build(schedule=schedule), 8, parts=3).rates == whole
    path = tmp_path / "c.ckpt"
    train(build(schedule=schedule), 8, parts=3, save_at=5, save=path)
    assert train(build(schedule=schedule), 8, parts=3, resume=path, first=15).rates == whole[5:]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resume_is_bit_for_bit(name, build, train, tmp_path):
    path = tmp_path / "c.ckpt"
    whole, rest = build(optimizer=OPTIMIZERS[name]), build(optimizer=OPTIMIZERS[name])
    before = {key: tensor.clone() for key, tensor in whole.state_dict().items()}
    train(whole, 6, parts=2, save_at=3, save=path, callbacks=(MovingAverage(every_n_steps=2),))
    torch.load(path, weights_only=True)
    train(rest, 6, parts=2, first=6, resume=path, callbacks=(MovingAverage(every_n_steps=2),))
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, rest.state_dict()[key]), key
    assert not torch.equal(before["lm.heads"], whole.state_dict()["lm.heads"])
