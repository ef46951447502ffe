"""bfloat16 is faster than float32 by at least 60 % of the goals, or of what the hardware itself gains."""

from __future__ import annotations

import precision
import precision_quality
import pytest
import torch

from harness.config import BenchmarkConfig
from harness.timing import Clock, gemm_peak
from magnet_train.models.precision import has_fast_bfloat16


@pytest.fixture
def clock(one_thread) -> Clock:
    device = torch.device("cpu")
    if not has_fast_bfloat16(device):
        pytest.skip("this CPU does not multiply bfloat16 faster than float32, so its ratios are left out")
    return Clock(device)


def bar(goal: float, clock: Clock) -> float:
    """Return what a ratio has to reach: of the goal, or of what a plain matrix product gains here if that is less."""
    return 0.6 * min(goal, gemm_peak(clock, torch.bfloat16) / gemm_peak(clock, torch.float32))


@pytest.mark.slow
def test_generation_at_the_width_of_the_300m_model(clock):
    config = BenchmarkConfig(layers=4, rounds=3)
    with torch.no_grad():
        found = precision.generation(config, clock, (2, 1, 1, 1), naive=False)
    assert found["ratio"] > bar(4.0, clock), found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "goal"),
    [
        (BenchmarkConfig(layers=2, rounds=3), 3.2),
        (BenchmarkConfig(dim=256, heads=4, layers=6, batch=2, rounds=3), 2.5),
    ],
    ids=["1024", "256"],
)
def test_a_training_step(config, goal, clock):
    found = precision.training(config, clock)
    assert found["ratio"] > bar(goal, clock), found


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
