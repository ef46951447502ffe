"""Generated clips as files and in the loggers: samples of each validation, and the clips of `predict`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BasePredictionWriter, Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor

from magnet_train.audio import draw_spectrogram, write_audio
from magnet_train.codecs import Codec, load_codec
from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import atomic_write, explain_disk_errors
from magnet_train.tokens import tokens_to_npy
from magnet_train.training.module import MagnetModule

PREDICTIONS = "predictions"  # folder


class SampleAudio(Callback):
    """Write `samples/step_N/*.wav` and `*.png` into the run's folder after each validation, and log them.

    W&B gets a table at each validation (prompt, audio, spectrogram and the sampler's settings) and the audio alone,
    TensorBoard the audio, other loggers nothing. The share of the time since training began that samples have taken, 0..1,
    is logged as `speed/samples_share`, and printed at the end.

    Args:
        codec: Codec that decodes the tokens: a hub id, packaged name or folder; None takes the codec of the data.
    """

    def __init__(self, codec: str | None = None) -> None:
        self.codec_name = codec
        self._codec: Codec | None = None
        self._began: float | None = None  # of training
        self._seconds = 0.0  # of samples since then
        self._draws = find_spec("matplotlib") is not None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not isinstance(pl_module, MagnetModule):
            raise UserError(
                f"the callback SampleAudio needs a magnet_train.training.module.MagnetModule and this run trains "
                f"{type(pl_module).__module__}.{type(pl_module).__qualname__}; remove it from trainer.callbacks."
            )
        if pl_module.sample_prompts and not self._draws:
            rank_zero_info(
                'samples get no spectrograms without matplotlib; run pip install "magnet-train[plots]".'
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began, self._seconds = time.monotonic(), 0.0

    @rank_zero_only
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decode and write the sampled tokens, if there are any."""
        assert isinstance(pl_module, MagnetModule)
        if pl_module.sampled_tokens is None or trainer.sanity_checking:
            return
        began = time.monotonic()
        self._write(trainer, pl_module, pl_module.sampled_tokens.cpu())
        pl_module.sampled_tokens = None
        self._seconds += pl_module.sampling_seconds + time.monotonic() - began
        if self._began is not None:
            share = self._seconds / (time.monotonic() - self._began)
            for logger in trainer.loggers:
                logger.log_metrics({"speed/samples_share": share}, trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._seconds and self._began is not None:
            share = self._seconds / (time.monotonic() - self._began)
            rank_zero_info(
                f"samples in validation took {self._seconds:.1f} s, {100 * share:.0f} % of the time of training"
            )

    def _write(self, trainer: pl.Trainer, pl_module: MagnetModule, tokens: Tensor) -> None:
        codec = self._codec = self._codec or _load_codec(pl_module, self.codec_name)
        clips = codec.decode(tokens)  # [prompts, channels, samples]
        folder = Path(trainer.default_root_dir) / "samples" / f"step_{trainer.global_step:07d}"
        folder.mkdir(parents=True, exist_ok=True)
        for index, clip in enumerate(clips):
            write_audio(folder / f"{index}.wav", clip, codec.sample_rate)
            if self._draws:
                draw_spectrogram(clip, codec.sample_rate, folder / f"{index}.png")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                _log_table(logger, trainer.global_step, folder, pl_module)
            elif isinstance(logger, TensorBoardLogger):
                for index, (clip, prompt) in enumerate(zip(clips, pl_module.sample_prompts, strict=True)):
                    tag, mono = f"samples/{index} {prompt}", clip.mean(0, keepdim=True)
                    logger.experiment.add_audio(tag, mono, trainer.global_step, codec.sample_rate)


def _load_codec(module: MagnetModule, name: str | None) -> Codec:
    """Load the codec of the tokens, from the place `name` unless None."""
    return load_codec(module.codec if name is None else replace(module.codec, id=name))


def _log_table(logger: WandbLogger, step: int, folder: Path, module: MagnetModule) -> None:
    """Log a new table, since W&B does not update a logged one."""
    import wandb

    settings: dict[str, Any] = {name: str(value) for name, value in vars(module.decoding).items()}
    rows = []
    for index, prompt in enumerate(module.sample_prompts):
        audio, picture = folder / f"{index}.wav", folder / f"{index}.png"
        image = wandb.Image(str(picture)) if picture.exists() else None
        rows.append(
            [step, prompt, wandb.Audio(str(audio), caption=prompt), image, module.seed, *settings.values()]
        )
    columns = ["step", "prompt", "audio", "spectrogram", "seed", *settings]
    logger.log_table("samples", columns=columns, data=rows, step=step)
    # Also without a table, whose media lie outside the run's folder until they are uploaded.
    names = [str(folder / f"{index}.wav") for index in range(len(rows))]
    logger.log_audio("audio", names, step=step, caption=list(module.sample_prompts))


class WritePredictions(BasePredictionWriter):
    """Write `predictions/SLOT.npy` and `SLOT.wav` into the run's folder, and list the clips in `predictions_RANK.jsonl`.

    Tokens are [K, T], int16, or uint16 for codebooks of more than 32,768 entries. The slot is the index of the caption
    among the validation clips. The list has slot, key and text of each clip, and the trainer's precision; a key can be any
    string, so no file is named after it.

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
        assert isinstance(pl_module, MagnetModule)
        self._clips = 0
        self._list(trainer).parent.mkdir(parents=True, exist_ok=True)
        self._list(trainer).unlink(missing_ok=True)  # from an earlier call
        if self.audio:
            self._codec = _load_codec(pl_module, self.codec_name)

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
        clips = None if self._codec is None else self._codec.decode(tokens)
        listing = self._list(trainer)
        with explain_disk_errors(listing), listing.open("a", encoding="utf-8") as lines:
            for row, slot in enumerate(batch["slot"].tolist()):
                if slot < 0:
                    continue
                with atomic_write(listing.with_name(f"{slot:06d}.npy")) as file:
                    file.write(tokens_to_npy(tokens[row].numpy(), pl_module.codec.card))
                if self._codec is not None and clips is not None:
                    write_audio(listing.with_name(f"{slot:06d}.wav"), clips[row], self._codec.sample_rate)
                record = {
                    "slot": slot,
                    "key": batch["key"][row],
                    "text": batch["text"][row],
                    "precision": str(trainer.precision),
                }
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")
                self._clips += 1

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        own = torch.tensor(self._clips, device=trainer.strategy.root_device)
        clips = int(trainer.strategy.reduce(own, reduce_op="sum"))
        kinds = "tokens and sound" if self.audio else "tokens"
        rank_zero_info(f"wrote {kinds} of {clips} clips to {self._list(trainer).parent}")

    def _list(self, trainer: pl.Trainer) -> Path:
        return Path(trainer.default_root_dir) / PREDICTIONS / f"predictions_{trainer.global_rank}.jsonl"
