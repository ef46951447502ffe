"""The summary of the ablations, on made-up numbers, without training."""

from __future__ import annotations

import math
from typing import Any

import ablations
import pytest

from harness.quickstart_world import whole_clips
from harness.tones.captions import Caption, Event


def _run(variant: str, seed: int, whole: float, loss: float) -> dict[str, Any]:
    return {"variant": variant, "seed": seed, "measures": {"seen_whole": whole, "val_loss_codebook_1": loss}}


def test_a_variant_has_mean_and_spread_and_one_seed_has_no_spread() -> None:
    summary = ablations.summarise(
        [_run("base", 0, 0.2, 1.0), _run("base", 1, 0.4, 1.0), _run("words", 0, 1, 1)]
    )
    assert summary["variants"]["base"]["seen_whole"]["mean"] == pytest.approx(0.3)
    assert summary["variants"]["base"]["seen_whole"]["std"] == pytest.approx(math.sqrt(0.02))
    assert summary["variants"]["words"]["seen_whole"] == {"mean": 1, "std": None}
    assert summary["ablations"] == {}


def test_seeds_are_paired_whatever_the_order_of_runs() -> None:
    base = [_run("base", seed, 0.5 + seed / 10, 1.0) for seed in range(3)]
    full = [_run("full_context", seed, 0.4 + seed / 10, 1.0) for seed in (2, 0, 1)]
    found = ablations.summarise([*full, *base])["ablations"]["restricted context"]["seen_whole"]
    assert found["gain"] == pytest.approx(0.1)
    assert found["interval"] == pytest.approx(0.0, abs=1e-9)
    assert found["seeds_in_direction"] == 3


def test_losses_of_two_span_lengths_are_not_compared() -> None:
    runs = [_run(variant, 0, 0.5, 1.0) for variant in ("base", "full_context", "span_1")]
    found = ablations.summarise(runs)["ablations"]
    assert set(found["spans of 3"]) == {"seen_whole"}
    assert set(found["restricted context"]) == {"seen_whole", "val_loss_codebook_1"}


def test_a_lower_loss_and_a_higher_accuracy_win() -> None:
    assert ablations.compare([1.0, 1.1], [1.2, 1.3], "val_loss_codebook_0")["direction_holds"]
    assert not ablations.compare([0.1, 0.2], [0.3, 0.3], "seen_whole")["direction_holds"]


def test_noise_is_the_95_percent_interval_of_student() -> None:
    # Differences .1, .2, .3: standard error .1 / sqrt(3), times 4.30.
    found = ablations.compare([0.1, 0.2, 0.3], [0.0, 0.0, 0.0], "seen_whole")
    assert found["interval"] == pytest.approx(0.248, abs=1e-3)
    assert found["direction_holds"]
    assert not found["beyond_noise"]
    assert ablations.compare([0.19, 0.2, 0.21], [0.0, 0.0, 0.0], "seen_whole")["beyond_noise"]


def test_a_clip_counts_only_if_all_of_its_caption_is_right() -> None:
    saw, noise = Event("c4", "saw", "slow"), Event("", "noise", "fast")
    captions = [Caption("saw", (saw,)), Caption("saw", (saw,)), Caption("noise", (noise,))]
    found = [[saw], [Event("c4", "saw", "fast")], [noise]]
    assert whole_clips(captions, found) == pytest.approx(2 / 3)
