"""How much memory a training takes, from its shapes alone: nothing is allocated and nothing computed.

Shapes: B clips, T frames, S text positions, D = dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode  # what torch.export and compile stand on
from torch.func import functional_call

from magnet_train.models import MagnetTransformer
from magnet_train.models.transformer import count_parameters
from magnet_train.training.finetune.trainable import TrainableParameters

FLOAT = 4  # bytes; mixed precision keeps weights, gradients and optimizer in float32 as well
CAPTION_TOKENS = 32
STAGE = 1  # stages above the first, whose attention keeps more
ADAM_STATES = 2


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes at the end of a step's forward pass, where the most is alive.

    Args:
        weights: The model's, and their half-precision copies under mixed precision.
        average: Moving average of what trains.
        gradients: Of what trains; those of the step before live until the backward pass.
        optimizer: AdamW's two moments of what trains.
        activations_per_clip: Kept for the backward pass; grows with the length of the clips.
    """

    weights: int
    average: int
    gradients: int
    optimizer: int
    activations_per_clip: int

    def total(self, batch: int) -> int:
        """Add up for a batch; the text encoder, the loader and the device's own needs come on top."""
        fixed = self.weights + self.average + self.gradients + self.optimizer
        return fixed + batch * self.activations_per_clip


def training_memory(
    lm: Mapping[str, Any], frames: int, mixed: bool, tuning: TrainableParameters | None = None
) -> TrainingMemory:
    """Compute it for AdamW and a moving average, as the shipped configurations have them.

    Args:
        lm: Arguments of `MagnetTransformer`.
        frames: T, frames of a clip.
        mixed: bf16-mixed or 16-mixed precision instead of 32-true.
        tuning: What of the model trains; None all of it.
    """
    whole = _module(lm, int(lm["num_layers"]), tuning)
    trained = FLOAT * count_parameters(whole, trainable_only=True)
    # The layers are alike: what one more takes, taken as often as there are more.
    first, second = (_kept(_module(lm, layers, tuning), frames, mixed) for layers in (1, 2))
    more = int(lm["num_layers"]) - 1
    activations, copies = (a + more * (b - a) for a, b in zip(first, second, strict=True))
    return TrainingMemory(
        weights=FLOAT * count_parameters(whole) + copies,
        average=trained,
        gradients=trained,
        optimizer=ADAM_STATES * trained,
        activations_per_clip=activations,
    )


def _module(lm: Mapping[str, Any], layers: int, tuning: TrainableParameters | None) -> MagnetTransformer:
    with torch.device("meta"):
        model = MagnetTransformer(**{**lm, "num_layers": layers})
        if tuning is not None:
            tuning.apply(nn.ModuleDict({"lm": model}))
    return model


def _kept(lm: MagnetTransformer, frames: int, mixed: bool) -> tuple[int, int]:
    """Return the bytes that a forward pass keeps for the backward pass: for each clip, and whatever the batch."""
    two, three = (_saved(lm, batch, frames, mixed) for batch in (2, 3))  # with one, some copies are views
    return three - two, two - 2 * (three - two)


def _saved(lm: MagnetTransformer, batch: int, frames: int, mixed: bool) -> int:
    """Run the forward pass on fake tensors, which have a size and no content, and add up what autograd keeps."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # held, or another could take its place
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
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)
