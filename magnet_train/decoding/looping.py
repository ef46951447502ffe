"""Seamless loops: a straight clip whose end is joined to its beginning.

Shapes: B clips, K codebooks, T frames, D features of a frame.
"""

from __future__ import annotations

import torch
from torch import Tensor

from magnet_train.decoding.repetition import find_repeat
from magnet_train.decoding.sliding_window import LEAST_SEEN, MOST_SEEN, Features, MakeWindow


def close_loop(
    tokens: Tensor, stays: Tensor, window: int, seam: int, make: MakeWindow, features: Features
) -> Tensor:
    """Make the frames at the two ends of a clip again, in sight of each other.

    The clip is turned, so that its ends meet inside of what the model is shown, by a whole number of beats, so that
    what the model takes for the first beat is one. Everything but the seam stays.

    Args:
        tokens: int64 [B, K, T], straight clips.
        stays: bool [B, K, T], what must not be made again, as the prompt.
        window: Frames that the model makes in one go.
        seam: Frames to make again, half of them on each side.
        make: Makes the missing frames of a window.
        features: The sound of each frame, for finding the beat.

    Returns:
        int64 [B, K, T].
    """
    num_frames = tokens.shape[-1]
    window, half = min(window, num_frames), min(seam, num_frames) // 2
    turn = _turn(tokens, window, features)  # [B]: the window begins at this frame
    frames = (turn[:, None] + torch.arange(window, device=tokens.device)) % num_frames  # [B, window]
    place = frames[:, None].expand(-1, tokens.shape[1], -1)
    at_seam = (frames < half) | (frames >= num_frames - half)
    keep = ~at_seam[:, None] | stays.to(tokens.device).gather(2, place)
    return tokens.scatter(2, place, make(prompt=tokens.gather(2, place), keep=keep, progress=None))


def _turn(tokens: Tensor, window: int, features: Features) -> Tensor:
    """Return the frame of each clip at which the window begins, int64 [B]."""
    num_frames = tokens.shape[-1]
    first = num_frames - round(MOST_SEEN * window)
    compared = round(LEAST_SEEN * window)
    sound = features(tokens)
    return first + find_repeat(sound[..., :compared], sound[..., first:])
