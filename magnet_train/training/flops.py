"""FLOPs that the model needs by its definition, without overhead of the implementation.

One multiply-add is two operations. A restricted frame attends to 2C + 1 keys, the head predicts masked frames only, and
a clip without text has no cross-attention. With `pruned`, the last layer computes predicted frames only. Norms, GELU,
softmax, recomputed activations and the text encoder do not count.

Shapes: D = dim, C = frames of context on each side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DATASHEET_PEAK = {"H100": 989e12, "H200": 989e12}  # FLOP/s, dense bf16, from NVIDIA's data sheets


@dataclass(frozen=True)
class Pass:
    """One forward pass.

    Args:
        stage: Codebook k; 0 has no restricted context.
        clips: Number of clips.
        with_text: Number of clips with text.
        frames: Frames of a clip.
        text_positions: Positions of a text.
        answered: Frames that the head predicts, in all clips together.
        pruned: Whether the last layer computes only the predicted frames, as in generation.
    """

    stage: int
    clips: int
    with_text: int
    frames: int
    text_positions: int
    answered: int
    pruned: bool = False


def forward_flops(config: dict[str, Any], work: Pass) -> float:
    """Return the FLOPs of a forward pass of `MagnetTransformer(**config)`."""
    return sum(_products(config, work))


def training_flops(config: dict[str, Any], work: Pass, trained: float = 1.0) -> float:
    """Return the FLOPs of a forward and a backward pass.

    The backward pass of a matrix product is two products of the same size, one for the gradient of each factor; frozen
    weights need no gradient.

    Args:
        config: Arguments of `MagnetTransformer`.
        work: The forward pass.
        trained: Share of trained weights in the matrices, 0..1.
    """
    with_weights, between_states = _products(config, work)
    return (2 + trained) * with_weights + 3 * between_states


def _products(config: dict[str, Any], work: Pass) -> tuple[float, float]:
    """Return the FLOPs of products of states with weights, and of states with states in attention."""
    dim, context, num_layers = config["dim"], config["subcodes_context"], config["num_layers"]
    restricted = work.stage > 0 and context >= 0
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
