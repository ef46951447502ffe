"""A damaged clip stops the run with its shard and key, or another one stands in for it."""

from __future__ import annotations

import itertools
import logging
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.batches import TokenBatch
from datamodules.streaming_datamodule import StreamingDataModule
from datamodules.token_datamodule import TokenDataModule
from magnet_train.errors import UserError


def damage(folder: Path, *keys: str) -> None:
    """Put an impossible token into each of the clips, as a failing disk might."""
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            places = [
                tar.getmember(f"{key}.npy").offset_data for key in keys if f"{key}.npy" in tar.getnames()
            ]
        with path.open("r+b") as file:
            for place in places:
                file.seek(place + 128)
                file.write(b"\xff\x7f")


def module(folder: Path, **options: Any) -> TokenDataModule:
    made = TokenDataModule(
        folder, segment_duration=1.0, batch_size=4, num_workers=0, val_fraction=0.1, **options
    )
    made.setup()
    return made


def take(data: TokenDataModule, count: int) -> list[TokenBatch]:
    return [
        data.on_after_batch_transfer(batch, 0) for batch in itertools.islice(data.train_dataloader(), count)
    ]


def rows(batches: list[TokenBatch]) -> dict[int, tuple[str, bytes, bytes]]:
    return {
        int(batch["slot"][row]): (
            batch["key"][row],
            batch["tokens"][row].numpy().tobytes(),
            batch["noise"][row].numpy().tobytes(),
        )
        for batch in batches
        for row in range(len(batch["key"]))
    }


def trained_key(data: TokenDataModule, place: int) -> str:
    """Return a key that training uses."""
    return next(iter(data.train_dataloader()))["key"][place]


def test_by_default_a_damaged_clip_stops_the_run(make_shards: Any) -> None:
    folder = make_shards(clips=20, frames=80)
    key = trained_key(module(folder), 2)
    damage(folder, key)
    with pytest.raises(UserError, match=rf"clip {key} in .*shard-000000\.tar is damaged: tokens"):
        take(module(folder), 5)


def test_a_skipped_clip_changes_no_other_slot(make_shards: Any, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_shards(clips=20, frames=80)
    data = module(folder)
    sound = rows(take(data, 15))
    bad = {trained_key(data, 0), trained_key(data, 2)}
    damage(folder, *bad)
    data = module(folder, on_bad_sample="skip")
    with caplog.at_level(logging.WARNING):
        found = rows(take(data, 15))
    assert found.keys() == sound.keys()
    slots = {slot for slot, row in sound.items() if row[0] in bad}
    assert {slot for slot in sound if sound[slot] != found[slot]} == slots
    assert not bad & {row[0] for row in found.values()}
    assert all(found[slot][2] == sound[slot][2] for slot in slots)  # the noise is the slot's
    assert data.skipped == len(slots)
    messages = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert len(messages) == len(slots)
    assert all(any(key in message for key in bad) and "shard-000000.tar" in message for message in messages)


def test_what_stands_in_is_decided_by_the_slot(make_shards: Any) -> None:
    folder = make_shards(clips=20, frames=80)
    damage(folder, *(f"clip{number:04d}" for number in range(0, 20, 3)))
    first = rows(take(module(folder, on_bad_sample="skip"), 12))
    other = module(folder, on_bad_sample="skip")
    other.start_at(20)
    assert all(first[slot] == row for slot, row in rows(take(other, 7)).items())


def test_skipping_has_an_end(make_shards: Any) -> None:
    folder = make_shards(clips=20, frames=80)
    damage(folder, *(f"clip{number:04d}" for number in range(0, 20, 2)))
    data = module(folder, on_bad_sample="skip", max_bad_samples=3)
    with pytest.raises(
        UserError, match=r"more than data\.max_bad_samples 3 clips are damaged; the last: slot"
    ):
        take(data, 10)
    assert data.skipped == 4


def test_a_folder_of_nothing_but_damage_stops_the_run(make_shards: Any) -> None:
    folder = make_shards(clips=5)
    damage(folder, *(f"clip{number:04d}" for number in range(5)))
    with pytest.raises(UserError, match="copy the shard again; 16 clips tried in its place are damaged too"):
        take(module(folder, on_bad_sample="skip"), 1)


def test_validation_leaves_a_damaged_clip_out(make_shards: Any) -> None:
    folder = make_shards(clips=10, name="train")
    other = make_shards(clips=6, name="val")
    damage(other, "clip0001")
    data = module(folder, val_shards=other, on_bad_sample="skip")
    batches = list(data.val_dataloader())
    assert [key for batch in batches for key in batch["key"]] == [
        "clip0000", "", "clip0002", "clip0003", "clip0004", "clip0005", "", "",
    ]  # fmt: skip
    assert torch.cat([batch["slot"] for batch in batches]).tolist() == [0, -1, 2, 3, 4, 5, -1, -1]
    assert not batches[0]["valid"][1].any()
    assert (batches[0]["tokens"][1] == 64).all()
    assert len(batches[0]["skipped"]) == 1
    with pytest.raises(UserError, match="clip clip0001"):
        list(module(folder, val_shards=other).val_dataloader())


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [TokenDataModule, StreamingDataModule])
def test_an_error_is_one_sentence_wherever_it_happens(make_shards: Any, kind: Any, workers: int) -> None:
    folder = make_shards(clips=5)
    damage(folder, *(f"clip{number:04d}" for number in range(5)))
    data = kind(folder, segment_duration=1.0, batch_size=4, num_workers=workers)
    data.setup("fit")
    with pytest.raises(UserError) as caught:
        next(iter(data.train_dataloader()))
    assert "shard-000000.tar" in str(caught.value)
    assert "\n" not in str(caught.value)
