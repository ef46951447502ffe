"""Batches out of a real DataLoader, with and without workers.

The clips of `make_shards` say in their tokens which clip and frame they are.
"""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datamodules.batches import BatchMaker, TokenBatch, TokenDataset
from datamodules.caption_augmentation import CaptionAugmentation
from datamodules.sampling.order import Purpose
from datamodules.sampling.samplers import SequentialClips
from datamodules.shards.reading import ShardReader
from datamodules.token_datamodule import TokenDataModule
from magnet_train.errors import UserError
from magnet_train.tokens import CodecInfo

MakeShards = Any


def module(folder: Path | str | dict[str, float], **options: Any) -> TokenDataModule:
    """Segments of 1 s are 50 frames."""
    made = TokenDataModule(folder, **{"segment_duration": 1.0, "batch_size": 4, "num_workers": 0, **options})
    made.setup()
    return made


def take(loader: DataLoader[TokenBatch], count: int) -> list[TokenBatch]:
    return list(itertools.islice(loader, count))


def same(first: list[TokenBatch], second: list[TokenBatch]) -> bool:
    return all(
        all(torch.equal(a[name], b[name]) for name in ("tokens", "valid", "noise", "slot"))  # type: ignore[literal-required]
        and (a["text"], a["key"]) == (b["text"], b["key"])
        for a, b in zip(first, second, strict=True)
    )


def test_batch_shapes_and_contents(make_shards: MakeShards) -> None:
    data = module(make_shards(clips=10, frames=lambda n: 30 if n % 2 else 80))
    for batch in take(data.train_dataloader(), 6):
        assert batch["tokens"].shape == (4, 4, 50)
        assert batch["tokens"].dtype == torch.int64
        assert batch["valid"].shape == (4, 50)
        assert batch["valid"].dtype == torch.bool
        assert batch["noise"].shape == (4, 52)
        assert batch["noise"].dtype == torch.float32
        for row in range(4):
            number = int(batch["key"][row].removeprefix("clip"))
            assert batch["text"][row] == f"sound {number}"
            length = 30 if number % 2 else 50
            assert batch["valid"][row].tolist() == [True] * length + [False] * (50 - length)
            tokens = batch["tokens"][row]
            assert (tokens[:, length:] == 64).all()  # card
            assert (tokens[0, :length] == number).all()
            steps = torch.diff(tokens[1, :length]) % 64
            assert (steps == 1).all()  # one piece, in order


def test_slots_count_up(make_shards: MakeShards) -> None:
    batches = take(module(make_shards(clips=10)).train_dataloader(), 5)
    assert torch.cat([batch["slot"] for batch in batches]).tolist() == list(range(20))


def test_crops_differ_between_epochs_and_reach_both_ends(make_shards: MakeShards) -> None:
    data = module(make_shards(clips=2, frames=53), val_fraction=0.0)
    starts = {
        int(batch["tokens"][row, 1, 0]) for batch in take(data.train_dataloader(), 40) for row in range(4)
    }
    assert starts == {0, 1, 2, 3}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(make_shards: MakeShards, workers: int) -> None:
    folder = make_shards(clips=11, frames=80)
    alone = take(module(folder).train_dataloader(), 8)
    loader = module(folder, num_workers=workers).train_dataloader()
    assert same(take(loader, 8), alone)


def test_start_moves_a_loader_that_exists(make_shards: MakeShards) -> None:
    data = module(make_shards(clips=11, frames=80), num_workers=1)
    loader = data.train_dataloader()
    whole = take(loader, 8)
    data.start_at(12)
    assert same(take(loader, 5), whole[3:])


def test_seed_changes_order_crops_and_noise(make_shards: MakeShards) -> None:
    folder = make_shards(clips=11, frames=80)
    first, second = (take(module(folder, seed=seed).train_dataloader(), 3) for seed in (0, 1))
    assert [b["key"] for b in first] != [b["key"] for b in second]
    assert not torch.equal(first[0]["noise"], second[0]["noise"])


def test_noise_is_of_the_slot_alone(make_shards: MakeShards) -> None:
    """Other clips, another length: the same slot draws the same noise."""
    first = take(module(make_shards(name="first")).train_dataloader(), 1)[0]
    other = take(module(make_shards(clips=30, name="other"), segment_duration=0.5).train_dataloader(), 1)[0]
    assert torch.equal(first["noise"][:, :27], other["noise"])


def test_validation_is_every_held_out_clip_once_and_always_the_same(make_shards: MakeShards) -> None:
    data = module(make_shards(clips=40, frames=80), val_fraction=0.25)
    first, second = list(data.val_dataloader()), list(data.val_dataloader())
    assert same(first, second)
    keys = [key for batch in first for key in batch["key"] if key]
    assert len(keys) == len(set(keys)) == 40 - data.train_clips
    trained = {key for batch in take(data.train_dataloader(), 20) for key in batch["key"]}  # an epoch or two
    assert len(trained) == data.train_clips
    assert not trained & set(keys)
    last = first[-1]
    fill = last["slot"] < 0
    assert not last["valid"][fill].any()
    assert (last["tokens"][fill] == 64).all()
    assert data.test_dataloader() is not None


