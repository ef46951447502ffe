"""Stream shards from front to back with webdataset, for sets that are too large to copy.

Which clip comes when depends here on ranks and workers, and a resume starts at a shard's beginning:
`TokenDataModule` promises more wherever the tokens fit on a disk, and they nearly always do.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.filters import shuffle
from webdataset.tariterators import group_by_keys, tar_file_expander

from datamodules.batches import BatchMaker
from datamodules.caption_augmentation import CaptionAugmentation
from datamodules.dataset import TokenDataset
from datamodules.loaders import (
    batch_loader,
    layout,
    require_at_least,
    require_clip_length,
    validation_loader,
)
from datamodules.sampling.batch_samplers import InfiniteBatchSampler
from datamodules.sampling.clips import SequentialClips
from datamodules.sampling.order import ClipOrder, Purpose
from datamodules.shards.issues import MalformedError
from datamodules.shards.manifest import (
    MANIFEST_NAME,
    MOST_MANIFEST_BYTES,
    Manifest,
    ShardEntry,
    parse_manifest,
    read_manifest,
)
from datamodules.shards.npy import tokens_from_npy
from datamodules.shards.plain_files import read_whole
from datamodules.shards.reading import Sample, ShardReader
from datamodules.shards.remote import ShardCache, is_remote
from datamodules.shards.remote_files import RemoteFolder
from datamodules.shards.scan import check_tokens, parse_metadata
from magnet_train.errors import UserError, cannot_read
from magnet_train.tokens import CodecInfo, TokenBatch


class ShardStream(IterableDataset[TokenBatch]):
    """Yield batches for ever; the workers of all ranks deal the shards of each epoch out among themselves.

    A shard is read whole and held against its sha256 before any of it is used, so that none is cut short in
    silence. With fewer shards than workers some work on the next epoch's already, and nobody waits.

    Args:
        shards: Folder or URL.
        manifest: Of that folder.
        make_batch: Crops and joins what was read.
        batch_size: Rows in a batch.
        buffer: Clips to shuffle within.
        rank: This process.
        world_size: Processes that train together.
        start: First slot of the run that is still to come.
    """

    def __init__(
        self,
        shards: str,
        manifest: Manifest,
        make_batch: BatchMaker,
        *,
        batch_size: int,
        buffer: int,
        rank: int,
        world_size: int,
        start: int = 0,
    ) -> None:
        self.shards = shards
        self.manifest = manifest
        self.make_batch = make_batch
        self.batch_size = batch_size
        self.buffer = buffer
        self.rank = rank
        self.world_size = world_size
        self.start = start

    def __iter__(self) -> Iterator[TokenBatch]:
        worker = get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        index, total = self.rank * workers + number, self.world_size * workers
        members = tar_file_expander(self._tars(index, total))
        decoded = map(self._decode, group_by_keys(members, lcase=False))
        stream = shuffle(self.buffer, initial=self.buffer, seed=self.make_batch.seed)(decoded)
        # The loader asks its workers in turn, so this one makes every `workers`-th batch of its rank. With the slots
        # that this batch has in `TokenDataModule`, it holds every codebook, whatever the layout.
        batches = InfiniteBatchSampler(
            batch_size=self.batch_size, rank=self.rank, world_size=self.world_size, start=self.start
        )
        for slots in itertools.islice(batches, number, None, workers):
            yield self.make_batch(slots, list(itertools.islice(stream, self.batch_size)))

    def _tars(self, worker: int, workers: int) -> Iterator[dict[str, Any]]:
        """Yield this worker's shards, each epoch in another order, beginning about where `start` says."""
        entries = self.manifest.shards
        order = ClipOrder(self.make_batch.seed, len(entries))
        first = self.start * len(entries) // self.manifest.samples
        for place in itertools.count(first + worker, workers):
            entry = entries[int(order[[place]][0])]
            yield {"url": f"{self.shards}/{entry.file}", "stream": io.BytesIO(self._read(entry))}

    def _read(self, entry: ShardEntry) -> bytes:
        if is_remote(self.shards):
            data = RemoteFolder(self.shards).read_pieces(entry.file, entry.bytes)
        else:
            path = Path(self.shards) / entry.file
            try:
                data = read_whole(path, entry.bytes)
            except MalformedError as error:
                raise UserError(f"{path} {error}; copy it again.") from error
            except OSError as error:
                raise cannot_read(path, error) from error
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise UserError(
                f"{self.shards}/{entry.file} is not the file that its manifest lists (sha256 differs); copy it "
                "again."
            )
        return data

    def _decode(self, sample: dict[str, Any]) -> Sample:
        """Decode `.npy` and `.json` and nothing else; other members are left as bytes."""
        try:
            tokens = tokens_from_npy(sample.get("npy", b""))
            check_tokens(tokens, self.manifest.codec)
            return Sample(sample["__key__"], tokens, parse_metadata(sample.get("json", b"")))
        except MalformedError as error:
            raise UserError(f"clip {sample['__key__']} in {sample['__url__']} is damaged: {error}") from error


