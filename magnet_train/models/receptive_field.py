"""Compute only what a few frames can see: in the last step of a codebook one span is open, of a whole clip.

Shapes: B clips, T frames, M frames asked for, D = dim, C frames of context on each side.

Source: arXiv 2401.04577, section 3.2: with restricted context a frame depends on C more frames on both sides
for every layer below it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from magnet_train.masking import at_frames
from magnet_train.models.attention import Window, window_of


class Asked(NamedTuple):
    """The frames of each clip that an answer is wanted for.

    Args:
        frames: int64 [B, M].
        span: In every clip they lie within so many neighbouring frames; None if they may lie anywhere.
    """

    frames: Tensor
    span: int | None = None


def ask(frames: Tensor, few: int) -> Asked:
    """Say how far apart the frames int64 [B, M] lie, if there are at most `few`: to look is to wait for a GPU."""
    if frames.shape[1] > few:
        return Asked(frames)
    return Asked(frames, 1 + int((frames.amax(dim=1) - frames.amin(dim=1)).max()))


def field_width(span: int, num_frames: int, context: int, layers_left: int) -> int:
    """Count the frames that a span of some depends on through so many layers."""
    return min(span + 2 * context * layers_left, num_frames)


class ReceptiveField:
    """Narrows states, layer by layer, to the frames that those asked for still depend on.

    Args:
        asked: With a known span.
        num_frames: T.
        context: C.
        window: Of the whole clip.

    `window` is always that of the states as they are. At a cut edge it is shorter than in the clip, which spoils only
    frames that the next layer leaves out.
    """

    def __init__(self, asked: Asked, num_frames: int, context: int, window: Window | None) -> None:
        assert asked.span is not None
        self.num_frames, self.context, self.span = num_frames, context, asked.span
        self.earliest = asked.frames.amin(dim=1)  # [B]
        self.start = torch.zeros_like(self.earliest)  # [B], frame of the clip that comes first in the states
        self.width, self.window = num_frames, window

    def narrow(self, x: Tensor, layers_left: int) -> Tensor:
        """Cut states [B, width, D] down to what is needed with so many layers still to come."""
        width = field_width(self.span, self.num_frames, self.context, layers_left)
        if width < self.width:
            start = (self.earliest - self.context * layers_left).clamp(0, self.num_frames - width)
            x = at_frames(x, (start - self.start)[:, None] + torch.arange(width, device=x.device))
            self.start, self.width = start, width
            self.window = window_of(width, self.context, x.device)
        return x

    def places(self, frames: Tensor) -> Tensor:
        """Return where the frames int64 [B, M] of the clip are in the states."""
        return frames - self.start[:, None]
