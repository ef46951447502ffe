"""What training costs, computed from shapes: FLOPs and memory; nothing is allocated.

FLOPs are those that the model needs by its definition; one multiply-add is two. A restricted frame attends to 2C + 1
keys, the head predicts masked frames only, and a clip without text has no cross-attention. With `pruned`, the last layer
computes predicted frames only. Norms, GELU, softmax, recomputed activations and the text encoder do not count.

Shapes: B clips, T frames, S text positions, D = dim, C = frames of context on each side.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode  # also behind torch.export and torch.compile
from torch.func import functional_call

from magnet_train.models import MagnetTransformer
from magnet_train.models.transformer import count_parameters

if TYPE_CHECKING:
    from magnet_train.training.finetune import TrainableParameters

FLOAT = 4  # bytes; mixed precision keeps weights, gradients and moments in float32 as well
CAPTION_TOKENS = 32


@dataclass(frozen=True)
class Pass:
    """One forward pass."""

    stage: int  # codebook k; the first of each stream has no restricted context
    clips: int  # B
    with_text: int  # clips with a text
    frames: int  # T
    text_positions: int  # S
    answered: int  # frames that the head predicts, in all clips together
    pruned: bool = False  # the last layer computes only the predicted frames, as in generation


def forward_flops(config: dict[str, Any], work: Pass) -> float:
    """Return the FLOPs of a forward pass of `MagnetTransformer(**config)`."""
    return sum(_products(config, work))


def training_flops(config: dict[str, Any], work: Pass, trained: float = 1.0) -> float:
    """Return the FLOPs of a forward and a backward pass, if a share `trained` (0..1) of the matrices trains.

    The backward pass of a matrix product is two products of the same size, one for the gradient of each factor; frozen
    weights need no gradient.
    """
    with_weights, between_states = _products(config, work)
    return (2 + trained) * with_weights + 3 * between_states


def _products(config: dict[str, Any], work: Pass) -> tuple[float, float]:
    """Return the FLOPs of products of states with weights, and of states with states in attention."""
    dim, context, num_layers = config["dim"], config["subcodes_context"], config["num_layers"]
    restricted = work.stage >= config.get("streams", 1) and context >= 0
    keys = min(work.frames, 2 * context + 1) if restricted else work.frames
    weights: float = 2 * work.answered * dim * config["card"]  # head
    weights += 2 * work.with_text * work.text_positions * config["text_dim"] * dim  # text projection
    weights += num_layers * 2 * work.with_text * work.text_positions * 2 * dim * dim  # its keys and values
    states = 0.0
    for layers_left in range(num_layers, 0, -1):
        passed_on = work.answered / work.clips if work.pruned and layers_left == 1 else work.frames
        weights += 2 * work.clips * work.frames * 4 * dim * dim  # self-attention
        states += 2 * work.clips * work.frames * 2 * keys * dim
        weights += 2 * work.with_text * passed_on * 2 * dim * dim  # cross-attention
        states += 2 * work.with_text * passed_on * 2 * work.text_positions * dim
        weights += 2 * work.clips * passed_on * 8 * dim * dim  # feed-forward
    return weights, states


def state_bytes(trained: int, frozen: int, averaged: bool = True) -> int:
    """Return the bytes of weights, gradients, AdamW's two moments and, if `averaged`, the moving average.

    `trained` and `frozen` count parameters; frozen ones have only weights.
    """
    return FLOAT * (trained * (4 + averaged) + frozen)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes at the end of the forward pass of a step, the peak of training."""

    fixed: int  # `state_bytes` (the gradients of the previous step live until here), and weights in half precision
    per_clip: int  # activations that one clip keeps for the backward pass

    def total(self, batch: int) -> int:
        """Return the bytes for B = `batch`, without text encoder, data loader and the device's own memory."""
        return self.fixed + batch * self.per_clip


def training_memory(
    lm: Mapping[str, Any], frames: int, mixed: bool, tuning: TrainableParameters | None = None
) -> TrainingMemory:
    """Compute the memory for AdamW and a moving average, as in the shipped configurations.

    `lm` holds the arguments of `MagnetTransformer`; `mixed` is true for bf16-mixed and 16-mixed, false for 32-true.
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
    """Return the bytes that a forward pass saves for the backward pass: per clip, and for any batch."""
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
            stage = min(lm.streams, lm.n_q - 1)  # restricted attention keeps more
            logits = functional_call(lm, weights, (tokens, stage, text))
            nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, stage].flatten())
    own = {weight.untyped_storage()._cdata for weight in weights.values()}
    return sum(tensor.untyped_storage().nbytes() for key, tensor in saved.items() if key not in own)