class StreamingDataModule(pl.LightningDataModule):
    """Endless training batches, streamed; give the trainer `max_steps`.

    Validation reads `val_shards` as `TokenDataModule` does. A resume begins with about the next shards, not
    with the exact next clip, and skips what lay in the shuffle buffer.

    Args:
        shards: Folder that `magnet-train tokenize` made, here or at hf://, s3:// or https://.
        val_shards: Folder to validate on, copied if it is remote; None validates on nothing.
        segment_duration: Length of a training example in seconds.
        batch_size: Examples in a batch on each device.
        num_workers: Loader processes on each device, each with one shard in memory.
        seed: Decides the order of the shards, crops and masks.
        buffer: Clips that a worker shuffles within.
        captions: How training varies captions; None leaves them as they are.
        cache: Where a remote `val_shards` is kept.

    Raises:
        UserError: No shards are there, the two are of different codecs, or a number is out of range.
    """

    def __init__(
        self,
        shards: str | Path,
        val_shards: str | Path | None = None,
        segment_duration: float = 10.0,
        batch_size: int = 8,
        num_workers: int = 2,
        seed: int = 0,
        buffer: int = 1000,
        captions: CaptionAugmentation | None = None,
        cache: ShardCache = ShardCache(),  # noqa: B008  frozen
    ) -> None:
        super().__init__()
        self.shards = str(shards).rstrip("/")
        self.val_shards = None if val_shards is None else cache.local_folder(val_shards)
        self.segment_duration = segment_duration
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.buffer = buffer
        self.captions = captions
        self._start = 0
        self._stream: ShardStream | None = None
        if is_remote(self.shards):
            content = RemoteFolder(self.shards).read(MANIFEST_NAME, MOST_MANIFEST_BYTES)
            self._manifest = parse_manifest(content, f"{self.shards}/{MANIFEST_NAME}")
        else:
            self._manifest = read_manifest(Path(self.shards))
            ShardReader(Path(self.shards))  # sizes against the manifest
        if self.val_shards is not None:
            other = read_manifest(self.val_shards).codec
            self.codec.require_same_tokens(other, self.shards, str(self.val_shards))
        require_clip_length(self.segment_duration)
        require_at_least(self, batch_size=1, num_workers=0, seed=0, buffer=1)

    @property
    def codec(self) -> CodecInfo:
        """Who made the tokens."""
        return self._manifest.codec

    @property
    def segment_frames(self) -> int:
        """Length T of every batch, in token frames."""
        return self.codec.frames(self.segment_duration)

    @property
    def train_clips(self) -> int:
        """Number of clips to train on."""
        return self._manifest.samples

    def identity(self) -> dict[str, int | str]:
        """Say what a run may be resumed with; `streamed` keeps it apart from an exact order."""
        return {
            "seed": self.seed,
            "clips": self.train_clips,
            "fingerprint": self._manifest.fingerprint,
            "weights": "streamed",
        }

    def start_at(self, slot: int) -> None:
        """Let the next iteration begin with the shards that come about there."""
        self._start = slot
        if self._stream is not None:
            self._stream.start = slot

    def train_dataloader(self) -> DataLoader[TokenBatch]:
        """Return the endless loader of this rank."""
        rank, world_size = layout(self.trainer)
        self._stream = ShardStream(
            self.shards,
            self._manifest,
            BatchMaker(self.codec, self.segment_frames, self.seed, Purpose.TRAIN, self.captions),
            batch_size=self.batch_size,
            buffer=self.buffer,
            rank=rank,
            world_size=world_size,
            start=self._start,
        )
        # New workers for each iteration: old ones would not hear of another start.
        return batch_loader(self._stream, None, self.num_workers, persistent=False)

    def val_dataloader(self) -> DataLoader[TokenBatch] | list[DataLoader[TokenBatch]]:
        """Return the loader of this rank's share of `val_shards`, or none."""
        if self.val_shards is None:
            return []
        clips = SequentialClips([range(read_manifest(self.val_shards).samples)])
        make_batch = BatchMaker(self.codec, self.segment_frames, self.seed, Purpose.VALIDATION)
        dataset = TokenDataset([self.val_shards], clips, make_batch)
        return validation_loader(dataset, clips, self.batch_size, self.num_workers, self.trainer)

    def test_dataloader(self) -> DataLoader[TokenBatch] | list[DataLoader[TokenBatch]]:
        """Return the validation loader: there is no third split."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[TokenBatch] | list[DataLoader[TokenBatch]]:
        """Return the validation loader: its captions are what `predict` turns into clips."""
        return self.val_dataloader()
