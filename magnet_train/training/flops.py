"""Count the floating-point operations that the mathematics needs, whatever is computed on top.

One multiplication and one addition are two operations. A restricted frame has 2C + 1 keys, one head answers at
masked frames alone, and a clip without a text has no cross-attention. Where only some frames are queried, the last
layer leaves out the others after self-attention. Norms, GELU and softmax do not count,
nor does what activation checkpointing computes twice, nor the text encoder.

Shapes: D = dim, C = frames of context each side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DATASHEET_PEAK = {"H100": 989e12, "H200": 989e12}  # FLOP/s, dense bf16, from NVIDIA's data sheets


@dataclass(frozen=True)
class Pass:
    """One forward pass.

    Args:
        stage: k; 0 has no restricted context.
        clips: How many.
        with_text: How many of them have a text.
        frames: Of a clip.
        text_positions: Of a text.
        answered: Frames that the head answers for, in all clips together.
        pruned: The last layer leaves out frames that are not answered, as in a generation.
    """

    stage: int
    clips: int
    with_text: int
    frames: int
    text_positions: int
    answered: int
    pruned: bool = False


def forward_flops(config: dict[str, Any], work: Pass) -> float:
    """Count a forward pass of `MagnetTransformer(**config)`."""
    return sum(_products(config, work))


def training_flops(config: dict[str, Any], work: Pass, trained: float = 1.0) -> float:
    """Count a forward and a backward pass.

    The backward pass of a matrix product is two more of its size, one for the gradient of each factor; that of
    weights which do not train is left out.

    Args:
        config: Arguments of `MagnetTransformer`.
        work: What goes through it.
        trained: Share of the matrices' weights that train, 0..1.
    """
    with_weights, between_states = _products(config, work)
    return (2 + trained) * with_weights + 3 * between_states


def _products(config: dict[str, Any], work: Pass) -> tuple[float, float]:
    """Count the products of states with weights, and those of states with states within attention."""
    dim, context, num_layers = config["dim"], config["subcodes_context"], config["num_layers"]
    restricted = work.stage > 0 and context >= 0
    keys = min(work.frames, 2 * context + 1) if restricted else work.frames
    weights: float = 2 * work.answered * dim * config["card"]  # head
    weights += 2 * work.with_text * work.text_positions * config["text_dim"] * dim  # text projection
    weights += num_layers * 2 * work.with_text * work.text_positions * 2 * dim * dim  # its keys and values
    states = 0.0
    for layers_left in range(num_layers, 0, -1):
        going_on = work.answered / work.clips if work.pruned and layers_left == 1 else work.frames
        weights += 2 * work.clips * work.frames * 4 * dim * dim  # self-attention
        states += 2 * work.clips * work.frames * 2 * keys * dim
        weights += 2 * work.with_text * going_on * 2 * dim * dim  # cross-attention
        states += 2 * work.with_text * going_on * 2 * work.text_positions * dim
        weights += 2 * work.clips * going_on * 8 * dim * dim  # feed-forward
    return weights, states
