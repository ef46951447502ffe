"""The summary of the ablations, on made-up numbers: nothing trains here."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness.quickstart_world import whole_clips
from magnet_train.apps.quickstart.captions import Caption, Event

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ablations.py"


@pytest.fixture(scope="module")
def ablations() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ablations", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(variant: str, seed: int, whole: float, loss: float) -> dict[str, Any]:
    return {"variant": variant, "seed": seed, "measures": {"seen_whole": whole, "val_loss_codebook_1": loss}}


def test_a_variant_has_mean_and_spread_and_one_seed_has_no_spread(ablations: ModuleType) -> None:
    summary = ablations.summarise(
        [_run("base", 0, 0.2, 1.0), _run("base", 1, 0.4, 1.0), _run("words", 0, 1, 1)]
    )
    assert summary["variants"]["base"]["seen_whole"]["mean"] == pytest.approx(0.3)
    assert summary["variants"]["base"]["seen_whole"]["std"] == pytest.approx(math.sqrt(0.02))
    assert summary["variants"]["words"]["seen_whole"] == {"mean": 1, "std": None}
    assert summary["ablations"] == {}


def test_seeds_are_paired_whatever_the_order_of_runs(ablations: ModuleType) -> None:
    base = [_run("base", seed, 0.5 + seed / 10, 1.0) for seed in range(3)]
    full = [_run("full_context", seed, 0.4 + seed / 10, 1.0) for seed in (2, 0, 1)]
    found = ablations.summarise([*full, *base])["ablations"]["restricted context"]["seen_whole"]
    assert found["gain"] == pytest.approx(0.1)
    assert found["interval"] == pytest.approx(0.0, abs=1e-9)
    assert found["seeds_in_direction"] == 3


def test_losses_of_two_span_lengths_are_not_compared(ablations: ModuleType) -> None:
    runs = [_run(variant, 0, 0.5, 1.0) for variant in ("base", "full_context", "span_1")]
    found = ablations.summarise(runs)["ablations"]
    assert set(found["spans of 3"]) == {"seen_whole"}
    assert set(found["restricted context"]) == {"seen_whole", "val_loss_codebook_1"}


def test_a_lower_loss_and_a_higher_accuracy_win(ablations: ModuleType) -> None:
    assert ablations.compare([1.0, 1.1], [1.2, 1.3], "val_loss_codebook_0")["direction_holds"]
    assert not ablations.compare([0.1, 0.2], [0.3, 0.3], "seen_whole")["direction_holds"]


def test_noise_is_the_95_percent_interval_of_student(ablations: ModuleType) -> None:
    # Differences .1, .2, .3: standard error .1 / sqrt(3), times 4.30.
    found = ablations.compare([0.1, 0.2, 0.3], [0.0, 0.0, 0.0], "seen_whole")
    assert found["interval"] == pytest.approx(0.248, abs=1e-3)
    assert found["direction_holds"]
    assert not found["beyond_noise"]
    assert ablations.compare([0.19, 0.2, 0.21], [0.0, 0.0, 0.0], "seen_whole")["beyond_noise"]


def test_a_clip_counts_only_if_all_of_its_caption_is_right() -> None:
    saw, noise = Event("c4", "saw", "slow"), Event("", "noise", "fast")
    captions = [Caption("saw", (saw,)), Caption("saw", (saw,)), Caption("noise", (noise,))]
    heard = [[saw], [Event("c4", "saw", "fast")], [noise]]
    assert whole_clips(captions, heard) == pytest.approx(2 / 3)
