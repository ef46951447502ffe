"""bfloat16 is faster than float32 by at least 60 % of the goals, where the hardware multiplies it faster."""

from __future__ import annotations

import precision
import precision_quality
import pytest
import torch

from harness.config import BenchmarkConfig
from harness.timing import Clock
from magnet_train.models.precision import has_fast_bfloat16

BAR = 0.6  # of the goal


@pytest.fixture
def clock(one_thread) -> Clock:
    device = torch.device("cpu")
    if not has_fast_bfloat16(device):
        pytest.skip("this CPU does not multiply bfloat16 faster than float32, so its ratios are left out")
    return Clock(device)


@pytest.mark.slow
def test_generation_at_the_width_of_the_300m_model(clock):
    config = BenchmarkConfig(layers=6, rounds=3)
    with torch.no_grad():
        found = precision.generation(config, clock, (2, 1, 1, 1), naive=False)
    assert found["ratio"] > BAR * 4.0, found


@pytest.mark.slow
def test_a_training_step_at_the_width_of_the_300m_model(clock):
    found = precision.training(BenchmarkConfig(layers=4, rounds=3), clock)
    assert found["ratio"] > BAR * 3.2, found


@pytest.mark.slow
def test_a_training_step_of_a_small_model(clock):
    config = BenchmarkConfig(dim=256, heads=4, layers=6, batch=2, rounds=3)
    found = precision.training(config, clock)
    assert found["ratio"] > BAR * 2.5, found


def test_a_gap_counts_where_it_exceeds_the_spread_over_seeds():
    wide = [[5.0, 3.0], [5.0, 3.2], [5.3, 3.4]]
    near = [[value + 0.1 for value in curve] for curve in wide]
    found = precision_quality.compare({"32-true": wide, "bf16-mixed": near})
    assert found["gap"] == pytest.approx(0.1)
    assert found["seed_std"] == pytest.approx(0.2)
    assert found["within_noise"] is True
    far = [[value + 0.3 for value in curve] for curve in wide]
    assert precision_quality.compare({"32-true": wide, "bf16-mixed": far})["within_noise"] is False
    assert precision_quality.compare({"32-true": wide[:1], "bf16-mixed": near[:1]})["within_noise"] is None
