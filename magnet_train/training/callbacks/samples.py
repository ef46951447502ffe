"""Audio of the tokens that validation sampled, as WAV files and in the loggers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor

from magnet_train.audio import draw_spectrogram, write_audio
from magnet_train.codecs import Codec, load_codec
from magnet_train.errors import UserError
from magnet_train.training.module import MagnetModule


class SampleAudio(Callback):
    """Write `samples/step_N/*.wav` and `*.png` into the run's folder after each validation, and log them.

    W&B gets a table at each validation (prompt, audio, spectrogram and the sampler's settings) and the audio alone,
    TensorBoard the audio, other loggers nothing.

    Args:
        codec: Codec that decodes the tokens: a hub id, packaged name or folder; None takes the codec of the data.
    """

    def __init__(self, codec: str | None = None) -> None:
        self.codec_name = codec
        self._codec: Codec | None = None
        self._draws = find_spec("matplotlib") is not None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that the module samples.

        Raises:
            UserError: The module is not a MagnetModule.
        """
        if not isinstance(pl_module, MagnetModule):
            raise UserError(
                f"the callback SampleAudio needs a magnet_train.training.module.MagnetModule and this run trains "
                f"{type(pl_module).__module__}.{type(pl_module).__qualname__}; remove it from trainer.callbacks."
            )
        if pl_module.sample_prompts and not self._draws:
            rank_zero_info(
                'samples get no spectrograms without matplotlib; run pip install "magnet-train[plots]".'
            )

    @rank_zero_only
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decode and write the sampled tokens, if there are any."""
        if (
            not isinstance(pl_module, MagnetModule)
            or pl_module.sampled_tokens is None
            or trainer.sanity_checking
        ):
            return
        codec = self._codec = self._codec or load_codec(self.codec_name or pl_module.codec.id)
        clips = codec.decode(pl_module.sampled_tokens.cpu())  # [prompts, channels, samples]
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
                _log_audio(logger, trainer.global_step, clips, pl_module.sample_prompts, codec.sample_rate)
        pl_module.sampled_tokens = None


def _log_table(logger: WandbLogger, step: int, folder: Path, module: MagnetModule) -> None:
    """Log a new table, since W&B does not update a logged one."""
    import wandb

    settings: dict[str, Any] = {name: str(value) for name, value in vars(module.decoding).items()}
    rows = [
        [
            step,
            prompt,
            wandb.Audio(str(folder / f"{index}.wav"), caption=prompt),
            wandb.Image(str(picture)) if picture.exists() else None,
            module.seed,
            *settings.values(),
        ]
        for index, prompt in enumerate(module.sample_prompts)
        for picture in [folder / f"{index}.png"]
    ]
    columns = ["step", "prompt", "audio", "spectrogram", "seed", *settings]
    logger.log_table("samples", columns=columns, data=rows, step=step)
    # Also without a table, whose media lie outside the run's folder until they are uploaded.
    names = [str(folder / f"{index}.wav") for index in range(len(rows))]
    logger.log_audio("audio", names, step=step, caption=list(module.sample_prompts))


def _log_audio(
    logger: TensorBoardLogger, step: int, clips: Tensor, prompts: list[str], sample_rate: int
) -> None:
    for index, (clip, prompt) in enumerate(zip(clips, prompts, strict=True)):
        tag = f"samples/{index} {prompt}"
        logger.experiment.add_audio(tag, clip.mean(0, keepdim=True), step, sample_rate)
