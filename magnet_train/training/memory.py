"""Memory of training, computed from shapes: nothing is allocated.

Shapes: B clips, T frames, S text positions, D = dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode  # also behind torch.export and torch.compile
from torch.func import functional_call

from magnet_train.models import MagnetTransformer
from magnet_train.models.transformer import count_parameters
from magnet_train.training.finetune import TrainableParameters

FLOAT = 4  # bytes; mixed precision keeps weights, gradients and moments in float32 as well
CAPTION_TOKENS = 32
STAGE = 1  # stages above the first, whose attention keeps more


def state_bytes(trained: int, frozen: int, averaged: bool = True) -> int:
    """Return the bytes of weights, gradients, AdamW's two moments and the moving average.

    Args:
        trained: Number of parameters that train.
        frozen: Number of parameters that do not; they have only weights.
        averaged: Whether a moving average of the trained parameters is kept.
    """
    return FLOAT * (trained * (4 + averaged) + frozen)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes at the end of the forward pass of a step, the peak of training.

    Args:
        fixed: `state_bytes`, and the half-precision copies of the weights under mixed precision. Gradients count, since
            those of the previous step live until the backward pass.
        per_clip: Activations that one clip keeps for the backward pass; grows with its length.
    """

    fixed: int
    per_clip: int

    def total(self, batch: int) -> int:
        """Return the bytes for B = `batch`, without the text encoder, the data loader and the device's own memory."""
        return self.fixed + batch * self.per_clip


def training_memory(
    lm: Mapping[str, Any], frames: int, mixed: bool, tuning: TrainableParameters | None = None
) -> TrainingMemory:
    """Compute the memory for AdamW and a moving average, as in the shipped configurations.

    Args:
        lm: Arguments of `MagnetTransformer`.
        frames: T, frames of a clip.
        mixed: Whether the precision is bf16-mixed or 16-mixed instead of 32-true.
        tuning: Selects the trainable parameters; None trains all.
    """
    whole = _build(lm, int(lm["num_layers"]), tuning)
    trained = count_parameters(whole, trainable_only=True)
    # All layers are alike, so the difference between one and two is what each further layer adds.
    first, second = (_split_saved(_build(lm, layers, tuning), frames, mixed) for layers in (1, 2))
    more = int(lm["num_layers"]) - 1
    per_clip, copies = (a + more * (b - a) for a, b in zip(first, second, strict=True))
    return TrainingMemory(state_bytes(trained, count_parameters(whole) - trained) + copies, per_clip)


def _build(lm: Mapping[str, Any], layers: int, tuning: TrainableParameters | None) -> MagnetTransformer:
    with torch.device("meta"):
        model = MagnetTransformer(**{**lm, "num_layers": layers})
        if tuning is not None:
            tuning.apply(nn.ModuleDict({"lm": model}))
    return model


def _split_saved(lm: MagnetTransformer, frames: int, mixed: bool) -> tuple[int, int]:
    """Return the bytes that a forward pass saves for the backward pass: per clip, and independent of the batch."""
    two, three = (_saved(lm, batch, frames, mixed) for batch in (2, 3))  # with one, some copies are views
    return three - two, two - 2 * (three - two)


def _saved(lm: MagnetTransformer, batch: int, frames: int, mixed: bool) -> int:
    """Return the bytes that autograd saves in a forward pass on fake tensors, which have a size and no content."""
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor  # kept alive, or another could get its address
        return tensor

    precision = torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext()
    with FakeTensorMode():
        weights = {
            name: torch.empty(parameter.shape, requires_grad=parameter.requires_grad)
            for name, parameter in lm.named_parameters()
        }
        tokens = torch.empty(batch, lm.n_q, frames, dtype=torch.int64)
        text = torch.empty(batch, CAPTION_TOKENS, lm.config["text_dim"])
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), precision:
            logits = functional_call(lm, weights, (tokens, STAGE, text))
            nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, STAGE].flatten())
    own = {weight.untyped_storage()._cdata for weight in weights.values()}
    return sum(tensor.untyped_storage().nbytes() for key, tensor in saved.items() if key not in own)
