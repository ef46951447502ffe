"""LightningDataModule with random access to shards in one global order, and the base of both data modules.

Shapes: see `magnet_train.tokens.TokenBatch`.
"""

from __future__ import annotations

import abc
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
from torch.utils.data import DataLoader

from datamodules.batches import BatchMaker, TokenDataset, batch_loader
from datamodules.caption_augmentation import CaptionAugmentation
from datamodules.sampling.order import Purpose
from datamodules.sampling.position import DataPosition
from datamodules.sampling.samplers import (
    EvaluationBatchSampler,
    InfiniteBatchSampler,
    SequentialClips,
    TrainSplit,
    WeightedMixture,
    hold_out,
)
from datamodules.shards.index import INDEX_NAME
from datamodules.shards.manifest import Manifest, read_manifest
from datamodules.shards.reading import ShardReader
from datamodules.shards.remote import ShardCache
from magnet_train.errors import UserError
from magnet_train.tokens import TokenBatch

_log = logging.getLogger(__name__)
_MAX_SECONDS = 86400
_CLIPS_AT_ONCE = 256
_RANGES = {  # smallest and largest value of an option, if the data module has it
    "batch_size": (1, 2**16),
    "num_workers": (0, 1024),
    "seed": (0, 2**63 - 1),
    "max_bad_samples": (0, math.inf),
    "buffer": (1, math.inf),
}


class SlotDataModule(pl.LightningDataModule, abc.ABC):
    """Options, position and evaluation that both data modules share.

    Args:
        manifests: Of the folders to train on; the other arguments are those of `TokenDataModule`.
    """

    def __init__(
        self,
        manifests: Sequence[Manifest],
        val_shards: Path | None,
        segment_duration: float,
        batch_size: int,
        num_workers: int,
        seed: int,
        captions: CaptionAugmentation | None,
    ) -> None:
        super().__init__()
        self.codec = manifests[0].codec  # known before `setup`
        self.val_shards = val_shards
        self.segment_duration = segment_duration
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.captions = captions
        self._manifests = manifests
        self._fingerprint = "+".join(manifest.fingerprint for manifest in manifests)
        self._start = 0
        self._stream: Any = None  # yields training batches from the slot `_stream.start`

    @property
    def segment_frames(self) -> int:
        """Length T of every batch, in token frames."""
        return self.codec.frames(self.segment_duration)

    @property
    @abc.abstractmethod
    def train_clips(self) -> int:
        """Number of clips to train on; 0 before `setup`."""

    @abc.abstractmethod
    def identity(self) -> dict[str, int | str]:
        """Return what the order depends on: a checkpoint resumes only if all of it is equal."""

    def start_at(self, slot: int) -> None:
        """Let the next iteration over the training loader begin at `slot`."""
        self._start = slot
        if self._stream is not None:
            self._stream.start = slot

    def test_dataloader(self) -> Any:
        """Return the validation loader: there is no third split."""
        return self.val_dataloader()

    def predict_dataloader(self) -> Any:
        """Return the validation loader, whose captions `predict` turns into clips."""
        return self.val_dataloader()

    def _identity(self, weights: str) -> dict[str, int | str]:
        return {
            "seed": self.seed,
            "clips": self.train_clips,
            "fingerprint": self._fingerprint,
            "weights": weights,
        }

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _batch_maker(self, purpose: Purpose) -> BatchMaker:
        captions = self.captions if purpose is Purpose.TRAIN else None
        return BatchMaker(self.codec, self.segment_frames, self.seed, purpose, captions)

    def _evaluation_loader(
        self, readers: Sequence[ShardReader], clips: SequentialClips, *, skip: bool = False
    ) -> DataLoader[TokenBatch]:
        """Return the loader of this rank's share of `clips`: each once, the same number of batches on each rank."""
        dataset = TokenDataset(readers, clips, self._batch_maker(Purpose.VALIDATION), skip=skip)
        batches = EvaluationBatchSampler(len(clips), self.batch_size, *self._rank_and_world_size())
        return batch_loader(dataset, batches, self.num_workers)

    def _require_ranges(self) -> None:
        """Check numeric options, before memory or processes run out."""
        seconds = self.segment_duration
        if not 0 < seconds <= _MAX_SECONDS:
            raise UserError(
                f"data.segment_duration is {seconds} s; give seconds above 0 and up to {_MAX_SECONDS}."
            )
        if self.segment_frames < 1:
            raise UserError(
                f"data.segment_duration {seconds} s is shorter than one token frame "
                f"(1/{self.codec.frame_rate:g} s); make it longer."
            )
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name, least)
            if value < least:
                raise UserError(f"data.{name} is {value}; it must be at least {least}.")
            if value > most:
                raise UserError(f"data.{name} is {value}; it must be at most {most}.")


