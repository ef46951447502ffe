"""LightningDataModule that streams shards from front to back, for sets that are too large to copy.

Here the order of the clips depends on ranks and workers, and a resume starts at the beginning of a shard. Use
`TokenDataModule`, which has neither limit, wherever the tokens fit on a disk.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.filters import shuffle

from datamodules.batches import BatchMaker
from datamodules.caption_augmentation import CaptionAugmentation
from datamodules.loaders import (
    TokenDataset,
    batch_loader,
    rank_and_world_size,
    require_range,
    validation_loader,
)
from datamodules.sampling.batch_samplers import InfiniteBatchSampler
from datamodules.sampling.clip_samplers import SequentialClips
from datamodules.sampling.order import ClipOrder, Purpose
from datamodules.shards.files import MalformedError, read_whole
from datamodules.shards.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    Manifest,
    ShardEntry,
    parse_manifest,
    read_manifest,
)
from datamodules.shards.npy import tokens_from_npy
from datamodules.shards.reading import Sample, ShardReader
from datamodules.shards.remote import ShardCache, is_remote
from datamodules.shards.remote_files import RemoteFolder
from datamodules.shards.scan import check_key, check_tokens, parse_metadata
from datamodules.shards.tar import BytesArchive, split_name, walk_tar
from magnet_train.errors import UserError, cannot_read
from magnet_train.tokens import CodecInfo, TokenBatch


@dataclass(eq=False)
class ShardStream(IterableDataset[TokenBatch]):
    """Yield batches without end; the shards of each epoch are divided among the workers of all ranks.

    A shard is read whole and checked against its sha256 before any of it is used, so a truncated one is an error.
    With fewer shards than workers some already read the next epoch's, so no worker waits.

    Args:
        shards: Folder or URL.
        manifest: Of that folder.
        make_batch: Crops and joins samples.
        batch_size: Rows in a batch.
        buffer: Size of the shuffle buffer (clips).
        rank: This process.
        world_size: Number of training processes.
        start: First slot of the run to yield.
    """

    shards: str
    manifest: Manifest
    make_batch: BatchMaker
    batch_size: int
    buffer: int
    rank: int
    world_size: int
    start: int = 0

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
        """Yield the clips of a shard; members other than `.npy` and `.json` are passed over.

        Raises:
            UserError: The shard or a clip in it is damaged.
        """
        where = f"{self.shards}/{entry.file}"
        archive = BytesArchive(self._read(entry))
        last, payloads = "", dict[str, bytes]()
        try:
            for member in walk_tar(archive):
                key, extension = split_name(member.name)
                if extension not in ("npy", "json"):
                    continue
                if key != last and payloads:
                    yield self._decode(where, last, payloads)
                    payloads = {}
                if extension in payloads:
                    raise MalformedError(f"member {member.name} is there twice")
                last, payloads[extension] = key, archive.read(member.offset, member.size)
        except MalformedError as error:
            raise UserError(f"{where} is damaged: {error}; copy it again.") from error
        if payloads:
            yield self._decode(where, last, payloads)

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

    def _decode(self, where: str, key: str, payloads: dict[str, bytes]) -> Sample:
        try:
            check_key(key)
            tokens = tokens_from_npy(payloads.get("npy", b""))
            check_tokens(tokens, self.manifest.codec)
            return Sample(key, tokens, parse_metadata(payloads.get("json", b"")))
        except MalformedError as error:
            raise UserError(f"clip {key} in {where} is damaged: {error}; copy it again.") from error


class StreamingDataModule(pl.LightningDataModule):
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
            content = RemoteFolder(self.shards).read(MANIFEST_NAME, MAX_MANIFEST_BYTES)
            self._manifest = parse_manifest(content, f"{self.shards}/{MANIFEST_NAME}")
        else:
            self._manifest = read_manifest(Path(self.shards))
            ShardReader(Path(self.shards))  # checks sizes against the manifest
        if self.val_shards is not None:
            other = read_manifest(self.val_shards).codec
            self.codec.require_same_tokens(other, self.shards, str(self.val_shards))
        require_range(self, batch_size=1, num_workers=0, seed=0, buffer=1)

    @property
    def codec(self) -> CodecInfo:
        """Codec that made the tokens."""
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
        """Return what must be equal to resume a run; `streamed` distinguishes it from an exact order."""
        return {
            "seed": self.seed,
            "clips": self.train_clips,
            "fingerprint": self._manifest.fingerprint,
            "weights": "streamed",
        }

    def start_at(self, slot: int) -> None:
        """Let the next iteration begin with the shards near `slot`."""
        self._start = slot
        if self._stream is not None:
            self._stream.start = slot

    def train_dataloader(self) -> DataLoader[TokenBatch]:
        """Return the endless loader of this rank."""
        rank, world_size = rank_and_world_size(self.trainer)
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
        # new workers for each iteration: persistent ones would not see a changed `start`
        return batch_loader(self._stream, None, self.num_workers, persistent=False)

    def val_dataloader(self) -> DataLoader[TokenBatch] | list[DataLoader[TokenBatch]]:
        """Return the loader of this rank's share of `val_shards`, or an empty list."""
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
        """Return the validation loader, whose captions `predict` turns into clips."""
        return self.val_dataloader()
