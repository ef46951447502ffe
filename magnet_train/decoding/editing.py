"""Editing: regenerate a region of a recording and leave the rest as it is.

Shapes: audio float32 [channels, samples]; B versions, K codebooks, T frames of the clip that the model sees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from magnet_train.errors import UserError

FADE_SECONDS = 0.01  # on each side of the region, so that old and new audio meet without a click
ROUNDING = 1e-6  # frames: 0.3 s at 50 Hz is frame 15 in spite of float rounding


@dataclass(frozen=True)
class Edit:
    """The region `first` to `end` of a recording, and the clip around it that the model sees, in token frames.

    Each end is the frame after the last.
    """

    first: int
    end: int
    clip_first: int
    clip_end: int

    @property
    def keep(self) -> Tensor:
        """The frames of the clip that stay, bool [T]."""
        frames = torch.arange(self.clip_first, self.clip_end)
        return (frames < self.first) | (frames >= self.end)


def plan_edit(region: tuple[float, float], seconds: float, frame_rate: float, segment: float) -> Edit:
    """Return the frames that a region touches, and the clip of the model's length around them.

    Args:
        region: Start and end (s).
        seconds: Length of the recording.
        frame_rate: Token frames a second (Hz).
        segment: Length of the model's clips (s).

    Raises:
        UserError: The region is empty, leaves the recording or is longer than the model's clips.
    """
    start, end = region
    if not 0 <= start < end <= seconds:
        raise UserError(
            f"the region from {start:g} to {end:g} s is not within the recording of {seconds:.3f} s; give start and end "
            "in seconds."
        )
    total = math.ceil(seconds * frame_rate - ROUNDING)
    first = math.floor(start * frame_rate + ROUNDING)
    last = math.ceil(end * frame_rate - ROUNDING)
    if last <= first:
        raise UserError(
            f"the region from {start:g} to {end:g} s is too short; use at least one frame, {1 / frame_rate:g} s."
        )
    length = min(total, round(segment * frame_rate))
    if last - first > length:
        raise UserError(
            f"the region from {start:g} to {end:g} s is longer than the model's clips of {segment:g} s; edit it in parts."
        )
    clip_first = min(max(0, (first + last - length) // 2), total - length)
    return Edit(first, last, clip_first, clip_first + length)


def splice(recording: Tensor, made: Tensor, edit: Edit, hop: int, sample_rate: int) -> Tensor:
    """Put decoded clips into a recording, [B, channels, samples]; samples outside the region and two fades stay.

    Args:
        recording: [channels, samples].
        made: [B, channels, T * hop].
        edit: Frames of the region and of the clip.
        hop: Samples a frame.
        sample_rate: Sample rate of both (Hz).
    """
    begin = edit.clip_first * hop
    stop = min(edit.clip_end * hop, recording.shape[-1])
    weight = fade_weights(torch.arange(begin, stop), edit.first * hop, edit.end * hop, sample_rate)
    edited = recording.expand(len(made), -1, -1).clone()
    old, new = edited[..., begin:stop], made[..., : stop - begin].clamp(-1, 1)
    edited[..., begin:stop] = torch.where(weight == 0, old, old + weight * (new - old))
    return edited


def fade_weights(samples: Tensor, first: int, end: int, sample_rate: int) -> Tensor:
    """Return the weight of new audio at given samples, float32: 1 from `first` to before `end`, less in fades, else 0."""
    fade = round(FADE_SECONDS * sample_rate)
    away = torch.maximum(first - samples, samples - (end - 1)).clamp(min=0)
    return (1 - away / (fade + 1)).clamp(min=0)
