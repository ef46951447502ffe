"""The model is faster than the naive one by at least 60 % of the goals in benchmarks/README.md; times are not tested."""

from __future__ import annotations

import pytest

from harness.config import BenchmarkConfig
from harness.generation import measure_generation
from harness.training import measure_training

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

BAR = 0.6  # of the goal


def ratios_of(rows, parts: int) -> dict[str, float]:
    """Ratios of the first `parts` parts."""
    found = {}
    for row in rows:
        found[row["part"]] = row["ratio"]
        if len(found) == parts:
            break
    return found


@pytest.mark.parametrize(("frames", "attention"), [(500, 3.0), (1500, 10.0)])
def test_parts_at_the_width_of_the_300m_model(frames, attention):
    config = BenchmarkConfig(frames=frames, rounds=3)
    training = ratios_of(measure_training(config), parts=2)
    generation = ratios_of(measure_generation(config, (1, 1, 1, 1)), parts=2)
    assert generation["restricted attention"] > BAR * attention
    assert training["restricted attention"] > BAR * attention
    assert training["heads and loss"] > BAR * 6.0
    assert generation["heads and sampling"] > BAR * 5.0


def test_a_small_model_as_a_whole():
    config = BenchmarkConfig(dim=256, heads=4, layers=6, frames=500, rounds=3)
    assert ratios_of(measure_training(config), parts=7)["step"] > BAR * 2.0
    assert ratios_of(measure_generation(config, (8, 4, 4, 4)), parts=3)["generation, 20 steps"] > BAR * 2.0


def test_the_quickstart_model_with_codebooks_of_the_usual_size():
    config = BenchmarkConfig(dim=128, heads=4, layers=4, frames=64, batch=16, text_positions=10, rounds=3)
    assert ratios_of(measure_training(config), parts=7)["step"] > BAR * 2.0
    assert ratios_of(measure_generation(config, (4, 2, 2, 2)), parts=3)["generation, 10 steps"] > BAR * 2.0
