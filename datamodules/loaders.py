"""DataLoaders whose datasets make whole batches, and what a rank needs to know for its share of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from datamodules.dataset import TokenDataset
from datamodules.sampling.batch_samplers import EvaluationBatchSampler, Slots
from datamodules.sampling.clips import SequentialClips
from magnet_train.errors import UserError
from magnet_train.tokens import TokenBatch

_MOST_SECONDS = 86400
_MOST = {"batch_size": 2**16, "num_workers": 1024, "seed": 2**63 - 1}


class _Told(Dataset[TokenBatch | UserError]):
    """Hand a `UserError` on as an answer: raised in a worker, it would come out with a traceback in its words."""

    def __init__(self, dataset: Dataset[TokenBatch]) -> None:
        self.dataset = dataset

    def __getitem__(self, index: Slots) -> TokenBatch | UserError:
        try:
            return self.dataset[index]
        except UserError as error:
            return UserError(str(error))


class _ToldStream(IterableDataset[TokenBatch | UserError]):
    """The same for a stream."""

    def __init__(self, dataset: IterableDataset[TokenBatch]) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[TokenBatch | UserError]:
        try:
            yield from self.dataset
        except UserError as error:
            yield UserError(str(error))


class BatchLoader(DataLoader[TokenBatch]):
    """Yield what the dataset makes, and raise in this process what a worker could not."""

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
    """Return a loader that hands on what the dataset makes.

    Args:
        dataset: One item is one batch.
        batches: What to index it with; None for an iterable dataset.
        num_workers: Processes; 0 loads in this one.
        persistent: Keep the processes from one iteration to the next.
    """
    told = _ToldStream(dataset) if isinstance(dataset, IterableDataset) else _Told(dataset)
    return BatchLoader(
        told,  # type: ignore[arg-type]
        sampler=batches,
        batch_size=None,
        collate_fn=_as_it_is,
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
    """Return the loader of this rank's share of `clips`: each once, equally many batches on each rank."""
    rank, world_size = layout(trainer)
    batches = EvaluationBatchSampler(len(clips), batch_size=batch_size, rank=rank, world_size=world_size)
    return batch_loader(dataset, batches, num_workers)


def layout(trainer: pl.Trainer | None) -> tuple[int, int]:
    """Return this process's rank and how many there are."""
    return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


def require_at_least(data: pl.LightningDataModule, **least: int) -> None:
    """Require options to be large enough, and none to be so large that memory or processes run out before the start.

    Raises:
        UserError: Names the first that is not.
    """
    for name, limit in least.items():
        value, most = getattr(data, name), _MOST.get(name)
        if value < limit:
            raise UserError(f"data.{name} is {value} and has to be at least {limit}.")
        if most is not None and value > most:
            raise UserError(f"data.{name} is {value} and has to be at most {most}.")


def require_clip_length(seconds: float) -> None:
    """Require a length that a clip can have, before frames are counted.

    Raises:
        UserError: It is not above 0 and at most a day.
    """
    if not 0 < seconds <= _MOST_SECONDS:
        raise UserError(
            f"data.segment_duration is {seconds} s; give seconds above 0 and up to {_MOST_SECONDS}."
        )


def _as_it_is(batch: Any) -> Any:
    """Spare the batch the walk through every string of it that PyTorch would take."""
    return batch