class TokenDataModule(SlotDataModule):
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
        weights = shards if isinstance(shards, dict) else {str(shards): 1.0}
        if not weights:
            raise UserError("data.shards names no folder; name at least one.")
        parts = [
            (_checked_manifest(path := cache.local_folder(name)), path, weights[name]) for name in weights
        ]
        # Sorted, so that the result does not depend on the order of the options.
        parts.sort(key=lambda part: part[0].fingerprint)
        manifests, self.shards, self.weights = zip(*parts, strict=True)
        val = None if val_shards is None else cache.local_folder(val_shards)
        super().__init__(manifests, val, segment_duration, batch_size, num_workers, seed, captions)
        self.val_fraction = val_fraction
        self.on_bad_sample = on_bad_sample
        self.max_bad_samples = max_bad_samples
        self.skipped = 0
        self._readers: list[ShardReader] = []
        self._validation_readers: list[ShardReader] = []
        self._mixture: WeightedMixture | None = None
        self._validation = SequentialClips([range(0)])
        for folder in [*self.shards[1:], *([] if val is None else [val])]:
            self.codec.require_same_tokens(read_manifest(folder).codec, str(self.shards[0]), str(folder))
        self._require_ranges()
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"data.val_fraction is {self.val_fraction}; it must be at least 0 and below 1.")

    @property
    def train_clips(self) -> int:
        """Number of clips to train on; 0 before `setup`."""
        return 0 if self._mixture is None else sum(len(split) for split in self._mixture.splits)

    def identity(self) -> dict[str, int | str]:
        """Return what the order depends on: a checkpoint resumes only if all of it is equal."""
        total = sum(self.weights)
        return self._identity("+".join(f"{weight / total:.6g}" for weight in self.weights))

    def summary(self) -> dict[str, int | float | str]:
        """Describe the training data, for checkpoints and model cards."""
        return {
            "clips": sum(manifest.samples for manifest in self._manifests),
            "hours": round(sum(manifest.seconds for manifest in self._manifests) / 3600, 2),
            "fingerprint": self._fingerprint,
        }

    def setup(self, stage: str | None = None) -> None:
        """Open the indexes and split training clips from validation clips.

        Raises:
            UserError: A shard is truncated, the shards changed since they were named, or there are too few clips to
                hold some out.
        """
        readers = [
            ShardReader(folder, manifest.index_sha256)
            for folder, manifest in zip(self.shards, self._manifests, strict=True)
        ]
        self._readers = self._validation_readers = readers
        held_out = [np.empty(0, dtype=np.int64) for _ in readers]
        if self.val_shards is None:
            held_out = [hold_out(r.index["key_hash"], self.val_fraction, r.folder) for r in readers]
            self._validation = SequentialClips(held_out)
        else:
            self._validation_readers = [ShardReader(self.val_shards)]
            self._validation = SequentialClips([range(len(self._validation_readers[0]))])
        splits = [TrainSplit(len(reader), clips) for reader, clips in zip(readers, held_out, strict=True)]
        self._mixture = WeightedMixture(splits, self.weights, self.seed)

    def caption_texts(self) -> Iterator[str]:
        """Yield a text of each clip with every word that its captions can have; "" for a clip without one.

        Raises:
            UserError: A clip is damaged and `on_bad_sample` is `error`.
        """
        captions = self.captions or CaptionAugmentation()
        for folder in self.shards:
            reader = ShardReader(folder)
            for first in range(0, len(reader), _CLIPS_AT_ONCE):
                for sample in reader.read(np.arange(first, min(first + _CLIPS_AT_ONCE, len(reader)))):
                    if not isinstance(sample, UserError):
                        yield captions.longest(sample.metadata)
                    elif self.on_bad_sample == "error":
                        raise sample

    def train_dataloader(self) -> DataLoader[TokenBatch]:
        """Return the endless loader of this rank.

        Raises:
            UserError: The trainer lacks the callback `DataPosition`.
        """
        callbacks = [] if self.trainer is None else self.trainer.callbacks  # type: ignore[attr-defined]
        if self.trainer is not None and not any(isinstance(c, DataPosition) for c in callbacks):
            raise UserError(
                "the trainer lacks the callback datamodules.DataPosition, without which a resumed run would "
                "repeat data; add it to trainer.callbacks."
            )
        assert self._mixture is not None, "Lightning calls `setup` first"
        self._stream = InfiniteBatchSampler(self.batch_size, *self._rank_and_world_size(), start=self._start)
        make_batch = self._batch_maker(Purpose.TRAIN)
        dataset = TokenDataset(self._readers, self._mixture, make_batch, skip=self.on_bad_sample == "skip")
        return batch_loader(dataset, self._stream, self.num_workers)

    def val_dataloader(self) -> DataLoader[TokenBatch]:
        """Return the loader of this rank's share of the validation clips; crops and noise are the same every time."""
        return self._evaluation_loader(
            self._validation_readers, self._validation, skip=self.on_bad_sample == "skip"
        )

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


def _checked_manifest(folder: Path) -> Manifest:
    """Read a manifest, and check it against the index before a model is built with its `n_q` and `card`.

    A missing index is reported by `setup`; the manifest alone names the codec.
    """
    if (folder / INDEX_NAME).exists():
        return ShardReader(folder).manifest
    return read_manifest(folder)
