"""bfloat16 is faster than float32 by at least 60 % of the goals, where the hardware multiplies it faster."""

from __future__ import annotations

import precision
import precision_quality
import pytest
import torch

from harness.config import BenchmarkConfig
from harness.timing import Clock, gemm_peak
from magnet_train.models.precision import has_fast_bfloat16

BAR = 0.6  # of the goal


def clock_for(goal: float) -> Clock:
    """Skip where a plain matrix product does not gain as much, now that other work may share the machine."""
    clock = Clock(torch.device("cpu"))
    if not has_fast_bfloat16(clock.device):
        pytest.skip("this CPU does not multiply bfloat16 faster than float32: its ratios are left out")
    gain = gemm_peak(clock, torch.bfloat16) / gemm_peak(clock, torch.float32)
    if gain < goal:
        pytest.skip(
            f"a matrix product in bfloat16 is {gain:.1f} times as fast here, below the goal of {goal}"
        )
    return clock


@pytest.mark.slow
def test_generation_at_the_width_of_the_300m_model(one_thread):
    config = BenchmarkConfig(layers=6, rounds=3)
    clock = clock_for(4.0)
    with torch.no_grad():
        found = precision.generation(config, clock, (2, 1, 1, 1), naive=False)
    assert found["ratio"] > BAR * 4.0, found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "goal"),
    [
        (BenchmarkConfig(layers=4, rounds=3), 3.2),
        (BenchmarkConfig(dim=256, heads=4, layers=6, batch=2, rounds=3), 2.5),
    ],
    ids=["1024", "256"],
)
def test_a_training_step(config, goal, one_thread):
    found = precision.training(config, clock_for(goal))
    assert found["ratio"] > BAR * goal, found


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
