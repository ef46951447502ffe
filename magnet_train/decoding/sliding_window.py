"""Sliding window: clips longer than the training clips, and seamless loops.

A model whose training clips begin with a bar has learned that frame 0 is the first beat of a bar. So a window that begins
elsewhere in a clip or loop has to begin whole bars later, or whole beats if beats are alike; `find_repeat` finds such
frames, in long clips for bars of up to 5/8 of a window.

Shapes: B clips, K codebooks, T frames of a clip, W frames of a window, D features of a frame, N frames of a pattern,
S frames that are searched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from magnet_train.decoding.generate import Progress, part_of

# Parts of a window. A model ends a window as its training clips ended, so the next window generates the last frames
# again; until then they tell where the sound repeats, so the next window sees at least PATTERN - ENDING.
ENDING = 1 / 8
PATTERN = 3 / 8  # what is compared to find a repetition
MOST_SEEN = 3 / 4

NEARLY_BEST = 0.8  # of the highest correlation: two beats away is about as good as one

Features = Callable[[Tensor], Tensor]  # tokens int64 [B, K, T] -> float [B, D, T]


class MakeWindow(Protocol):
    """Generates the missing frames of a window."""

    def __call__(self, prompt: Tensor, keep: Tensor, progress: Progress | None) -> Tensor:
        """Return int64 [B, K, W], given a prompt of that shape and its frames that stay, bool [B, W] or [B, K, W]."""


def continue_tokens(
    given: Tensor,
    prompt: int,
    window: int,
    make: MakeWindow,
    features: Features,
    progress: Progress | None = None,
) -> Tensor:
    """Fill clips from left to right, each window overlapping the one before; return int64 [B, K, T].

    To the model the first frame of a window is the beginning of a clip. So each window begins where the sound resembles
    the beginning of the previous window: with a bar, if bars last at most 5/8 of a window.

    Args:
        given: int64 [B, K, T].
        prompt: Number of frames at the beginning that stay, 0..T.
        window: W, at most T.
        make: Generates the missing frames of a window.
        features: Features of each frame, for finding repetitions.
        progress: Called after each step with (steps done, steps in all) of all windows, whose number is an estimate
            until the last one.
    """
    num_frames = given.shape[-1]
    # The last window may extend beyond the end of the clip.
    tokens = torch.cat([given, given.new_zeros(*given.shape[:2], window)], dim=-1)
    begin = torch.zeros(len(given), dtype=torch.int64, device=given.device)  # [B], first frame of the window
    done = end = torch.full_like(begin, prompt)  # [B], first frames to make, and that no window has made
    # Less in a window of a few frames, so that each window makes at least one.
    remade = min(round(ENDING * window), window - _most_seen(window) - 1)
    windows = 0
    while bool((done < num_frames).any()):
        following = _next_begin(
            tokens, begin, done.clamp(max=num_frames), end.clamp(max=num_frames), window, features
        )
        begin = torch.where(done < num_frames, following, begin)
        left = num_frames - window - int(begin.min())
        estimate = windows + 1 + max(0, -(-left // round((1 - PATTERN) * window)))
        frames = _frames(begin, window)
        made = make(
            prompt=_part(tokens, begin, window),
            keep=frames < done[:, None],
            progress=part_of(progress, windows, estimate),
        )
        tokens.scatter_(2, frames[:, None].expand_as(made), made)
        windows += 1
        end = begin + window
        again = torch.where(end < num_frames, remade, 0)
        done = torch.maximum(done, end - again)
    return tokens[..., :num_frames]


def close_loop(
    tokens: Tensor, stays: Tensor, window: int, seam: int, make: MakeWindow, features: Features
) -> Tensor:
    """Turn clips into seamless loops, int64 [B, K, T]: generate both ends again, each with the other in its context.

    A clip is rotated, so that its ends meet inside a window that begins on a beat. All frames but those of the seam stay.

    Args:
        tokens: int64 [B, K, T], clips.
        stays: bool [B, K, T], tokens that stay even at the seam, such as a prompt.
        window: Frames of the model's clips.
        seam: Frames to generate again, half of them on each side.
        make: Generates the missing frames of a window.
        features: Features of each frame, for finding the beat.
    """
    num_frames = tokens.shape[-1]
    window, half = min(window, num_frames), min(seam, num_frames) // 2
    first = num_frames - round(MOST_SEEN * window)
    sound = features(tokens)
    start = first + find_repeat(sound[..., : round(PATTERN * window)], sound[..., first:])  # [B]
    frames = _frames(start, window) % num_frames  # [B, window]
    place = frames[:, None].expand(-1, tokens.shape[1], -1)
    at_seam = (frames < half) | (frames >= num_frames - half)
    keep = ~at_seam[:, None] | stays.to(tokens.device).gather(2, place)
    return tokens.scatter(2, place, make(prompt=tokens.gather(2, place), keep=keep, progress=None))


def _next_begin(
    tokens: Tensor, begin: Tensor, done: Tensor, end: Tensor, window: int, features: Features
) -> Tensor:
    """Return the first frame of each clip's next window, int64 [B]."""
    length, most = round(PATTERN * window), _most_seen(window)
    first, last = (done - most).clamp(min=0), (end - length).clamp(min=0)
    choices = int((last - first).max())
    if choices <= 0 or length < 2:
        return first
    pattern = features(_part(tokens, begin, length))
    return first + find_repeat(pattern, features(_part(tokens, first, choices + length)))


def _most_seen(window: int) -> int:
    """Return the most frames of a window that the window before has made; less than all."""
    return min(round(MOST_SEEN * window), window - 1)


def _frames(start: Tensor, count: int) -> Tensor:
    """Return the indices of `count` frames of each clip, int64 [B, count]."""
    return start[:, None] + torch.arange(count, device=start.device)


def _part(tokens: Tensor, start: Tensor, count: int) -> Tensor:
    """Return `count` frames of each clip, [B, K, count]."""
    return tokens.gather(2, _frames(start, count)[:, None].expand(-1, tokens.shape[1], -1))


def find_repeat(pattern: Tensor, search: Tensor) -> Tensor:
    """Find the offset at which searched frames repeat a pattern, so that a cut falls on the beat.

    Args:
        pattern: Features of N frames, float [B, D, N], such as embeddings of tokens.
        search: Features of S frames, float [B, D, S], S >= N.

    Returns:
        int64 [B], 0..S - N: the latest of the correlation's peaks near the highest one; the middle where nothing
        correlates, as in silence.
    """
    length = pattern.shape[-1]
    pattern = _normalised(pattern)
    offsets = torch.arange(search.shape[-1] - length + 1, device=search.device)
    parts = (search[..., offset : offset + length] for offset in range(len(offsets)))
    score = torch.stack([(_normalised(part) * pattern).sum((1, 2)) for part in parts], dim=1)  # [B, offsets]
    before, after = score.roll(1, dims=1), score.roll(-1, dims=1)
    before[:, 0] = after[:, -1] = -torch.inf
    best = score.max(dim=1, keepdim=True).values  # [B, 1]
    peak = (score >= before) & (score >= after) & (score >= NEARLY_BEST * best)
    latest = torch.where(peak, offsets, 0).max(dim=1).values
    return torch.where(best[:, 0] > 0, latest, score.shape[1] // 2)


def _normalised(part: Tensor) -> Tensor:
    """Subtract the mean over time, and scale each clip to norm 1 (silence stays 0)."""
    part = part - part.mean(dim=-1, keepdim=True)
    scaled: Tensor = part / torch.linalg.vector_norm(part, dim=(1, 2), keepdim=True).clamp(min=1e-6)
    return scaled
