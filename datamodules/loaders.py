"""Dataset and DataLoaders that make whole batches in the workers.

Shapes: see `magnet_train.tokens.TokenBatch`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from datamodules.batches import BatchMaker
from datamodules.sampling.batch_samplers import EvaluationBatchSampler, Slots
from datamodules.sampling.clip_samplers import ClipSampler, SampledClips, SequentialClips
from datamodules.shards.reading import Sample, ShardReader
from magnet_train.errors import UserError
from magnet_train.tokens import TokenBatch

_MAX_SECONDS = 86400
_MAX = {"batch_size": 2**16, "num_workers": 1024, "seed": 2**63 - 1}


class TokenDataset(Dataset[TokenBatch]):
    """Map-style dataset whose index is an array of slots and whose item is a batch.

    Args:
        folders: Shards, one folder or several.
        sampler: Maps slots to folders and clips.
        make_batch: Crops and joins samples.
        skip: Replace a damaged clip as `sampler` decides; without a replacement the row is padding.
    """

    def __init__(
        self, folders: Sequence[Path], sampler: ClipSampler, make_batch: BatchMaker, *, skip: bool = False
    ) -> None:
        self.readers = [ShardReader(folder) for folder in folders]
        self.sampler = sampler
        self.make_batch = make_batch
        self.skip = skip

    def __getitem__(self, slots: Slots) -> TokenBatch:
        """Load one batch; a slot of -1 gives a padding row.

        Raises:
            UserError: A clip is damaged and must not be skipped, or its replacements are damaged too; names shard
                and key.
        """
        skipped: list[str] = []
        real = slots[slots >= 0]
        clips = self.sampler[real]
        samples: list[Sample | None] = [None] * len(slots)
        rows = np.flatnonzero(slots >= 0).tolist()
        for row, slot, folder, sample in zip(
            rows, real.tolist(), clips.folder.tolist(), self._read(clips), strict=True
        ):
            if isinstance(sample, UserError):
                samples[row] = self._replace(slot, folder, sample, skipped)
            else:
                samples[row] = sample
        return self.make_batch(slots, samples, skipped)

    def _read(self, clips: SampledClips) -> list[Sample | UserError]:
        if len(self.readers) == 1:
            return self.readers[0].read(clips.clip)
        samples: list[Sample | UserError] = [UserError()] * len(clips.clip)
        for number, reader in enumerate(self.readers):
            rows = np.flatnonzero(clips.folder == number)
            for row, sample in zip(rows.tolist(), reader.read(clips.clip[rows]), strict=True):
                samples[row] = sample
        return samples

    def _replace(self, slot: int, folder: int, damage: UserError, skipped: list[str]) -> Sample | None:
        if not self.skip:
            raise damage
        skipped.append(f"slot {slot}: {damage}")
        clips = self.sampler.replacements(slot, folder)
        for clip in clips:
            (sample,) = self.readers[folder].read(np.array([clip]))
            if isinstance(sample, Sample):
                return sample
        if len(clips):
            raise UserError(f"{damage} (slot {slot}; {len(clips)} clips tried in its place are damaged too)")
        return None


@dataclass(eq=False)
class _ErrorsAsItems(Dataset[TokenBatch | UserError]):
    """Return a `UserError` as an item: raised in a worker, its message would contain the worker's traceback."""

    dataset: Dataset[TokenBatch]

    def __getitem__(self, index: Slots) -> TokenBatch | UserError:
        try:
            return self.dataset[index]
        except UserError as error:
            return UserError(str(error))


@dataclass(eq=False)
class _ErrorsAsItemsStream(IterableDataset[TokenBatch | UserError]):
    """The same for a stream."""

    dataset: IterableDataset[TokenBatch]

    def __iter__(self) -> Iterator[TokenBatch | UserError]:
        try:
            yield from self.dataset
        except UserError as error:
            yield UserError(str(error))


class BatchLoader(DataLoader[TokenBatch]):
    """DataLoader that raises, in this process, the errors that its workers returned."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


def batch_loader(
    dataset: Dataset[TokenBatch],
    batches: Iterable[Slots] | None,
    num_workers: int,
    *,
    persistent: bool = True,
) -> BatchLoader:
    """Return a loader for a dataset that makes whole batches.

    Args:
        dataset: One item is one batch.
        batches: Indices for a map-style dataset, None for an iterable one.
        num_workers: Processes; 0 loads in this one.
        persistent: Keep the processes from one iteration to the next.
    """
    wrap: Any = _ErrorsAsItemsStream if isinstance(dataset, IterableDataset) else _ErrorsAsItems
    return BatchLoader(
        wrap(dataset),
        sampler=batches,
        batch_size=None,
        collate_fn=_identity,
        num_workers=num_workers,
        persistent_workers=persistent and num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def validation_loader(
    dataset: TokenDataset,
    clips: SequentialClips,
    batch_size: int,
    num_workers: int,
    trainer: pl.Trainer | None,
) -> BatchLoader:
    """Return the loader of this rank's share of `clips`: each once, the same number of batches on each rank."""
    rank, world_size = rank_and_world_size(trainer)
    batches = EvaluationBatchSampler(len(clips), batch_size=batch_size, rank=rank, world_size=world_size)
    return batch_loader(dataset, batches, num_workers)


def rank_and_world_size(trainer: pl.Trainer | None) -> tuple[int, int]:
    """Return this process's rank and the number of processes."""
    return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


def require_range(data: Any, **least: int) -> None:
    """Require `segment_duration` and other options to be in range, before memory or processes run out.

    Args:
        data: A data module.
        least: The smallest value of each option.

    Raises:
        UserError: Names the first option that is out of range.
    """
    seconds = data.segment_duration
    if not 0 < seconds <= _MAX_SECONDS:
        raise UserError(
            f"data.segment_duration is {seconds} s; give seconds above 0 and up to {_MAX_SECONDS}."
        )
    if data.segment_frames < 1:
        raise UserError(
            f"data.segment_duration {seconds} s is shorter than one token frame "
            f"(1/{data.codec.frame_rate:g} s); make it longer."
        )
    for name, limit in least.items():
        value, most = getattr(data, name), _MAX.get(name)
        if value < limit:
            raise UserError(f"data.{name} is {value}; it must be at least {limit}.")
        if most is not None and value > most:
            raise UserError(f"data.{name} is {value}; it must be at most {most}.")


def _identity(batch: Any) -> Any:
    """Replace PyTorch's default conversion, which walks through every string of the batch."""
    return batch
