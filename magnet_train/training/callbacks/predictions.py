"""Keep what `predict` generates: tokens, and the sound of them."""

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
    """Write `predictions/SLOT.npy` (tokens [K, T], int16, or uint16 for codebooks of more than 32,768 entries) and
    `SLOT.wav` into the run's folder, and a line for each clip.

    The slot is the caption's place among the validation clips. `predictions_RANK.jsonl` says key and text; keys
    are not used as names of files, since they may be anything.

    Args:
        codec: What to decode with: a hub id, packaged name or folder; None takes the one that made the data.
        audio: Write the WAV files.
    """

    def __init__(self, codec: str | None = None, audio: bool = True) -> None:
        super().__init__("batch")
        self.codec_name, self.audio = codec, audio
        self._codec: Codec | None = None
        self._written = 0  # clips of this rank

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the folder and find the codec before anything is generated."""
        self._written = 0
        assert isinstance(pl_module, MagnetModule)
        self._list(trainer).parent.mkdir(parents=True, exist_ok=True)
        self._list(trainer).unlink(missing_ok=True)  # of an earlier call
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
        """Write the clips of one batch, each file whole; rows that only fill it up are left out."""
        assert isinstance(pl_module, MagnetModule)
        tokens: Tensor = prediction.cpu()  # [B, K, T]
        clips = self._codec.decode(tokens) if self._codec is not None else None
        folder = self._list(trainer).parent
        with (
            explain_disk_errors(self._list(trainer)),
            self._list(trainer).open("a", encoding="utf-8") as lines,
        ):
            for row, slot in enumerate(batch["slot"].tolist()):
                if slot < 0:
                    continue
                with atomic_write(folder / f"{slot:06d}.npy") as file:
                    file.write(tokens_to_npy(tokens[row].numpy(), pl_module.codec.card))
                if clips is not None and self._codec is not None:
                    write_audio(folder / f"{slot:06d}.wav", clips[row], self._codec.sample_rate)
                record = {"slot": slot, "key": batch["key"][row], "text": batch["text"][row]}
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")
                self._written += 1

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how many clips there are, of all ranks, and where."""
        written = torch.tensor(self._written, device=trainer.strategy.root_device)
        clips = int(trainer.strategy.reduce(written, reduce_op="sum"))
        kinds = "tokens and sound" if self.audio else "tokens"
        rank_zero_info(f"wrote {kinds} of {clips} clips to {self._list(trainer).parent}")

    def _list(self, trainer: pl.Trainer) -> Path:
        return Path(trainer.default_root_dir) / FOLDER / f"predictions_{trainer.global_rank}.jsonl"
