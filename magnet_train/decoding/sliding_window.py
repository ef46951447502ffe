"""Make clips longer than those a model was trained on: window after window, each in sight of the one before.

Shapes: B clips, K codebooks, T frames of a clip, W frames of a window, D features of a frame.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from magnet_train.decoding import Progress
from magnet_train.decoding.repetition import find_repeat

# Parts of a window. A model ends a clip as those of its training ended, so the last frames of a window are made again
# by the next one, which begins on a beat and in sight of 3/8 to 3/4 of a window; between the two is room for a beat.
ENDING = 1 / 8
LEAST_SEEN = 3 / 8
MOST_SEEN = 3 / 4

Features = Callable[[Tensor], Tensor]  # tokens int64 [B, K, T] -> float [B, D, T]


class MakeWindow(Protocol):
    """Makes the missing frames of a window."""

    def __call__(self, prompt: Tensor, keep: Tensor, progress: Progress | None) -> Tensor:
        """Return int64 [B, K, W], given a prompt of that shape and which of its frames stay, bool [B, W]."""


def continue_tokens(
    given: Tensor,
    prompt: int,
    window: int,
    make: MakeWindow,
    features: Features,
    progress: Progress | None = None,
) -> Tensor:
    """Fill a clip from left to right.

    A model takes the first frame that it is shown for the beginning of a clip, so each window begins where the sound
    is most like the beginning of the window before: on a beat, where there is one.

    Args:
        given: int64 [B, K, T], of which the first `prompt` frames stay.
        prompt: How many, 0..T.
        window: W, at most T.
        make: Makes the missing frames of a window.
        features: The sound of each frame, for finding repetitions.
        progress: Called after each step with (steps done, steps in all) of all windows, whose number is an estimate
            until the last one.

    Returns:
        int64 [B, K, T].
    """
    num_frames = given.shape[-1]
    # The last window may reach beyond the end of the clip.
    tokens = torch.cat([given, given.new_zeros(*given.shape[:2], window)], dim=-1)
    begin = torch.zeros(len(given), dtype=torch.int64, device=given.device)  # of the window, in each clip
    done = torch.full_like(begin, prompt)  # the first frame that is still to be made
    windows = 0
    while bool((done < num_frames).any()):
        following = _next_begin(tokens, begin, done.clamp(max=num_frames), window, features)
        begin = torch.where(done < num_frames, following, begin)
        left = num_frames - window - int(begin.min())
        estimate = windows + 1 + max(0, -(-left // round((1 - ENDING - LEAST_SEEN) * window)))
        frames = _frames(begin, window)
        made = make(
            prompt=_part(tokens, begin, window),
            keep=frames < done[:, None],
            progress=_part_of(progress, windows, estimate),
        )
        tokens.scatter_(2, frames[:, None].expand_as(made), made)
        windows += 1
        end = begin + window
        again = torch.where(end < num_frames, round(ENDING * window), 0)
        done = torch.maximum(done, end - again)
    return tokens[..., :num_frames]


def _next_begin(tokens: Tensor, begin: Tensor, done: Tensor, window: int, features: Features) -> Tensor:
    """Return the first frame of each clip's next window, int64 [B]."""
    least, most = round(LEAST_SEEN * window), round(MOST_SEEN * window)
    first, last = (done - most).clamp(min=0), (done - least).clamp(min=0)
    choices = int((last - first).max())
    if choices == 0 or least < 2:
        return first
    pattern = features(_part(tokens, begin, least))
    return first + find_repeat(pattern, features(_part(tokens, first, choices + least)))


def _frames(start: Tensor, count: int) -> Tensor:
    """Return the numbers of `count` frames of each clip, int64 [B, count]."""
    return start[:, None] + torch.arange(count, device=start.device)


def _part(tokens: Tensor, start: Tensor, count: int) -> Tensor:
    """Return `count` frames of each clip, [B, K, count]."""
    return tokens.gather(2, _frames(start, count)[:, None].expand(-1, tokens.shape[1], -1))


def _part_of(progress: Progress | None, number: int, parts: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total: progress(number * total + done, parts * total)
