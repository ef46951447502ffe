"""Datasets and loaders whose workers build whole batches: crop clips to one length, draw mask noise from (seed, slot).

Shapes: tokens int64 [B, K, T] (card in padded frames), valid bool [B, T], noise float32 [B, 2 + T], slot int64 [B];
B rows, K codebooks, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.caption_augmentation import CaptionAugmentation
from datamodules.sampling.order import Purpose, below, random_bits, uniforms
from datamodules.sampling.samplers import ClipSampler, SampledClips, Slots
from datamodules.shards.reading import ShardReader
from datamodules.shards.scan import Sample
from magnet_train.errors import UserError
from magnet_train.tokens import SPANS, CodecInfo, TokenBatch

# Before the text, in the traceback of a worker.
_RAISED = f"{UserError.__module__}.{UserError.__qualname__}: "


@dataclass(frozen=True)
class BatchMaker:
    """Collate samples; longer ones are cropped at a place drawn from (seed, slot), shorter ones padded."""

    codec: CodecInfo  # gives K and card
    frames: int  # length of every row, T
    seed: int
    purpose: Purpose  # random stream: training and validation have different crops and noise
    captions: CaptionAugmentation | None = None  # None leaves captions unchanged

    def __call__(
        self, slots: Slots, samples: Sequence[Sample | None], skipped: Sequence[str] = ()
    ) -> TokenBatch:
        """Make a batch of B slots; a row without a sample is padding, and its slot may be -1."""
        tokens = np.full((len(slots), self.codec.n_q, self.frames), self.codec.mask_id, dtype=np.int64)
        lengths = np.zeros(len(slots), dtype=np.int64)
        text, key = [""] * len(slots), [""] * len(slots)
        used = np.array([sample is not None for sample in samples])
        columns = SPANS + self.frames  # of `noise`
        words = 1 + math.ceil(columns / 2)  # one for the crop; the others give two numbers of `noise` each
        bits = random_bits(self.seed, np.where(used, slots, 0), self.purpose, words)
        noise = uniforms(bits[:, 1:])[:, :columns]
        noise[~used] = 0
        for row, (crop_bits, sample) in enumerate(zip(bits[:, 0].tolist(), samples, strict=True)):
            if sample is None:
                continue
            spare = max(0, sample.tokens.shape[1] - self.frames)
            start = below(crop_bits, spare + 1)
            crop = sample.tokens[:, start : start + self.frames]  # [K, <= T]
            lengths[row] = length = crop.shape[1]
            tokens[row, :, :length] = crop
            text[row] = self._caption(sample, slots[row])
            key[row] = sample.key
        return TokenBatch(
            tokens=torch.from_numpy(tokens),
            valid=torch.from_numpy(np.arange(self.frames) < lengths[:, None]),
            noise=torch.from_numpy(np.ascontiguousarray(noise)),
            text=text,
            key=key,
            slot=torch.from_numpy(np.where(used, slots, -1)),
            skipped=list(skipped),
        )

    def _caption(self, sample: Sample, slot: int) -> str:
        if self.captions is None:
            return str(sample.metadata.get("text", ""))
        return self.captions.caption(sample.metadata, self.seed, slot)


class TokenDataset(Dataset[TokenBatch]):
    """Map-style dataset whose index is an array of slots and whose item is a batch.

    Args:
        readers: Shards, one folder or several.
        sampler: Maps slots to folders and clips.
        make_batch: Crops and joins samples.
        skip: Replace a damaged clip as `sampler` decides; without a replacement the row is padding.
    """

    def __init__(
        self,
        readers: Sequence[ShardReader],
        sampler: ClipSampler,
        make_batch: BatchMaker,
        *,
        skip: bool = False,
    ) -> None:
        self.readers = readers
        self.sampler = sampler
        self.make_batch = make_batch
        self.skip = skip

    def __getitem__(self, slots: Slots) -> TokenBatch:
        """Load one batch; a slot of -1 gives a padding row.

        Raises:
            UserError: A clip is damaged and must not be skipped, or its replacements are too; names shard and key.
        """
        skipped: list[str] = []
        clips = self.sampler[slots[slots >= 0]]
        samples: list[Sample | None] = [None] * len(slots)
        rows = np.flatnonzero(slots >= 0).tolist()
        for row, folder, sample in zip(rows, clips.folder.tolist(), self._read(clips), strict=True):
            if isinstance(sample, UserError):
                samples[row] = self._replace(int(slots[row]), folder, sample, skipped)
            else:
                samples[row] = sample
        return self.make_batch(slots, samples, skipped)

    def _read(self, clips: SampledClips) -> list[Sample | UserError]:
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
            first = str(damage).removesuffix(".")
            raise UserError(f"{first}; {len(clips)} clips tried in its place are damaged too (slot {slot}).")
        return None


class BatchLoader(DataLoader[TokenBatch]):
    """DataLoader that raises a `UserError` of a worker with its own text, from which torch makes a traceback."""

    def __iter__(self) -> Any:
        try:
            yield from super().__iter__()
        except UserError as error:
            raise UserError(str(error).rpartition(_RAISED)[2].strip()) from None


def batch_loader(
    dataset: Dataset[TokenBatch], batches: Iterable[Slots] | None, num_workers: int
) -> BatchLoader:
    """Return a loader for a dataset of whole batches; `batches` are its indices, None if it is iterable."""
    return BatchLoader(
        dataset,
        sampler=batches,
        batch_size=None,
        collate_fn=_identity,
        num_workers=num_workers,
        # new workers for each iteration of a stream: persistent ones would not see a changed `start`
        persistent_workers=batches is not None and num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def _identity(batch: Any) -> Any:
    """Replace PyTorch's default conversion, which walks through every string of the batch."""
    return batch
