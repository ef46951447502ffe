"""The measurements of the loader's benchmark on small sets."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.shards.index import write_index
from datamodules.shards.manifest import Manifest, ShardEntry, read_manifest, write_manifest
from harness.loader_measurements import measure_pair, measure_plain_read, measure_workers
from harness.loader_opening import measure_opening
from harness.loader_pipelines import (
    OTHERS,
    Clips,
    LoaderConfig,
    decode_by_hand,
    first_shards,
    make_shards,
    ours,
    require_same_clips,
)
from harness.shard_writer import ShardWriter
from magnet_train.errors import UserError
from magnet_train.tokens import CodecInfo

LENGTHS = (20, 40, 60)  # frames of clip 0, 1, 2, 3, ... in turn


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Thirty clips of three lengths in several shards."""
    codec = CodecInfo("tiny", "ab" * 32, sample_rate=16000, channels=1, frame_rate=50.0, n_q=4, card=64)
    random = np.random.default_rng(0)
    with ShardWriter(tmp_path / "shards", codec, shard_bytes=20_000) as writer:
        for number in range(30):
            tokens = random.integers(0, 64, (4, LENGTHS[number % 3]))
            writer.add(f"clip{number:04d}", tokens, {"text": f"sound {number}"})
    return tmp_path / "shards"


def test_clips_of_any_length_are_the_same_in_every_pipeline(mixed):
    assert len(read_manifest(mixed).shards) > 1
    require_same_clips(LoaderConfig(mixed, frames=40, batch=7))


@pytest.mark.parametrize("name", OTHERS)
def test_rows_are_as_long_as_ours(mixed, name):
    config = LoaderConfig(mixed, frames=40, batch=30)
    lengths = {f"clip{number:04d}": LENGTHS[number % 3] for number in range(30)}
    for clips in (next(ours(config)), next(OTHERS[name](config))):
        assert clips.tokens.shape == (30, 4, 40)
        assert clips.tokens.dtype == torch.int64
        padded = (clips.tokens == 64).all(1).sum(-1)  # card stands where there is no audio
        assert padded.tolist() == [max(0, 40 - lengths[key]) for key in clips.keys]


def test_padding_is_not_counted(mixed):
    assert LoaderConfig(mixed, frames=40, batch=8).codes_per_clip == 4 * (20 + 40 + 40) / 3


def _shifted(config: LoaderConfig) -> Iterator[Clips]:
    for clips in decode_by_hand(config):
        clips.tokens[0, 0, 0] += 1
        yield clips


def _renamed(config: LoaderConfig) -> Iterator[Clips]:
    for clips in decode_by_hand(config):
        yield clips._replace(keys=[f"{key}x" for key in clips.keys])


def _other_words(config: LoaderConfig) -> Iterator[Clips]:
    for clips in decode_by_hand(config):
        yield clips._replace(texts=["something else", *clips.texts[1:]])


@pytest.mark.parametrize("wrong", [_shifted, _renamed, _other_words])
def test_other_contents_stop_the_benchmark(mixed, monkeypatch, wrong):
    monkeypatch.setitem(OTHERS, "webdataset, decoded by hand", wrong)
    with pytest.raises(UserError, match="decoded by hand gives another clip clip0000"):
        require_same_clips(LoaderConfig(mixed, frames=40, batch=30))


def test_only_the_first_shards_are_used(mixed, tmp_path):
    shards = read_manifest(mixed).shards
    few = first_shards(mixed, shards[0].samples, tmp_path / "few")
    assert [shard.file for shard in read_manifest(few).shards] == [shards[0].file]
    more = first_shards(mixed, shards[0].samples + 1, tmp_path / "more")
    assert len(read_manifest(more).shards) == 2
    require_same_clips(LoaderConfig(more, frames=40, batch=7))
    assert first_shards(mixed, 30, tmp_path / "all") == mixed
    assert first_shards(mixed, 1000, tmp_path / "beyond") == mixed


def test_made_up_clips_are_made_once(tmp_path):
    folder = make_shards(tmp_path / "made", 5, 12)
    written = (folder / "manifest.json").stat().st_mtime_ns
    assert make_shards(folder, 5, 12) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == written
    with pytest.raises(UserError, match="holds shards already"):
        make_shards(folder, 5, 13)


def test_numbers_are_medians_within_their_spread(mixed):
    config = LoaderConfig(mixed, frames=40, batch=8)
    pair = measure_pair(config, "webdataset, .decode()", rounds=3, turn=40)
    assert pair["low"] <= pair["ratio"] <= pair["high"]
    assert pair["rounds"] == 3
    plain = measure_plain_read(config, rounds=3, turn=40)
    assert 0 < plain["low"] <= plain["share"] <= plain["high"]
    alone = measure_workers(config, 0, rounds=2, turn=40)
    assert alone["workers_us_per_clip"] is None
    assert alone["low"] <= alone["clips_per_s"] <= alone["high"]
    assert alone["codes_per_s"] == pytest.approx(alone["clips_per_s"] * config.codes_per_clip)


@pytest.mark.filterwarnings("error:This DataLoader will create")
def test_workers_are_measured_and_stopped(mixed, monkeypatch):
    # fewer cores than workers: PyTorch would warn; torch 2.11 asks elsewhere
    monkeypatch.setattr("torch._utils.cpu_count", lambda: 1, raising=False)
    before = multiprocessing.active_children()
    row = measure_workers(LoaderConfig(mixed, frames=40, batch=8), 2, rounds=2, turn=2000)
    assert row["workers_us_per_clip"] > 0
    assert set(multiprocessing.active_children()) <= set(before)


@pytest.mark.slow
def test_the_memory_of_a_worker_does_not_grow_with_the_clips(tmp_path):
    """An index of a million rows is mapped, not copied: the unshared memory of a worker grows by less than 10 MB."""
    own = {}
    for times in (1, 1000):
        folder = make_shards(tmp_path / str(times), 1000, frames=50)
        manifest = read_manifest(folder)
        (shard,) = manifest.shards
        rows = np.tile(np.load(folder / "index.npy"), times)  # the same clips again and again
        entry = ShardEntry(shard.file, shard.bytes, len(rows), len(rows) * 50, shard.sha256)
        write_manifest(folder, Manifest(manifest.codec, (entry,), write_index(folder, rows)))
        opening = measure_opening(folder, 1.0)
        assert opening["opened_s"] > 0
        assert opening["first_batch_s"] > 0
        own[times] = opening["worker_own_mb"]
    assert own[1000] - own[1] < 10, own


def test_epochs_follow_each_other_without_end(mixed):
    config = LoaderConfig(mixed, frames=40, batch=30)
    first, second = itertools.islice(ours(config), 2)
    assert sorted(first.keys) == sorted(second.keys)
    assert first.keys != second.keys
