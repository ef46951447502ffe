"""The loader's benchmark on a small set: equal contents, and ratios well above what a regression would leave."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from datamodules.index import write_index
from datamodules.manifest import Manifest, ShardEntry, read_manifest, write_manifest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "loader.py"
MARGIN = 0.6  # of the targets: a shared machine is noisy


@pytest.fixture(scope="module")
def loader() -> ModuleType:
    spec = importlib.util.spec_from_file_location("loader_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shards(loader: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = loader.make_shards(tmp_path_factory.mktemp("clips"), 1024)
    return folder


def test_all_paths_give_the_same(loader: ModuleType, shards: Path) -> None:
    loader.require_equal(shards, 1024)


def test_other_contents_stop_the_benchmark(
    loader: ModuleType, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(folder: Path, batch: int = 72):  # type: ignore[no-untyped-def]
        for made in loader.tuned_decode(folder, batch):
            made.tokens[0, 0, 0] += 1
            yield made

    monkeypatch.setitem(loader.OTHERS, "tuned_decode", wrong)
    with pytest.raises(SystemExit, match="tuned_decode gives another clip"):
        loader.require_equal(shards, 1024)


@pytest.mark.parametrize("other", ["default_decode", "tuned_decode"])
def test_ratios(loader: ModuleType, shards: Path, other: str) -> None:
    measured = loader.measure_ratio(shards, other, rounds=5, clips=720)
    assert measured["ratio"] >= MARGIN * loader.TARGETS[other], measured


def test_results_have_all_that_was_promised(loader: ModuleType) -> None:
    results = json.loads((SCRIPT.parent / "results" / "loader.json").read_text())
    assert results["equal"]
    for name, target in loader.TARGETS.items():
        assert results["one_core"][name]["ratio"] >= target
    assert results["by_workers"]["4"]["clips_per_s"] >= loader.NEEDED


@pytest.mark.slow
def test_the_memory_of_a_worker_does_not_grow_with_the_clips(loader: ModuleType, tmp_path: Path) -> None:
    """An index of a million rows is mapped, not copied: what a worker has to itself stays within 10 MB."""
    own = {}
    for times in (1, 1000):
        folder = loader.make_shards(tmp_path / str(times), 1000, frames=50)
        manifest = read_manifest(folder)
        (shard,) = manifest.shards
        rows = np.tile(np.load(folder / "index.npy"), times)  # the same clips again and again
        entry = ShardEntry(shard.file, shard.bytes, len(rows), len(rows) * 50, shard.sha256)
        write_manifest(folder, Manifest(manifest.codec, (entry,), write_index(folder, rows)))
        own[times] = loader.measure_opening(folder, 1.0)["worker_own_mb"]
    assert own[1000] - own[1] < 10, own
