"""Feed a model from shards: the LightningDataModule.

Shapes: see `dataset.TokenBatch`.
"""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from datamodules.dataset import TokenBatch, TokenDataset
from datamodules.manifest import read_manifest
from datamodules.order import Purpose
from datamodules.position import DataPosition
from datamodules.reading import ShardReader
from datamodules.sampler import EveryClipOnce, SlotBatchSampler
from magnet_train.errors import UserError
from magnet_train.tokens import CodecInfo


class TokenDataModule(pl.LightningDataModule):
    """Endless training batches in one global order, and validation batches that cover each clip once.

    The loader has no length: give the trainer `max_steps`, and `use_distributed_sampler=False` since the
    slots are shared out here. The callback `datamodules.DataPosition` has to be among the trainer's.

    Args:
        shards: Folder that `magnet-train tokenize` made.
        val_shards: Folder to validate on; None holds out a part of `shards`.
        val_fraction: Share of the clips that is held out, 0..1, at least one clip; a hash of the key decides,
            so that clips keep their side when others are added. Unused with `val_shards`.
        segment_duration: Length of a training example in seconds.
        batch_size: Examples in a batch on each device.
        num_workers: Loader processes on each device; 0 loads in the training process.
        seed: Decides order, crops and masks.

    Raises:
        UserError: A folder holds no shards, the two are of different codecs, or a number is out of range.
    """

    def __init__(
        self,
        shards: str | Path,
        val_shards: str | Path | None = None,
        val_fraction: float = 0.05,
        segment_duration: float = 10.0,
        batch_size: int = 8,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.shards = Path(shards)
        self.val_shards = None if val_shards is None else Path(val_shards)
        self.val_fraction = val_fraction
        self.segment_duration = segment_duration
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self._start = 0
        self._sampler: SlotBatchSampler | None = None
        self._train_clips = np.empty(0, dtype=np.int64)
        self._val_clips = np.empty(0, dtype=np.int64)
        self._manifest = read_manifest(self.shards)
        if self.val_shards is not None:
            other = read_manifest(self.val_shards).codec
            self.codec.require_same_tokens(other, str(self.shards), str(self.val_shards))
        self._check_numbers()

    @property
    def codec(self) -> CodecInfo:
        """Who made the tokens; read from the manifest, before any loader exists."""
        return self._manifest.codec

    @property
    def segment_frames(self) -> int:
        """Length T of every batch, in token frames."""
        return self.codec.frames(self.segment_duration)

    @property
    def train_clips(self) -> npt.NDArray[np.int64]:
        """Numbers of the clips in `shards` to train on; known after `setup`."""
        return self._train_clips

    def identity(self) -> dict[str, int | str]:
        """Say what a run's order depends on: a checkpoint resumes only where all of it is equal."""
        return {"seed": self.seed, "clips": len(self._train_clips), "fingerprint": self._manifest.fingerprint}

    def summary(self) -> dict[str, int | float | str]:
        """Say in a few words what the model learns from, for checkpoints and model cards."""
        manifest = self._manifest
        return {
            "clips": manifest.samples,
            "hours": round(manifest.seconds / 3600, 2),
            "fingerprint": manifest.fingerprint,
        }

    def start_at(self, slot: int) -> None:
        """Let the next iteration over the training loader begin at `slot`."""
        self._start = slot
        if self._sampler is not None:
            self._sampler.start = slot

    def setup(self, stage: str | None = None) -> None:
        """Open the index and tell training clips from held-out ones.

        Raises:
            UserError: A shard is truncated, or too few clips to hold some out.
        """
        reader = ShardReader(self.shards)
        if self.val_shards is None:
            hashes = reader.index["key_hash"]
            self._train_clips, self._val_clips = hold_out(hashes, self.val_fraction, self.shards)
        else:
            self._train_clips = np.arange(len(reader))
            self._val_clips = np.arange(len(ShardReader(self.val_shards)))

    def train_dataloader(self) -> DataLoader[TokenBatch]:
        """Return the endless loader of this rank.

        Raises:
            UserError: The trainer lacks the callback that keeps the position.
        """
        if self.trainer is not None and not any(isinstance(c, DataPosition) for c in self._callbacks()):
            raise UserError(
                "the trainer lacks the callback datamodules.DataPosition, without which a resumed run would "
                "repeat data; add it to trainer.callbacks."
            )
        self._sampler = SlotBatchSampler(
            self._train_clips,
            seed=self.seed,
            batch_size=self.batch_size,
            rank=self._rank(),
            world_size=self._world_size(),
            start=self._start,
        )
        return self._loader(self.shards, Purpose.TRAIN, self._sampler)

    def val_dataloader(self) -> DataLoader[TokenBatch]:
        """Return the loader of this rank's share of the validation clips: same crops and noise every time."""
        batches = EveryClipOnce(
            self._val_clips, batch_size=self.batch_size, rank=self._rank(), world_size=self._world_size()
        )
        return self._loader(self.val_shards or self.shards, Purpose.VALIDATION, batches)

    def test_dataloader(self) -> DataLoader[TokenBatch]:
        """Return the validation loader: there is no third split."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[TokenBatch]:
        """Return the validation loader: its captions are what `predict` turns into clips."""
        return self.val_dataloader()

    def _loader(
        self, folder: Path, purpose: Purpose, batches: SlotBatchSampler | EveryClipOnce
    ) -> DataLoader[TokenBatch]:
        dataset = TokenDataset(folder, frames=self.segment_frames, seed=self.seed, purpose=purpose)
        return DataLoader(
            dataset,
            sampler=batches,
            batch_size=None,  # one index is one batch: the worker makes it whole
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _callbacks(self) -> list[pl.Callback]:
        return [] if self.trainer is None else list(self.trainer.callbacks)  # type: ignore[attr-defined]

    def _rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    def _world_size(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size

    def _check_numbers(self) -> None:
        if self.segment_frames < 1:
            raise UserError(
                f"data.segment_duration {self.segment_duration} s is shorter than one token frame "
                f"(1/{self.codec.frame_rate:g} s); make it longer."
            )
        for name, least in (("batch_size", 1), ("num_workers", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"data.{name} is {getattr(self, name)} and has to be at least {least}.")
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"data.val_fraction is {self.val_fraction} and has to be in 0..1, 1 excluded.")


def hold_out(
    key_hashes: npt.NDArray[np.uint64], fraction: float, folder: Path
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split clips by the hash of their keys.

    Args:
        key_hashes: Evenly spread over 64 bits, [n].
        fraction: Share to hold out, 0..1.
        folder: Named in the error.

    Returns:
        Numbers of the clips to train on and of those held out, both sorted; never empty.

    Raises:
        UserError: Fewer than two clips.
    """
    if len(key_hashes) < 2:
        raise UserError(
            f"{folder} holds {len(key_hashes)} clip, so none can be held out for validation; add clips or "
            "name other shards with data.val_shards."
        )
    held = key_hashes / 2.0**64 < fraction
    if not held.any():
        held[np.argmin(key_hashes)] = True
    if held.all():
        held[np.argmax(key_hashes)] = False
    return np.flatnonzero(~held), np.flatnonzero(held)
