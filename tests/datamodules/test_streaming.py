"""Streaming with webdataset: any number of workers, no hang, nothing executed, nothing lost in silence."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from datamodules import DataPosition, StreamingDataModule, TokenDataModule
from datamodules.batches import BatchMaker, TokenBatch, batch_loader
from datamodules.sampling.order import Purpose
from datamodules.shards.manifest import read_manifest
from datamodules.shards.verify import adopt_shards
from datamodules.streaming_datamodule import ShardStream
from magnet_train.errors import UserError
from magnet_train.tokens import CodecInfo

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def stream(folder: Path, rank: int = 0, world_size: int = 1, **options: Any) -> ShardStream:
    manifest = read_manifest(folder)
    maker = BatchMaker(manifest.codec, 50, 0, Purpose.TRAIN)
    options = {"batch_size": 4, "buffer": 10, **options}
    return ShardStream(str(folder), manifest, maker, rank=rank, world_size=world_size, **options)


def keys(batches: Any, count: int) -> list[str]:
    return [key for batch in itertools.islice(batches, count) for key in batch["key"]]


@pytest.fixture
def shards(make_shards: Any) -> Path:
    """40 clips in 4 shards of 10."""
    folder: Path = make_shards(clips=40, shard_bytes=25_000)
    assert [shard.samples for shard in read_manifest(folder).shards] == [10] * 4
    return folder


def test_batches_are_those_of_the_exact_loader(shards: Path) -> None:
    data = StreamingDataModule(shards, segment_duration=1.0, batch_size=4, num_workers=0)
    batch: TokenBatch = next(iter(data.train_dataloader()))
    other = TokenDataModule(shards, segment_duration=1.0, batch_size=4, num_workers=0)
    other.setup()
    exact = next(iter(other.train_dataloader()))
    assert batch.keys() == exact.keys()
    for name in ("tokens", "valid", "noise", "slot"):
        assert batch[name].shape == exact[name].shape  # type: ignore[literal-required]
        assert batch[name].dtype == exact[name].dtype  # type: ignore[literal-required]
    for row, key in enumerate(batch["key"]):
        number = int(key.removeprefix("clip"))
        assert (batch["tokens"][row, 0] == number).all()
        assert batch["text"][row] == f"sound {number}"


def test_every_clip_comes_once_in_an_epoch_of_shards(shards: Path) -> None:
    """Within the shuffle buffer: after 2 epochs and the buffer every clip was there, none more than 3 times."""
    counts = Counter(keys(stream(shards), 25))
    assert len(counts) == 40
    assert set(counts.values()) <= {1, 2, 3, 4}
    first = keys(stream(shards, buffer=1), 10)
    assert sorted(first) == sorted(set(first))


def test_ranks_and_workers_share_an_epoch(shards: Path) -> None:
    """Four workers, four shards: each has one, and together they have all."""
    seen = [keys(stream(shards, rank, 4, buffer=1, batch_size=10), 1) for rank in range(4)]
    assert len({key for part in seen for key in part}) == 40


def test_slots_are_never_the_same_twice(shards: Path) -> None:
    batches = [list(itertools.islice(stream(shards, rank, 2), 10)) for rank in range(2)]
    slots = torch.cat([batch["slot"] for part in batches for batch in part]).tolist()
    assert len(slots) == len(set(slots)) == 80


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_fewer_shards_than_workers_hangs_nobody(make_shards: Any, workers: int) -> None:
    folder = make_shards(clips=6)
    for rank in range(2):
        data = StreamingDataModule(folder, segment_duration=1.0, batch_size=4, num_workers=workers)
        loader = data.train_dataloader()
        assert data._stream is not None
        data._stream.rank, data._stream.world_size = rank, 2
        found = list(itertools.islice(loader, 12))
        assert all(len(batch["key"]) == 4 for batch in found)
        assert len(set(keys(found, 12))) == 6


def test_a_resume_goes_on_near_where_it_was(shards: Path) -> None:
    whole = keys(stream(shards, buffer=1, batch_size=10), 8)
    assert keys(stream(shards, buffer=1, batch_size=10, start=25), 2) == whole[20:40]


def test_a_trainer_streams_and_validates(shards: Path, make_shards: Any, tmp_path: Path) -> None:
    class Model(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.validated: list[str] = []

        def training_step(self, batch: TokenBatch, batch_idx: int) -> torch.Tensor:
            return (self.weight - batch["noise"].mean()).square().sum()

        def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
            self.validated += batch["key"]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    model = Model()
    position = DataPosition()
    trainer = pl.Trainer(
        max_steps=6, max_epochs=-1, accelerator="cpu", logger=False, callbacks=[position],
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        val_check_interval=6, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    data = StreamingDataModule(
        shards, val_shards=make_shards(clips=3, name="val"), segment_duration=1.0, batch_size=4, num_workers=0
    )
    trainer.fit(model, data)
    assert position.slots == 24
    assert model.validated == ["clip0000", "clip0001", "clip0002", ""]


def test_a_truncated_shard_stops_at_the_start_or_when_it_is_read(shards: Path) -> None:
    path = shards / "shard-000002.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1024])
    with pytest.raises(UserError, match=r"shard-000002\.tar .*truncated"):
        StreamingDataModule(shards)
    with pytest.raises(UserError, match=r"shard-000002\.tar is not the file"):
        keys(stream(shards), 40)
    path.write_bytes(whole[:700] + b"x" + whole[701:])
    with pytest.raises(UserError, match=r"shard-000002\.tar is not the file"):
        keys(stream(shards), 40)


def test_a_shard_that_cannot_be_read(shards: Path) -> None:
    path = shards / "shard-000002.tar"
    path.unlink()
    path.mkdir()
    with pytest.raises(
        UserError, match=r"shard-000002\.tar cannot be read \(Is a directory\); copy it again\."
    ):
        keys(stream(shards), 40)


class Exploit:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("extension", ["pyd", "pickle", "pkl", "pth", "pt", "npy", "json"])
def test_shards_of_somebody_else_run_nothing(tmp_path: Path, codec: CodecInfo, extension: str) -> None:
    """Pickles under every name that webdataset's decoders know: refused or left alone, never loaded."""
    ran = tmp_path / "ran"
    evil = pickle.dumps(Exploit(ran))
    if extension == "npy":
        buffer = io.BytesIO()
        np.save(buffer, np.array([[Exploit(ran)]], dtype=object), allow_pickle=True)
        evil = buffer.getvalue()
    tokens = io.BytesIO()
    np.save(tokens, np.zeros((4, 60), dtype=np.int16))
    members = {"npy": tokens.getvalue(), "json": json.dumps({"text": "x"}).encode(), extension: evil}
    folder = tmp_path / "shards"
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"key.{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(UserError):
        adopt_shards(folder, codec)
    forge_manifest(folder, codec)
    if extension in ("npy", "json"):
        with pytest.raises(UserError, match=r"clip key in .*a\.tar is damaged"):
            next(iter(stream(folder)))
    else:
        assert keys(stream(folder), 1) == ["key"] * 4
    assert not ran.exists()


