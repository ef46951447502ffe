"""Batches of clips of one length: crop or pad, and draw crop and mask noise from (seed, slot).

Shapes: tokens int64 [B, K, T] (card in padded frames), valid bool [B, T], noise float32 [B, 2 + T], slot int64 [B];
B rows, K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from datamodules.caption_augmentation import CaptionAugmentation
from datamodules.sampling.batch_samplers import Slots
from datamodules.sampling.order import Purpose, below, random_bits, uniforms
from datamodules.shards.reading import Sample
from magnet_train.tokens import CodecInfo, TokenBatch


@dataclass(frozen=True)
class BatchMaker:
    """Collate samples; a longer one is cropped at a place that the slot decides, a shorter one padded.

    Args:
        codec: Gives K and card.
        frames: Length of every row, T.
        seed: The run's seed.
        purpose: Random stream: training and validation have different crops and noise.
        captions: Caption augmentation; None leaves captions unchanged.
    """

    codec: CodecInfo
    frames: int
    seed: int
    purpose: Purpose
    captions: CaptionAugmentation | None = None

    def __call__(
        self, slots: Slots, samples: Sequence[Sample | None], skipped: Sequence[str] = ()
    ) -> TokenBatch:
        """Make one batch.

        Args:
            slots: [B], each 0 or more in rows with a sample.
            samples: B of them; None gives a padding row.
            skipped: Passed on in the batch.
        """
        tokens = np.full((len(slots), self.codec.n_q, self.frames), self.codec.mask_id, dtype=np.int64)
        lengths = np.zeros(len(slots), dtype=np.int64)
        text, key = [""] * len(slots), [""] * len(slots)
        used = np.array([sample is not None for sample in samples])
        bits = random_bits(self.seed, np.where(used, slots, 0), self.purpose, 2 + self.frames // 2 + 1)
        noise = uniforms(bits[:, 1:])[:, : 2 + self.frames]
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
