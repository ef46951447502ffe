"""Count the floating-point operations that the mathematics needs, whatever is computed on top.

One multiplication and one addition are two operations. A restricted frame has 2C + 1 keys, one head answers at
masked frames alone, and a clip without a text has no cross-attention. Norms, GELU and softmax do not count.

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
    """

    stage: int
    clips: int
    with_text: int
    frames: int
    text_positions: int
    answered: int


def forward_flops(config: dict[str, Any], work: Pass) -> float:
    """Count a forward pass of `MagnetTransformer(**config)`; training takes three times as many."""
    dim, context = config["dim"], config["subcodes_context"]
    restricted = work.stage > 0 and context >= 0
    keys = min(work.frames, 2 * context + 1) if restricted else work.frames
    rows = work.clips * work.frames
    reading = work.with_text * work.frames
    self_attention = 2 * rows * (4 * dim * dim + 2 * keys * dim)
    cross_attention = 2 * reading * (2 * dim * dim + 2 * work.text_positions * dim)
    cross_attention += 2 * work.with_text * work.text_positions * 2 * dim * dim
    feed_forward = 2 * rows * 8 * dim * dim
    head = 2 * work.answered * dim * config["card"]
    projection = 2 * work.with_text * work.text_positions * config["text_dim"] * dim
    return config["num_layers"] * (self_attention + cross_attention + feed_forward) + head + projection  # type: ignore[no-any-return]
