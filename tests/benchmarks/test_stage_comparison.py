"""The summary of the two stage samplings, on made-up curves, without training."""

from __future__ import annotations

import json
from typing import Any

import pytest
import stages


def run_of(sampling: str, seed: int, last: float) -> dict[str, Any]:
    curves = {measure: [5.0, last] for measure in stages.MEASURES}
    return {"sampling": sampling, "seed": seed, "steps": [10, 20], "curves": curves}


def test_gain_is_the_mean_over_seeds_of_the_last_difference(tmp_path):
    losses = {("reference", 0): 3.0, ("stratified", 0): 2.8, ("reference", 1): 3.2, ("stratified", 1): 3.1}
    runs = [run_of(sampling, seed, last) for (sampling, seed), last in losses.items()]
    gain = stages.compare(runs)["loss"]
    assert gain["gain"] == pytest.approx(0.15)
    # Differences .2 and .1: deviation .0707, times 12.71 (Student, one degree of freedom), over root 2.
    assert gain["interval"] == pytest.approx(0.635, abs=1e-3)
    assert gain["seeds_ahead"] == 2
    stages.draw(runs, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_committed_results_are_those_of_the_script():
    committed = json.loads((stages.RESULTS / "stages.json").read_text(encoding="utf-8"))
    assert stages.compare(committed["runs"]) == committed["comparison"]
