"""Load the clips of slots in a worker, whole batches at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from datamodules.batches import BatchMaker
from datamodules.sampling.batch_samplers import Slots
from datamodules.sampling.clips import ClipSampler, Drawn
from datamodules.shards.reading import Sample, ShardReader
from magnet_train.errors import UserError
from magnet_train.tokens import TokenBatch


class TokenDataset(Dataset[TokenBatch]):
    """Indexed with the numbers of slots, answers with a `TokenBatch`.

    Args:
        folders: Shards, one folder or several.
        draw: Which folder and clip a slot draws from.
        make_batch: Crops and joins what was read.
        skip: Let another clip stand in for a damaged one as `draw` says; if it names none, the row only fills
            up.
    """

    def __init__(
        self, folders: Sequence[Path], draw: ClipSampler, make_batch: BatchMaker, *, skip: bool = False
    ) -> None:
        self.readers = [ShardReader(folder) for folder in folders]
        self.draw = draw
        self.make_batch = make_batch
        self.skip = skip

    def __getitem__(self, slots: Slots) -> TokenBatch:
        """Load one batch; slots of -1 only fill up.

        Raises:
            UserError: A clip is damaged and must not be skipped, or too many are; names shard and key.
        """
        skipped: list[str] = []
        real = slots[slots >= 0]
        drawn = self.draw[real]
        samples: list[Sample | None] = [None] * len(slots)
        rows = np.flatnonzero(slots >= 0).tolist()
        for row, slot, folder, found in zip(
            rows, real.tolist(), drawn.folder.tolist(), self._read(drawn), strict=True
        ):
            if isinstance(found, UserError):
                samples[row] = self._stand_in(slot, folder, found, skipped)
            else:
                samples[row] = found
        return self.make_batch(slots, samples, skipped)

    def _read(self, drawn: Drawn) -> list[Sample | UserError]:
        if len(self.readers) == 1:
            return self.readers[0].read(drawn.clip)
        found: list[Sample | UserError] = [UserError()] * len(drawn.clip)
        for number, reader in enumerate(self.readers):
            rows = np.flatnonzero(drawn.folder == number)
            for row, sample in zip(rows.tolist(), reader.read(drawn.clip[rows]), strict=True):
                found[row] = sample
        return found

    def _stand_in(self, slot: int, folder: int, damage: UserError, skipped: list[str]) -> Sample | None:
        if not self.skip:
            raise damage
        skipped.append(f"slot {slot}: {damage}")
        clips = self.draw.instead(slot, folder)
        for clip in clips:
            (found,) = self.readers[folder].read(np.array([clip]))
            if isinstance(found, Sample):
                return found
        if len(clips):
            raise UserError(f"{damage} (slot {slot}; {len(clips)} clips tried in its place are damaged too)")
        return None