def crafted_tar(case: str) -> bytes:
    """Return a tar of one sound clip that is damaged in one way, with valid checksums."""
    tokens = io.BytesIO()
    np.save(tokens, np.zeros((4, 60), dtype=np.int16))
    members = [("key.npy", tokens.getvalue()), ("key.json", b"{}")]
    if case == "a member twice":
        members.append(members[-1])
    if case == "a name that leads out":
        members = [(f"../{name}", data) for name, data in members]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        if case == "a pax header that breaks off":
            header = tarfile.TarInfo("x")
            header.type, header.size = tarfile.XHDTYPE, 5
            tar.fileobj.write(header.tobuf(tarfile.USTAR_FORMAT) + b"99 pa".ljust(512, b"\0"))  # type: ignore[union-attr]
            tar.offset += 1024
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    whole = bytearray(buffer.getvalue())
    if case == "a mode that is not a number":
        whole[100:107] = b"x" * 7
        whole[148:156] = b"%06o\0 " % (sum(whole[:148]) + 256 + sum(whole[156:512]))
    if case == "no end":
        del whole[512 + tokens.getbuffer().nbytes :]
    if case == "a wrong checksum":
        whole[0] ^= 1
    return bytes(whole)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "case",
    [
        "a member twice",
        "a name that leads out",
        "a pax header that breaks off",
        "a mode that is not a number",
        "no end",
        "a wrong checksum",
    ],
)
def test_a_crafted_tar_is_one_sentence(tmp_path: Path, codec: CodecInfo, case: str, workers: int) -> None:
    """Its manifest fits, so only the walk through the tar can find the damage."""
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "a.tar").write_bytes(crafted_tar(case))
    forge_manifest(folder, codec)
    made = stream(folder, buffer=1)
    with pytest.raises(UserError, match=r"a\.tar is damaged: .*; copy it again\.") as caught:
        list(itertools.islice(batch_loader(made, None, workers), 2))
    assert "\n" not in str(caught.value)


def forge_manifest(folder: Path, codec: CodecInfo) -> None:
    """Write what a liar would: sizes and hashes that fit."""
    import hashlib

    from datamodules.shards.manifest import Manifest, ShardEntry, write_manifest

    data = (folder / "a.tar").read_bytes()
    entry = ShardEntry("a.tar", len(data), 1, 60, hashlib.sha256(data).hexdigest())
    write_manifest(folder, Manifest(codec, (entry,), "00"))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch_size": 0}, "batch_size"), ({"buffer": 0}, "buffer"), ({"num_workers": -1}, "num_workers")],
)
def test_bad_numbers(shards: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        StreamingDataModule(shards, **options)


def test_no_validation_without_shards_for_it(shards: Path) -> None:
    assert StreamingDataModule(shards).val_dataloader() == []
