"""The summary of the two ways to choose stages, on made-up curves: nothing trains here."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("stages")


def run_of(stages: ModuleType, sampling: str, seed: int, last: float) -> dict[str, Any]:
    curves = {measure: [5.0, last] for measure in stages.MEASURES}
    return {"sampling": sampling, "seed": seed, "steps": [10, 20], "curves": curves}


def test_gain_is_the_mean_over_seeds_of_the_last_difference(stages, tmp_path):
    losses = {("reference", 0): 3.0, ("stratified", 0): 2.8, ("reference", 1): 3.2, ("stratified", 1): 3.1}
    runs = [run_of(stages, sampling, seed, last) for (sampling, seed), last in losses.items()]
    gain = stages.compare(runs)["loss"]
    assert gain["gain"] == pytest.approx(0.15)
    # Differences .2 and .1: deviation .0707, times 12.71 (Student, one degree of freedom), over root 2.
    assert gain["interval"] == pytest.approx(0.635, abs=1e-3)
    assert gain["seeds_ahead"] == 2
    stages.draw(runs, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_committed_results_are_those_of_the_script(stages):
    committed = json.loads((BENCHMARKS / "results" / "stages.json").read_text(encoding="utf-8"))
    assert stages.compare(committed["runs"]) == committed["comparison"]
