"""Files of `predict`: the generated tokens and their audio."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from magnet_train.audio import write_audio
from magnet_train.codecs import Codec, load_codec
from magnet_train.storage.atomic_io import atomic_write, explain_disk_errors
from magnet_train.tokens import tokens_to_npy
from magnet_train.training.module import MagnetModule

FOLDER = "predictions"


class WritePredictions(BasePredictionWriter):
    """Write `predictions/SLOT.npy` and `SLOT.wav` into the run's folder, and list the clips in `predictions_RANK.jsonl`.

    Tokens are [K, T], int16, or uint16 for codebooks of more than 32,768 entries. The slot is the index of the caption
    among the validation clips. The list has slot, key and text of each clip; a key can be any string, so no file is
    named after it.

    Args:
        codec: Codec that decodes the tokens: a hub id, packaged name or folder; None takes the codec of the data.
        audio: Whether to write the WAV files.
    """

    def __init__(self, codec: str | None = None, audio: bool = True) -> None:
        super().__init__("batch")
        self.codec_name, self.audio = codec, audio
        self._codec: Codec | None = None
        self._clips = 0  # written by this rank

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the folder and load the codec before anything is generated."""
        self._clips = 0
        assert isinstance(pl_module, MagnetModule)
        self._list(trainer).parent.mkdir(parents=True, exist_ok=True)
        self._list(trainer).unlink(missing_ok=True)  # from an earlier call
        if self.audio:
            self._codec = load_codec(self.codec_name or pl_module.codec.id)

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the clips of one batch, each file atomically; rows that pad the batch have slot -1."""
        assert isinstance(pl_module, MagnetModule)
        tokens: Tensor = prediction.cpu()  # [B, K, T]
        clips = self._codec.decode(tokens) if self._codec is not None else None
        listing = self._list(trainer)
        folder = listing.parent
        with explain_disk_errors(listing), listing.open("a", encoding="utf-8") as lines:
            for row, slot in enumerate(batch["slot"].tolist()):
                if slot < 0:
                    continue
                with atomic_write(folder / f"{slot:06d}.npy") as file:
                    file.write(tokens_to_npy(tokens[row].numpy(), pl_module.codec.card))
                if clips is not None and self._codec is not None:
                    write_audio(folder / f"{slot:06d}.wav", clips[row], self._codec.sample_rate)
                record = {"slot": slot, "key": batch["key"][row], "text": batch["text"][row]}
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")
                self._clips += 1

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the number of clips of all ranks, and the folder."""
        own = torch.tensor(self._clips, device=trainer.strategy.root_device)
        clips = int(trainer.strategy.reduce(own, reduce_op="sum"))
        kinds = "tokens and sound" if self.audio else "tokens"
        rank_zero_info(f"wrote {kinds} of {clips} clips to {self._list(trainer).parent}")

    def _list(self, trainer: pl.Trainer) -> Path:
        return Path(trainer.default_root_dir) / FOLDER / f"predictions_{trainer.global_rank}.jsonl"
