"""The script for a GPU: every case runs at toy size, and goals are compared with results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gpu
import pytest


def record(folder: Path, case: str, **numbers: float) -> None:
    rows = [{"part": "heads and loss", "ratio": 99.0}, {"part": "step", **numbers}]
    (folder / f"gpu_{case}.json").write_text(json.dumps({"cases": [{"rows": rows}]}))


def test_goals_take_the_better_of_eager_and_compiled(tmp_path: Path) -> None:
    record(tmp_path, "generate_500", ours_ms=120.0, naive_ms=400.0)
    record(tmp_path, "generate_500_compiled", ours_ms=80.0, naive_ms=300.0)
    record(tmp_path, "train_500", frames_per_s=100_000.0)
    record(tmp_path, "generate_1500", ours_ms=300.0, naive_ms=1200.0)
    record(tmp_path, "generate_1500_compiled", ours_ms=200.0, naive_ms=500.0, ratio=2.5)
    record(tmp_path, "product_fit", frames_per_s=90_000.0)
    record(tmp_path, "product_generate_1500", ours_ms=310.0)
    measured = {name: value for name, value, *_ in gpu.goals(tmp_path)}
    assert measured == {
        "fit, T 500, B 16": 90_000.0,
        "training step, T 500, B 16": 100_000.0,
        "10 s of sound by Magnet.generate, B 1, 50 steps": None,
        "30 s of sound by Magnet.generate, B 1, 50 steps": 310.0,
        "10 s of tokens, B 1, 50 steps": 80.0,
        "30 s of tokens, B 1, 50 steps": 200.0,
        "64 captions to files, B 16, over the model's own time": None,
        "over eager naive, T 1500, B 1": 6.0,
        "over eager naive, T 1500, B 16": None,
        "over compiled naive, T 1500, B 1": 2.5,
        "over compiled naive, T 1500, B 16": None,
    }


def test_an_interrupted_case_counts_as_not_measured(tmp_path: Path) -> None:
    (tmp_path / "gpu_train_500.json").write_text(json.dumps({"cases": [{"rows": [{"part": "heads"}]}]}))
    assert gpu.whole(tmp_path, "train_500") == {}


@pytest.mark.slow
def test_every_case_runs_at_toy_size(tmp_path: Path) -> None:
    words = [sys.executable, gpu.__file__, "--tiny", "--results", str(tmp_path)]
    output = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    assert "failed" not in output
    assert {file.stem for file in tmp_path.glob("*.json")} == {f"gpu_{case}" for case in gpu.CASES}
    assert all(gpu.whole(tmp_path, case) for case in gpu.CASES)
