"""A summary printed once before training: clips, steps, parameters, memory, and options without effect."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from datamodules import TokenDataModule
from magnet_train.cli.formatting import duration
from magnet_train.models.transformer import count_parameters
from magnet_train.text import NoText
from magnet_train.training.callbacks import SampleAudio
from magnet_train.training.module import MagnetModule

# Bytes a trained parameter takes in 32-bit training with Adam: itself, gradient, two moments; the average more.
_TRAINED, _AVERAGED, _FROZEN = 16, 4, 4


class StartSummary(Callback):
    """Print `describe_run` once, and a line for each option without effect."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the summary, now that the data is set up."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(pl_module, MagnetModule) and isinstance(data, TokenDataModule):
            rank_zero_info(describe_run(trainer, pl_module, data))
            for option in without_effect(trainer, pl_module, data):
                rank_zero_info(f"without effect: {option}")


def describe_run(trainer: pl.Trainer, model: MagnetModule, data: TokenDataModule) -> str:
    """Describe clips, steps, parameters and memory in a few lines."""
    seconds = data.train_clips * data.segment_duration
    trained = count_parameters(model, trainable_only=True)
    frozen = _frozen_parameters(model)
    averaged = any("averag" in type(callback).__name__.lower() for callback in trainer.callbacks)  # type: ignore[attr-defined]
    memory = (trained * (_TRAINED + (_AVERAGED if averaged else 0)) + frozen * _FROZEN) / 1e6
    whole = all(parameter.requires_grad for parameter in model.lm.parameters())
    text = f"{'the text encoder' if whole else 'parts of the model'} ({frozen:,})" if frozen else "nothing"
    share = f"{trained:,} of {trained + frozen:,}"
    share = f"LoRA trains {share}" if "adapter" in model.origin else f"{share} train"
    with_text = "" if isinstance(model.text, NoText) else ", those of the text encoder included"
    return (
        f"clips       {data.segment_duration:g} s, {data.segment_frames} frames of {model.codec.n_q} codebooks "
        f"(codec {data.codec.id}); {data.train_clips:,} to train on, at most {duration(seconds)}\n"
        f"step        {_batch(trainer, data)}; {trainer.max_steps:,} steps\n"
        f"parameters  {share}{with_text}; frozen: {text}\n"
        f"memory      about {memory:,.0f} MB for weights, gradients, Adam and average if not sharded; "
        "activations come on top and grow with data.batch_size\n"
        f"everything goes to {trainer.default_root_dir}"
    )


def _batch(trainer: pl.Trainer, data: TokenDataModule) -> str:
    """Return the number of clips of a step, with its factors where it is not one batch."""
    devices, parts = trainer.world_size, trainer.accumulate_grad_batches
    factors = [str(data.batch_size)]
    factors += [f"{devices} devices"] if devices > 1 else []
    factors += [f"{parts} accumulated parts"] if parts > 1 else []
    clips = f"{data.batch_size * devices * parts} clips"
    return clips if len(factors) == 1 else f"{clips} ({' x '.join(factors)})"


def without_effect(trainer: pl.Trainer, model: MagnetModule, data: TokenDataModule) -> Iterator[str]:
    """Yield the options that change nothing in this run, each with the reason."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    batches = trainer.max_steps * trainer.accumulate_grad_batches
    interval = getattr(trainer, "val_check_interval", None)  # missing where it is a time
    if isinstance(model.text, NoText) and model.cfg_dropout > 0:
        yield f"model.cfg_dropout {model.cfg_dropout:g}: the model has no text encoder"
    if (isinstance(model.text, NoText) or model.cfg_dropout == 0) and model.decoding.max_cfg_coef > 1:
        yield f"model.decoding.max_cfg_coef {model.decoding.max_cfg_coef:g}: guidance needs captions and caption dropout"
    if model.sample_prompts and not any(isinstance(callback, SampleAudio) for callback in callbacks):
        yield "model.sample_prompts: no callback SampleAudio decodes them to audio"
    default = inspect.signature(type(data)).parameters["val_fraction"].default
    if data.val_shards is not None and data.val_fraction != default:
        yield f"data.val_fraction {data.val_fraction:g}: the validation clips are those of data.val_shards"
    if isinstance(interval, int) and 0 < batches < interval:
        yield f"trainer.val_check_interval {interval}: the run has {batches} batches and never validates"
    if 0 < trainer.max_steps < trainer.log_every_n_steps:  # type: ignore[attr-defined]
        yield f"trainer.log_every_n_steps {trainer.log_every_n_steps}: the run has {trainer.max_steps} steps"  # type: ignore[attr-defined]


def _frozen_parameters(model: nn.Module) -> int:
    """Count parameters that do not train, also those that an encoder keeps out of the checkpoint."""
    registered = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    hidden = getattr(getattr(model, "text", None), "_frozen", None)
    return registered + (0 if hidden is None else count_parameters(hidden.module))
