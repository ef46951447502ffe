"""Trade work for memory, compile, and count the parts of a large batch."""

from __future__ import annotations

from functools import partial

import lightning.pytorch as pl
import torch
from torch.utils.checkpoint import checkpoint

from magnet_train.errors import UserError
from magnet_train.models import MagnetTransformer

MOST_GRAPHS = 32


def recompute_activations(lm: MagnetTransformer) -> None:
    """Keep only the input of each layer for the backward pass: a third more work, a fraction of the memory."""
    for layer in lm.layers:
        # Not torch's wrapper module, which renames the weights within. A layer draws no random numbers.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def compile_layers(lm: MagnetTransformer, backend: str = "inductor") -> None:
    """Compile the layers where they stand; they share one graph for each way of being called.

    Sizes that vary, clips of a codebook and tokens of a text, are symbols in it from the start, so that no
    step compiles anew.

    Args:
        lm: The model.
        backend: Of `torch.compile`.
    """
    # Restricted or not, with and without text, one row or several: more than torch expects of one function.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
    for layer in lm.layers:
        layer.compile(backend=backend, dynamic=True)


def accumulate(trainer: pl.Trainer, batch_size: int, global_batch: int | None) -> None:
    """Let the trainer gather so many batches that a step is of `global_batch` clips.

    Args:
        trainer: Knows how many devices there really are.
        batch_size: Clips of a batch on one device.
        global_batch: Clips of one optimizer step over all devices; None leaves the trainer as it is.

    Raises:
        UserError: It does not come out even, or the trainer was told another number of batches.
    """
    if global_batch is None:
        return
    at_once = batch_size * trainer.world_size
    parts = global_batch // at_once
    if parts * at_once != global_batch or parts < 1:
        raise UserError(
            f"--global_batch {global_batch} is no multiple of data.batch_size {batch_size} times "
            f"{trainer.world_size} devices, which is {at_once}; change one of them."
        )
    if trainer.accumulate_grad_batches not in (1, parts):
        raise UserError(
            f"--global_batch {global_batch} takes {parts} batches of {at_once} clips and "
            f"trainer.accumulate_grad_batches says {trainer.accumulate_grad_batches}; give one of the two."
        )
    trainer.accumulate_grad_batches = parts
