"""Make batches of equally long clips, in the worker.

Shapes: tokens int64 [B, K, T] (card where there is no audio), valid bool [B, T], noise float32 [B, 2 + T],
slot int64 [B]; B rows, K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.caption_augmentation import CaptionAugmentation
from datamodules.draw import Draw, Drawn
from datamodules.order import Purpose, below, random_bits, uniforms
from datamodules.reading import Sample, ShardReader
from datamodules.sampler import Slots
from magnet_train.errors import UserError


class TokenBatch(TypedDict):
    """What training and validation steps get.

    Keys:
        tokens: int64 [B, K, T]; padded frames hold card.
        valid: bool [B, T]; False in padded frames.
        noise: float32 [B, 2 + T] in [0, 1), the same for a slot in every run: column 0 for the mask rate,
            1 for dropping the text, the rest for the order of the spans.
        text: B captions, "" where there is none.
        key: B keys as the shards have them, "" in rows that only fill up.
        slot: int64 [B]; -1 in rows that only fill up.
        skipped: For each damaged clip that another one stands in for, what is wrong with it.
    """

    tokens: Tensor
    valid: Tensor
    noise: Tensor
    text: list[str]
    key: list[str]
    slot: Tensor
    skipped: list[str]


class TokenDataset(Dataset[TokenBatch]):
    """Load whole batches: indexed with the numbers of slots, answers with a `TokenBatch`.

    Longer clips give a crop whose place the slot decides, shorter ones are padded.

    Args:
        folders: Shards, one folder or several.
        draw: Which folder and clip a slot draws from.
        frames: Length of every row, T.
        seed: The run's seed.
        purpose: Validation draws other crops and noise than training.
        captions: How to vary captions; None leaves them alone.
        skip: Let another clip stand in for a damaged one as `draw` says; if it names none, the row only fills
            up.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        draw: Draw,
        *,
        frames: int,
        seed: int,
        purpose: Purpose,
        captions: CaptionAugmentation | None = None,
        skip: bool = False,
    ) -> None:
        self.readers = [ShardReader(folder) for folder in folders]
        self.draw = draw
        self.frames = frames
        self.seed = seed
        self.purpose = purpose
        self.captions = captions
        self.skip = skip

    def __getitem__(self, slots: Slots) -> TokenBatch:
        """Load one batch.

        Raises:
            UserError: A clip is damaged and must not be skipped, or too many are; names shard and key.
        """
        codec = self.readers[0].manifest.codec
        shape = (len(slots), codec.n_q, self.frames)
        tokens = np.full(shape, codec.mask_id, dtype=np.int64)
        noise = np.zeros((len(slots), 2 + self.frames), dtype=np.float32)
        lengths = np.zeros(len(slots), dtype=np.int64)
        text, key = [""] * len(slots), [""] * len(slots)
        skipped: list[str] = []
        used = np.flatnonzero(slots >= 0)
        slots = slots.copy()
        bits = random_bits(self.seed, slots[used], self.purpose, 2 + self.frames // 2 + 1)
        noise[used] = uniforms(bits[:, 1:])[:, : noise.shape[1]]
        samples = self._samples(slots[used], skipped)
        for row, crop_bits, sample in zip(used.tolist(), bits[:, 0].tolist(), samples, strict=True):
            if sample is None:
                slots[row], noise[row] = -1, 0
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
            noise=torch.from_numpy(noise),
            text=text,
            key=key,
            slot=torch.from_numpy(slots),
            skipped=skipped,
        )

    def _caption(self, sample: Sample, slot: int) -> str:
        if self.captions is None:
            return str(sample.metadata.get("text", ""))
        return self.captions.caption(sample.metadata, self.seed, slot)

    def _samples(self, slots: Slots, skipped: list[str]) -> list[Sample | None]:
        """Return the slots' clips, None where one is damaged and nothing may stand in for it."""
        drawn = self.draw[slots]
        return [
            self._replacement(int(slot), int(folder), found, skipped)
            if isinstance(found, UserError)
            else found
            for slot, folder, found in zip(slots, drawn.folder, self._read(drawn), strict=True)
        ]

    def _read(self, drawn: Drawn) -> list[Sample | UserError]:
        if len(self.readers) == 1:
            return self.readers[0].read(drawn.clip)
        found: list[Sample | UserError] = [UserError()] * len(drawn.clip)
        for number, reader in enumerate(self.readers):
            rows = np.flatnonzero(drawn.folder == number)
            for row, sample in zip(rows, reader.read(drawn.clip[rows]), strict=True):
                found[row] = sample
        return found

    def _replacement(self, slot: int, folder: int, damage: UserError, skipped: list[str]) -> Sample | None:
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
