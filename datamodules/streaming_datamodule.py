"""LightningDataModule that streams shards from front to back, for sets that are too large to copy.

Here the order of the clips depends on ranks and workers, and a resume starts at the beginning of a shard. Use
`TokenDataModule`, which has neither limit, wherever the tokens fit on a disk.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.filters import shuffle

from datamodules.batches import BatchMaker, batch_loader
from datamodules.caption_augmentation import CaptionAugmentation
from datamodules.sampling.order import ClipOrder, Purpose
from datamodules.sampling.samplers import InfiniteBatchSampler, SequentialClips
from datamodules.shards.files import MalformedError, read_whole
from datamodules.shards.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    Manifest,
    ShardEntry,
    parse_manifest,
    read_manifest,
)
from datamodules.shards.reading import ShardReader
from datamodules.shards.remote import ShardCache, is_remote
from datamodules.shards.remote_files import RemoteFolder
from datamodules.shards.scan import EXTENSIONS, Sample, group_members, read_sample
from datamodules.shards.tar import BytesArchive, Member, split_name, walk_tar
from datamodules.token_datamodule import SlotDataModule
from magnet_train.errors import UserError, cannot_read
from magnet_train.tokens import TokenBatch


@dataclass(eq=False)
class ShardStream(IterableDataset[TokenBatch]):
    """Yield batches without end; the shards of each epoch are divided among the workers of all ranks.

    A shard is read whole and checked against its sha256 before any of it is used, so a truncated one is an error.
    With fewer shards than workers some already read the next epoch's, so no worker waits.
    """

    shards: str  # folder or URL
    manifest: Manifest
    make_batch: BatchMaker
    batch_size: int
    buffer: int  # size of the shuffle buffer (clips)
    rank: int  # this process, 0..world_size-1
    world_size: int  # number of training processes
    start: int = 0  # first slot of the run to yield

    def __iter__(self) -> Iterator[TokenBatch]:
        worker = get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        entries = self._entries(self.rank * workers + number, self.world_size * workers)
        samples = itertools.chain.from_iterable(map(self._samples, entries))
        stream = shuffle(self.buffer, initial=self.buffer, seed=self.make_batch.seed)(samples)
        # The loader polls its workers in turn, so this one makes every `workers`-th batch of its rank. With the slots
        # that this batch has in `TokenDataModule`, every codebook gets its share, whatever the layout.
        batches = InfiniteBatchSampler(
            batch_size=self.batch_size, rank=self.rank, world_size=self.world_size, start=self.start
        )
        for slots in itertools.islice(batches, number, None, workers):
            yield self.make_batch(slots, list(itertools.islice(stream, self.batch_size)))

    def _entries(self, worker: int, workers: int) -> Iterator[ShardEntry]:
        """Yield this worker's shards, each epoch in another order, beginning near the slot `start`."""
        entries = self.manifest.shards
        order = ClipOrder(self.make_batch.seed, len(entries))
        first = self.start * len(entries) // self.manifest.samples
        for place in itertools.count(first + worker, workers):
            yield entries[int(order[[place]][0])]

    def _samples(self, entry: ShardEntry) -> Iterator[Sample]:
        """Yield the clips of a shard; members other than `.npy` and `.json` are passed over."""
        where = f"{self.shards}/{entry.file}"
        archive = BytesArchive(self._read(entry))
        ours = (member for member in walk_tar(archive) if split_name(member.name)[1] in EXTENSIONS)
        try:
            for key, members in group_members(ours):
                yield self._sample(where, key, members, archive)
        except MalformedError as error:
            raise UserError(f"{where} is damaged: {error}; copy it again.") from error

    def _sample(self, where: str, key: str, members: Sequence[Member], archive: BytesArchive) -> Sample:
        try:
            return read_sample(key, members, archive, self.manifest.codec)[0]
        except MalformedError as error:
            raise UserError(f"clip {key} in {where} is damaged: {error}; copy it again.") from error

    def _read(self, entry: ShardEntry) -> bytes:
        if is_remote(self.shards):
            data = b"".join(RemoteFolder(self.shards).pieces(entry.file, 0, entry.bytes))
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


class StreamingDataModule(SlotDataModule):
    """Endless training batches, streamed; set `max_steps` on the trainer.

    Validation reads `val_shards` as `TokenDataModule` does. A resume begins near the next shards, not with the exact
    next clip, and skips the clips that were in the shuffle buffer.

    Args:
        shards: Folder that `magnet-train tokenize` made, here or at hf://, s3:// or https://.
        val_shards: Folder to validate on, copied if it is remote; None skips validation.
        segment_duration: Length of a training example in seconds.
        batch_size: Examples in a batch on each device.
        num_workers: Loader processes on each device, each with one shard in memory.
        seed: Decides the order of the shards, crops and masks.
        buffer: Size of each worker's shuffle buffer (clips).
        captions: Caption augmentation in training; None leaves captions unchanged.
        cache: Cache for a remote `val_shards`.

    Raises:
        UserError: No shards are there, the two folders are of different codecs, or a number is out of range.
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
        self.shards = str(shards).rstrip("/")
        if is_remote(self.shards):
            content = RemoteFolder(self.shards).read(MANIFEST_NAME, MAX_MANIFEST_BYTES)
            manifest = parse_manifest(content, f"{self.shards}/{MANIFEST_NAME}")
        else:
            manifest = ShardReader(Path(self.shards)).manifest  # checks sizes against the manifest
        val = None if val_shards is None else cache.local_folder(val_shards)
        super().__init__([manifest], val, segment_duration, batch_size, num_workers, seed, captions)
        self.buffer = buffer
        if val is not None:
            self.codec.require_same_tokens(read_manifest(val).codec, self.shards, str(val))
        self._require_ranges()

    @property
    def train_clips(self) -> int:
        """Number of clips to train on."""
        return self._manifests[0].samples

    def identity(self) -> dict[str, int | str]:
        """Return what must be equal to resume a run; `streamed` distinguishes it from an exact order."""
        return self._identity("streamed")

    def train_dataloader(self) -> DataLoader[TokenBatch]:
        """Return the endless loader of this rank, which begins with the shards near the slot of `start_at`."""
        self._stream = ShardStream(
            self.shards,
            self._manifests[0],
            self._batch_maker(Purpose.TRAIN),
            self.batch_size,
            self.buffer,
            *self._rank_and_world_size(),
            start=self._start,
        )
        return batch_loader(self._stream, None, self.num_workers)

    def val_dataloader(self) -> DataLoader[TokenBatch] | list[DataLoader[TokenBatch]]:
        """Return the loader of this rank's share of `val_shards`, or an empty list."""
        if self.val_shards is None:
            return []
        reader = ShardReader(self.val_shards)
        return self._evaluation_loader([reader], SequentialClips([range(len(reader))]))
