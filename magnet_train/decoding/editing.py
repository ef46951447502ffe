"""Make a part of a recording anew and leave the rest of it alone.

Shapes: audio float32 [channels, samples]; B versions, K codebooks, T frames of the clip that the model sees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from magnet_train.errors import UserError

FADE_SECONDS = 0.01  # on each side of the region: old and new audio meet without a click
ROUNDING = 1e-6  # of a frame: 0.3 s at 50 Hz begin at frame 15, whatever a float says


@dataclass(frozen=True)
class Edit:
    """A region of a recording, and the clip around it that the model sees; all in token frames.

    Args:
        first: The first frame that is made anew.
        end: The frame after the last of them.
        clip_first: The first frame that the model sees.
        clip_end: The frame after the last of them.
    """

    first: int
    end: int
    clip_first: int
    clip_end: int

    @property
    def keep(self) -> Tensor:
        """What of the clip stays, bool [T]."""
        frames = torch.arange(self.clip_first, self.clip_end)
        return (frames < self.first) | (frames >= self.end)


def plan_edit(region: tuple[float, float], seconds: float, frame_rate: float, segment: float) -> Edit:
    """Choose the frames of a region, also those it touches in part, and as much around them as the model can see.

    Args:
        region: Start and end (s).
        seconds: Length of the recording.
        frame_rate: Token frames a second (Hz).
        segment: Length of the clips that the model makes (s).

    Raises:
        UserError: The region is empty, leaves the recording or is longer than the model's clips.
    """
    start, end = region
    if not 0 <= start < end <= seconds:
        raise UserError(
            f"the region from {start:g} to {end:g} s is not a part of a recording of {seconds:.3f} s; give its start and "
            "its end in seconds."
        )
    total = math.ceil(seconds * frame_rate - ROUNDING)
    first = math.floor(start * frame_rate + ROUNDING)
    last = math.ceil(end * frame_rate - ROUNDING)
    if last <= first:
        raise UserError(
            f"the region from {start:g} to {end:g} s is too short for anything to be made; take at least one frame, "
            f"{1 / frame_rate:g} s."
        )
    length = min(total, round(segment * frame_rate))
    if last - first > length:
        raise UserError(
            f"the region from {start:g} to {end:g} s is longer than the {segment:g} s that the model makes in one go; "
            "take it in parts."
        )
    clip_first = min(max(0, (first + last - length) // 2), total - length)
    return Edit(first, last, clip_first, clip_first + length)


def splice(recording: Tensor, made: Tensor, edit: Edit, hop: int, sample_rate: int) -> Tensor:
    """Put what was made into the recording, which keeps every sample outside the region and two short fades.

    Args:
        recording: [channels, samples].
        made: [B, channels, T * hop], the whole clip as the codec gives it.
        edit: Where it belongs.
        hop: Samples a frame.
        sample_rate: Of both (Hz).

    Returns:
        [B, channels, samples].
    """
    begin = edit.clip_first * hop
    stop = min(edit.clip_end * hop, recording.shape[-1])
    fade = round(FADE_SECONDS * sample_rate)
    time = torch.arange(begin, stop)
    # 0 where the old audio stays, 1 in the region, a line between the two outside of it.
    away = torch.maximum(edit.first * hop - time, time - (edit.end * hop - 1)).clamp(min=0)
    weight = (1 - away / (fade + 1)).clamp(min=0)
    edited = recording.expand(len(made), -1, -1).clone()
    old, new = edited[..., begin:stop], made[..., : stop - begin].clamp(-1, 1)
    edited[..., begin:stop] = torch.where(weight == 0, old, old + weight * (new - old))
    return edited