def test_validation_noise_is_not_training_noise(make_shards: MakeShards) -> None:
    data = module(make_shards(clips=20))
    training, validation = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    assert not torch.equal(training["noise"][0], validation["noise"][0])


def test_own_validation_shards(make_shards: MakeShards) -> None:
    data = module(make_shards(clips=5, name="a"), val_shards=make_shards(clips=3, name="b"))
    assert data.train_clips == 5
    assert [key for batch in data.val_dataloader() for key in batch["key"]] == [
        "clip0000",
        "clip0001",
        "clip0002",
        "",
    ]


def test_one_clip_cannot_be_split(make_shards: MakeShards) -> None:
    with pytest.raises(UserError, match=r"holds 1 clip.*val_shards"):
        module(make_shards(clips=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment_duration": 0.001}, "segment_duration"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_workers": -1}, "num_workers"),
        ({"seed": -1}, "seed"),
        ({"val_fraction": 1.0}, "val_fraction"),
    ],
)
def test_bad_numbers(make_shards: MakeShards, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        module(make_shards(), **options)


def test_shards_of_two_codecs_are_refused(make_shards: MakeShards, tmp_path: Path) -> None:
    first, second = make_shards(name="a"), make_shards(name="b")
    manifest = second / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"sha256": "abab', '"sha256": "cdcd', 1))
    with pytest.raises(UserError, match="sha256"):
        TokenDataModule(first, val_shards=second)


def test_a_truncated_shard_stops_at_the_start(make_shards: MakeShards) -> None:
    folder = make_shards()
    path = folder / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(UserError, match="truncated"):
        module(folder)


def test_codec_is_there_before_the_shards_are_opened(make_shards: MakeShards, codec: CodecInfo) -> None:
    folder = make_shards()
    (folder / "index.npy").unlink()
    data = TokenDataModule(folder)
    assert data.codec == codec
    assert data.segment_frames == 500


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_dataset_goes_to_another_process(make_shards: MakeShards, codec: CodecInfo, method: str) -> None:
    folder = make_shards()
    dataset = TokenDataset(
        [ShardReader(folder)], SequentialClips([range(10)]), BatchMaker(codec, 50, 0, Purpose.TRAIN)
    )
    loader = DataLoader(
        dataset, sampler=[np.array([3])], batch_size=None, num_workers=1, multiprocessing_context=method
    )
    assert [batch["key"] for batch in loader] == [["clip0003"]]


def test_pickle_carries_no_index(make_shards: MakeShards, codec: CodecInfo) -> None:
    folder = make_shards(clips=50)
    dataset = TokenDataset(
        [ShardReader(folder)], SequentialClips([range(50)]), BatchMaker(codec, 50, 0, Purpose.TRAIN)
    )
    assert len(pickle.dumps(dataset)) < 1000


def test_reading_shards_needs_neither_torch_nor_webdataset() -> None:
    code = (
        "import sys, datamodules.shards.reading, datamodules.shards.verify; "
        "print(sorted({'torch', 'lightning', 'webdataset'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_mixture_draws_by_weight_and_validates_on_each(make_shards: MakeShards) -> None:
    first, second = str(make_shards(clips=20, name="a")), str(make_shards(clips=12, name="b", frames=70))
    data = module({first: 3, second: 1}, val_fraction=0.2)
    batches = take(data.train_dataloader(), 40)
    texts = [text for batch in batches for text in batch["text"]]
    validated = [key for batch in data.val_dataloader() for key in batch["key"] if key]
    alone = [
        [key for batch in module(folder, val_fraction=0.2).val_dataloader() for key in batch["key"] if key]
        for folder in (first, second)
    ]
    assert validated in (alone[0] + alone[1], alone[1] + alone[0])
    assert not {text for text in texts if int(text.split()[1]) >= 12} & {
        f"sound {int(k[4:])}" for k in alone[0]
    }


def test_a_mixture_of_two_codecs_is_refused(make_shards: MakeShards) -> None:
    first, second = make_shards(name="a"), make_shards(name="b")
    manifest = second / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"sha256": "abab', '"sha256": "cdcd', 1))
    with pytest.raises(UserError, match="sha256"):
        TokenDataModule({str(first): 1, str(second): 1})


def test_no_folder_at_all() -> None:
    with pytest.raises(UserError, match="names no folder"):
        TokenDataModule({})


def test_captions_vary_in_training_only(make_shards: MakeShards) -> None:
    folder = make_shards(clips=20, metadata=lambda number: {"bpm": 100 + number})
    data = module(folder, captions=CaptionAugmentation(merge_metadata=1.0), val_fraction=0.3)
    for batch in take(data.train_dataloader(), 10):
        for key, text in zip(batch["key"], batch["text"], strict=True):
            number = int(key.removeprefix("clip"))
            assert text == f"sound {number}. bpm: {100 + number}"
    assert all("bpm" not in text for batch in data.val_dataloader() for text in batch["text"])
