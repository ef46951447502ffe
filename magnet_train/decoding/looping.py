"""Seamless loops: the two ends of a straight clip are generated again, in sight of each other.

Shapes: B clips, K codebooks, T frames, D features of a frame.
"""

from __future__ import annotations

import torch
from torch import Tensor

from magnet_train.decoding.sliding_window import LEAST_SEEN, MOST_SEEN, Features, MakeWindow, find_repeat


def close_loop(
    tokens: Tensor, stays: Tensor, window: int, seam: int, make: MakeWindow, features: Features
) -> Tensor:
    """Generate the frames at the two ends of a clip again, in sight of each other.

    The cut rolls: the clip is rotated by a whole number of beats, so that its ends meet inside the model's window and
    the window begins on a beat. All frames but those of the seam stay.

    Args:
        tokens: int64 [B, K, T], straight clips.
        stays: bool [B, K, T], tokens that stay even at the seam, such as a prompt.
        window: Frames of the model's clips.
        seam: Frames to generate again, half of them on each side.
        make: Generates the missing frames of a window.
        features: Features of each frame, for finding the beat.

    Returns:
        int64 [B, K, T].
    """
    num_frames = tokens.shape[-1]
    window, half = min(window, num_frames), min(seam, num_frames) // 2
    start = _rolling_cut(tokens, window, features)  # [B]
    frames = (start[:, None] + torch.arange(window, device=tokens.device)) % num_frames  # [B, window]
    place = frames[:, None].expand(-1, tokens.shape[1], -1)
    at_seam = (frames < half) | (frames >= num_frames - half)
    keep = ~at_seam[:, None] | stays.to(tokens.device).gather(2, place)
    return tokens.scatter(2, place, make(prompt=tokens.gather(2, place), keep=keep, progress=None))


def _rolling_cut(tokens: Tensor, window: int, features: Features) -> Tensor:
    """Return the frame of each clip at which the window over its ends begins, int64 [B]."""
    num_frames = tokens.shape[-1]
    first = num_frames - round(MOST_SEEN * window)
    compared = round(LEAST_SEEN * window)
    sound = features(tokens)
    return first + find_repeat(sound[..., :compared], sound[..., first:])
