"""Turn the tokens that validation sampled into WAV files and into audio in the logger."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from magnet_train.audio import write_audio
from magnet_train.codecs import Codec, load_codec
from magnet_train.module import MagnetModule


class SampleAudio(Callback):
    """Write `samples/step_N/*.wav` into the run's folder after each validation, and log them as audio.

    W&B and TensorBoard get the audio with its caption; other loggers only the files.

    Args:
        codec: What to decode with: a hub id, packaged name or folder; None takes the one that made the data.
    """

    def __init__(self, codec: str | None = None) -> None:
        self.codec_name = codec
        self._codec: Codec | None = None

    @rank_zero_only
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decode and write what the module sampled, if it did."""
        assert isinstance(pl_module, MagnetModule)
        if pl_module.sampled_tokens is None or trainer.sanity_checking:
            return
        codec = self._codec or load_codec(self.codec_name or pl_module.codec.id)
        self._codec = codec
        clips = codec.decode(pl_module.sampled_tokens.cpu())  # [prompts, channels, samples]
        folder = Path(trainer.default_root_dir) / "samples" / f"step_{trainer.global_step:07d}"
        folder.mkdir(parents=True, exist_ok=True)
        for index, clip in enumerate(clips):
            write_audio(folder / f"{index}.wav", clip, codec.sample_rate)
        self._log(trainer, clips, pl_module.sample_prompts, codec.sample_rate)
        pl_module.sampled_tokens = None

    def _log(self, trainer: pl.Trainer, clips: Tensor, prompts: list[str], sample_rate: int) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_audio(
                    "samples",
                    [clip.mT.numpy() for clip in clips],
                    step=trainer.global_step,
                    sample_rate=[sample_rate] * len(prompts),
                    caption=list(prompts),
                )
            elif isinstance(logger, TensorBoardLogger):
                for index, (clip, prompt) in enumerate(zip(clips, prompts, strict=True)):
                    tag = f"samples/{index} {prompt}"
                    logger.experiment.add_audio(
                        tag, clip.mean(0, keepdim=True), trainer.global_step, sample_rate
                    )
