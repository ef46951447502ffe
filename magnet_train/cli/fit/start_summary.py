"""Summary before training: clips, steps, parameters, memory, and options without effect."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.utilities import rank_zero_info

from datamodules import TokenDataModule
from magnet_train.cli.console import duration
from magnet_train.models.transformer import count_parameters
from magnet_train.text import NoText
from magnet_train.training.callbacks import SampleAudio
from magnet_train.training.cost import state_bytes
from magnet_train.training.module import MagnetModule
from magnet_train.training.optim import MovingAverage


class StartSummary(Callback):
    """Print `describe_run` once, and one line for each option without effect."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the summary, now that the data is known."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(pl_module, MagnetModule) and isinstance(data, TokenDataModule):
            rank_zero_info(describe_run(trainer, pl_module, data))
            for option in without_effect(trainer, pl_module, data):
                rank_zero_info(f"without effect: {option}")


def describe_run(trainer: pl.Trainer, model: MagnetModule, data: TokenDataModule) -> str:
    """Describe clips, steps, parameters and memory in five lines."""
    seconds = data.train_clips * data.segment_duration
    trained = count_parameters(model, trainable_only=True)
    frozen = count_parameters(model) - trained
    if (encoder := getattr(model.text, "_frozen", None)) is not None:  # kept out of the checkpoint
        frozen += count_parameters(encoder.module)
    averaged = any(isinstance(c, (MovingAverage, WeightAveraging)) for c in trainer.callbacks)  # type: ignore[attr-defined]
    megabytes = state_bytes(trained, frozen, averaged) / 1e6
    whole = all(parameter.requires_grad for parameter in model.lm.parameters())
    text = f"{'the text encoder' if whole else 'parts of the model'} ({frozen:,})" if frozen else "nothing"
    share = f"{trained:,} of {trained + frozen:,}"
    share = f"LoRA trains {share}" if "adapter" in model.origin else f"{share} train"
    with_text = "" if isinstance(model.text, NoText) else ", those of the text encoder included"
    return (
        f"clips       {data.segment_duration:g} s, {data.segment_frames} frames of {model.codec.codebooks} "
        f"(codec {data.codec.id}); {data.train_clips:,} to train on, at most {duration(seconds)} in a pass\n"
        f"step        {_batch(trainer, data)}; {trainer.max_steps:,} steps; precision {trainer.precision}\n"
        f"parameters  {share}{with_text}; frozen: {text}\n"
        f"memory      about {megabytes:,.0f} MB for weights, gradients, Adam and average if not sharded; activations are "
        "extra and grow with data.batch_size, see `magnet-train inspect --memory`\n"
        f"output      {trainer.default_root_dir}"
    )


def _batch(trainer: pl.Trainer, data: TokenDataModule) -> str:
    """Return the clips of a step, with the factors if it has more than one batch."""
    devices, parts = trainer.world_size, trainer.accumulate_grad_batches
    factors = [str(data.batch_size)]
    factors += [f"{devices} devices"] if devices > 1 else []
    factors += [f"{parts} accumulated batches"] if parts > 1 else []
    clips = f"{data.batch_size * devices * parts} clips"
    return clips if len(factors) == 1 else f"{clips} ({' x '.join(factors)})"


def without_effect(trainer: pl.Trainer, model: MagnetModule, data: TokenDataModule) -> Iterator[str]:
    """List the options that change nothing in this run, with the reason."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    batches = trainer.max_steps * trainer.accumulate_grad_batches
    interval = getattr(trainer, "val_check_interval", None)  # absent where it is a time
    if isinstance(model.text, NoText) and model.cfg_dropout > 0:
        yield f"model.cfg_dropout {model.cfg_dropout:g}: the model has no text encoder"
    if (isinstance(model.text, NoText) or model.cfg_dropout == 0) and model.decoding.max_cfg_coef > 1:
        yield f"model.decoding.max_cfg_coef {model.decoding.max_cfg_coef:g}: guidance needs captions and cfg_dropout > 0"
    if model.sample_prompts and not any(isinstance(callback, SampleAudio) for callback in callbacks):
        yield "model.sample_prompts: no callback SampleAudio writes them as audio"
    default = inspect.signature(type(data)).parameters["val_fraction"].default
    if data.val_shards is not None and data.val_fraction != default:
        yield f"data.val_fraction {data.val_fraction:g}: data.val_shards names the validation clips"
    if isinstance(interval, int) and 0 < batches < interval:
        yield f"trainer.val_check_interval {interval}: the run has {batches} batches and never validates"
    if 0 < trainer.max_steps < trainer.log_every_n_steps:  # type: ignore[attr-defined]
        yield f"trainer.log_every_n_steps {trainer.log_every_n_steps}: the run has {trainer.max_steps} steps"  # type: ignore[attr-defined]
