"""Make clips longer than those a model was trained on: window after window, each in sight of the one before.

Shapes: B clips, K codebooks, T frames, W frames of a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from magnet_train.decoding import Progress


@dataclass(frozen=True)
class WindowOfClip:
    """A part of a clip that is made in one go; all in token frames of the clip.

    Args:
        start: Its first frame.
        end: The frame after its last.
        done: The first frame that is not there yet.
    """

    start: int
    end: int
    done: int


class MakeWindow(Protocol):
    """Makes what is missing of a window."""

    def __call__(self, prompt: Tensor, keep: Tensor, progress: Progress | None) -> Tensor:
        """Return int64 [B, K, W], given a prompt of that shape and which of its frames stay, bool [B, W]."""


def plan_windows(num_frames: int, window: int, prompt: int) -> Iterator[WindowOfClip]:
    """Cut a clip into windows that overlap by half, the last one by more if it has to.

    Args:
        num_frames: T.
        window: W, what the model makes in one go.
        prompt: Frames that are given from the start on.
    """
    done = prompt
    while done < num_frames:
        start = max(0, min(done - window // 2, num_frames - window))
        end = min(start + window, num_frames)
        yield WindowOfClip(start, end, done)
        done = end


def continue_tokens(
    given: Tensor, prompt: int, window: int, make: MakeWindow, progress: Progress | None
) -> Tensor:
    """Fill a clip from left to right.

    Args:
        given: int64 [B, K, T], of which the first `prompt` frames stay.
        prompt: How many, 0 or more.
        window: W, at most T.
        make: Makes what is missing of a window.
        progress: Called after each step with (steps done, steps in all), over all windows.

    Returns:
        int64 [B, K, T].
    """
    tokens = given.clone()
    windows = list(plan_windows(tokens.shape[-1], window, prompt))
    for number, part in enumerate(windows):
        stays = torch.arange(part.start, part.end) < part.done
        tokens[..., part.start : part.end] = make(
            tokens[..., part.start : part.end],
            stays.expand(len(tokens), -1),
            _part_of(progress, number, len(windows)),
        )
    return tokens


def _part_of(progress: Progress | None, number: int, parts: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total: progress(number * total + done, parts * total)
