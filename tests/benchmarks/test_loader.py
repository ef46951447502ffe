"""The loader is faster than webdataset by at least 60 % of the goals in benchmarks/README.md; times are not tested."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.loader_measurements import measure_pair
from harness.loader_pipelines import LoaderConfig, make_shards, require_same_clips

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "loader.json"
BAR = 0.6  # of the goal: a shared machine is noisy
GOALS = {"webdataset, .decode()": 4.0, "webdataset, decoded by hand": 2.0}  # at batch 72
NEEDED = 2900  # ten-second clips a second that eight H200 need, a computed bound

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> LoaderConfig:
    return LoaderConfig(make_shards(tmp_path_factory.mktemp("clips"), 1024, 500), frames=500, batch=72)


def test_all_pipelines_give_the_same_clips(config):
    require_same_clips(config)


@pytest.mark.parametrize("other", GOALS)
def test_ratios(config, other):
    measured = measure_pair(config, other, rounds=5, turn=720)
    assert measured["ratio"] >= BAR * GOALS[other], measured


def test_committed_results_reach_the_goals():
    (case,) = json.loads(RESULTS.read_text())["cases"]
    assert case["same_clips"]
    ratios = {row["other"]: row["ratio"] for row in case["ratios"] if row["batch"] == 72}
    assert ratios.keys() == GOALS.keys()
    assert all(ratios[other] >= goal for other, goal in GOALS.items())
    assert {row["workers"]: row["clips_per_s"] for row in case["workers"]}[4] >= NEEDED
