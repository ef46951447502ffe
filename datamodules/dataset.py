"""Make batches of equally long clips, in the worker.

Shapes: tokens int64 [B, K, T] (card where there is no audio), valid bool [B, T], noise float32 [B, 2 + T],
slot int64 [B]; B rows, K codebooks, T frames.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.order import Purpose, below, random_bits, uniforms
from datamodules.reading import ShardReader
from datamodules.sampler import Batch


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
    """

    tokens: Tensor
    valid: Tensor
    noise: Tensor
    text: list[str]
    key: list[str]
    slot: Tensor


class TokenDataset(Dataset[TokenBatch]):
    """Load whole batches: indexed with a list of (slot, clip), answers with a `TokenBatch`.

    Longer clips give a crop whose place the slot decides, shorter ones are padded.

    Args:
        folder: Shards.
        frames: Length of every row, T.
        seed: The run's seed.
        purpose: Validation draws other crops and noise than training.
    """

    def __init__(self, folder: Path, *, frames: int, seed: int, purpose: Purpose) -> None:
        self.reader = ShardReader(folder)
        self.frames = frames
        self.seed = seed
        self.purpose = purpose

    def __getitem__(self, batch: Batch) -> TokenBatch:
        """Load one batch.

        Raises:
            UserError: A clip is damaged; names shard and key.
        """
        codec = self.reader.manifest.codec
        tokens = np.full((len(batch), codec.n_q, self.frames), codec.mask_id, dtype=np.int64)
        valid = np.zeros((len(batch), self.frames), dtype=np.bool_)
        noise = np.zeros((len(batch), 2 + self.frames), dtype=np.float32)
        text, key = [""] * len(batch), [""] * len(batch)
        for row, (slot, clip) in enumerate(batch):
            if slot < 0:
                continue
            bits = random_bits(self.seed, slot, self.purpose, 3 + self.frames)
            noise[row] = uniforms(bits[1:])
            sample = self.reader[clip]
            spare = max(0, sample.tokens.shape[1] - self.frames)
            start = below(bits[0], spare + 1)
            crop = sample.tokens[:, start : start + self.frames]  # [K, <= T]
            tokens[row, :, : crop.shape[1]] = crop
            valid[row, : crop.shape[1]] = True
            text[row], key[row] = sample.metadata.get("text", ""), sample.key
        return TokenBatch(
            tokens=torch.from_numpy(tokens),
            valid=torch.from_numpy(valid),
            noise=torch.from_numpy(noise),
            text=text,
            key=key,
            slot=torch.tensor([slot for slot, _ in batch]),
        )
