"""LightningDataModule with random access to shards in one global order.

Shapes: see `magnet_train.tokens.TokenBatch`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import numpy as np
from torch.utils.data import DataLoader

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
from datamodules.sampling.clip_samplers import (
    ClipSampler,
    SequentialClips,
    TrainSplit,
    WeightedMixture,
    hold_out,
)
from datamodules.sampling.order import Purpose
from datamodules.sampling.position import DataPosition
from datamodules.shards.index import INDEX_NAME
from datamodules.shards.manifest import Manifest, read_manifest
from datamodules.shards.reading import ShardReader
from datamodules.shards.remote import ShardCache
from magnet_train.errors import UserError
from magnet_train.tokens import CodecInfo, TokenBatch

_log = logging.getLogger(__name__)


class TokenDataModule(pl.LightningDataModule):
    """Endless training batches in one global order, and validation batches that cover each clip once.

    The trainer needs `max_steps`, since the loader has no length, `use_distributed_sampler=False`, since slots are
    divided among ranks here, and the callback `datamodules.DataPosition`.

    Args:
        shards: Folder that `magnet-train tokenize` made, here or at hf://, s3:// or https://; or several with
            their weights, `{songs: 3, loops: 1}`, each in its own order through its own epochs.
        val_shards: Folder to validate on; None holds out a part of each of `shards`.
        val_fraction: Share of the clips that is held out, 0..1, at least one clip; a hash of the key decides,
            so that a clip stays in its split when others are added. Unused with `val_shards`.
        segment_duration: Length of a training example in seconds.
        batch_size: Examples in a batch on each device.
        num_workers: Loader processes on each device; 0 loads in the training process.
        seed: Decides order, crops and masks.
        captions: Caption augmentation in training; None leaves captions unchanged.
        on_bad_sample: `error` stops at a damaged clip, `skip` replaces it by another.
        max_bad_samples: With `skip`, the largest number of damaged clips on one device.
        cache: Cache for remote folders.

    Raises:
        UserError: A folder holds no shards, two are of different codecs, or a number is out of range.
    """

    def __init__(
        self,
        shards: dict[str, float] | str | Path,
        val_shards: str | Path | None = None,
        val_fraction: float = 0.05,
        segment_duration: float = 10.0,
        batch_size: int = 8,
        num_workers: int = 2,
        seed: int = 0,
        captions: CaptionAugmentation | None = None,
        on_bad_sample: Literal["error", "skip"] = "error",
        max_bad_samples: int = 100,
        cache: ShardCache = ShardCache(),  # noqa: B008  frozen
    ) -> None:
        super().__init__()
        self.val_fraction = val_fraction
        self.segment_duration = segment_duration
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.captions = captions
        self.on_bad_sample = on_bad_sample
        self.max_bad_samples = max_bad_samples
        self.skipped = 0
        self._start = 0
        self._sampler: InfiniteBatchSampler | None = None
        self._mixture: WeightedMixture | None = None
        self._validation = SequentialClips([range(0)])
        weights = shards if isinstance(shards, dict) else {str(shards): 1.0}
        if not weights:
            raise UserError("data.shards names no folder; name at least one.")
        parts = [
            (_checked_manifest(path := cache.local_folder(name)), path, weights[name]) for name in weights
        ]
        # Sorted, so that the result does not depend on the order of the options.
        parts.sort(key=lambda part: part[0].fingerprint)
        self._manifests = [manifest for manifest, _, _ in parts]
        self.shards = [path for _, path, _ in parts]
        self.weights = [weight for _, _, weight in parts]
        self.val_shards = None if val_shards is None else cache.local_folder(val_shards)
        for folder in [*self.shards[1:], *([] if self.val_shards is None else [self.val_shards])]:
            self.codec.require_same_tokens(read_manifest(folder).codec, str(self.shards[0]), str(folder))
        require_range(self, batch_size=1, num_workers=0, seed=0, max_bad_samples=0)
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"data.val_fraction is {self.val_fraction}; it must be at least 0 and below 1.")

    @property
    def codec(self) -> CodecInfo:
        """Codec that made the tokens, from the manifest; known before `setup`."""
        return self._manifests[0].codec

    @property
    def segment_frames(self) -> int:
        """Length T of every batch, in token frames."""
        return self.codec.frames(self.segment_duration)

    @property
    def train_clips(self) -> int:
        """Number of clips to train on; 0 before `setup`."""
        return 0 if self._mixture is None else sum(len(split) for split in self._mixture.splits)

    def identity(self) -> dict[str, int | str]:
        """Return what the order depends on: a checkpoint resumes only if all of it is equal."""
        total = sum(self.weights)
        weights = "+".join(f"{weight / total:.6g}" for weight in self.weights)
        return {
            "seed": self.seed,
            "clips": self.train_clips,
            "fingerprint": self._fingerprint,
            "weights": weights,
        }

    def summary(self) -> dict[str, int | float | str]:
        """Describe the training data, for checkpoints and model cards."""
        return {
            "clips": sum(manifest.samples for manifest in self._manifests),
            "hours": round(sum(manifest.seconds for manifest in self._manifests) / 3600, 2),
            "fingerprint": self._fingerprint,
        }

    @property
    def _fingerprint(self) -> str:
        return "+".join(manifest.fingerprint for manifest in self._manifests)

    def start_at(self, slot: int) -> None:
        """Let the next iteration over the training loader begin at `slot`."""
        self._start = slot
        if self._sampler is not None:
            self._sampler.start = slot

    def setup(self, stage: str | None = None) -> None:
        """Open the indexes and split training clips from validation clips.

        Raises:
            UserError: A shard is truncated, or there are too few clips to hold some out.
        """
        readers = [ShardReader(folder) for folder in self.shards]
        held_out = [np.empty(0, dtype=np.int64) for _ in readers]
        if self.val_shards is None:
            held_out = [hold_out(r.index["key_hash"], self.val_fraction, r.folder) for r in readers]
            self._validation = SequentialClips(held_out)
        else:
            self._validation = SequentialClips([range(len(ShardReader(self.val_shards)))])
        splits = [TrainSplit(len(reader), clips) for reader, clips in zip(readers, held_out, strict=True)]
        self._mixture = WeightedMixture(splits, self.weights, self.seed)

    def train_dataloader(self) -> DataLoader[TokenBatch]:
        """Return the endless loader of this rank.

        Raises:
            UserError: The trainer lacks the callback `DataPosition`.
        """
        if self.trainer is not None and not any(isinstance(c, DataPosition) for c in self._callbacks()):
            raise UserError(
                "the trainer lacks the callback datamodules.DataPosition, without which a resumed run would "
                "repeat data; add it to trainer.callbacks."
            )
        assert self._mixture is not None, "Lightning calls `setup` first"
        rank, world_size = rank_and_world_size(self.trainer)
        self._sampler = InfiniteBatchSampler(
            batch_size=self.batch_size, rank=rank, world_size=world_size, start=self._start
        )
        dataset = self._dataset(self.shards, self._mixture, Purpose.TRAIN, self.captions)
        return batch_loader(dataset, self._sampler, self.num_workers)

    def val_dataloader(self) -> DataLoader[TokenBatch]:
        """Return the loader of this rank's share of the validation clips; crops and noise are the same every time."""
        folders = self.shards if self.val_shards is None else [self.val_shards]
        dataset = self._dataset(folders, self._validation, Purpose.VALIDATION, None)
        return validation_loader(dataset, self._validation, self.batch_size, self.num_workers, self.trainer)

    def test_dataloader(self) -> DataLoader[TokenBatch]:
        """Return the validation loader: there is no third split."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[TokenBatch]:
        """Return the validation loader, whose captions `predict` turns into clips."""
        return self.val_dataloader()

    def on_after_batch_transfer(self, batch: TokenBatch, dataloader_idx: int) -> TokenBatch:
        """Count and log the damaged clips that the workers skipped.

        Raises:
            UserError: There were more than `max_bad_samples`.
        """
        for damage in batch["skipped"]:
            self.skipped += 1
            _log.warning("skipped %d of at most %d: %s", self.skipped, self.max_bad_samples, damage)
            if self.skipped > self.max_bad_samples:
                raise UserError(
                    f"more than data.max_bad_samples {self.max_bad_samples} clips are damaged; the last: {damage}"
                )
        return batch

    def _dataset(
        self,
        folders: Sequence[Path],
        sampler: ClipSampler,
        purpose: Purpose,
        captions: CaptionAugmentation | None,
    ) -> TokenDataset:
        make_batch = BatchMaker(self.codec, self.segment_frames, self.seed, purpose, captions)
        return TokenDataset(folders, sampler, make_batch, skip=self.on_bad_sample == "skip")

    def _callbacks(self) -> list[pl.Callback]:
        return [] if self.trainer is None else list(self.trainer.callbacks)  # type: ignore[attr-defined]


def _checked_manifest(folder: Path) -> Manifest:
    """Read a manifest, and check it against the index before a model is built with its `n_q` and `card`.

    A missing index is reported by `setup`; the manifest alone names the codec.
    """
    if (folder / INDEX_NAME).exists():
        return ShardReader(folder).manifest
    return read_manifest(folder)
