"""Clips that can be played in a circle: their end goes on at their beginning.

Shapes: B clips, K codebooks, T frames, M frames that are asked for; audio float32 [B, channels, samples].

Idea: LoopGen (arXiv 2504.04466), which lets a MAGNeT see the beginning of a clip while it makes the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from magnet_train.codecs import Codec
from magnet_train.decoding import LogitsAtFrames, Rescorer
from magnet_train.long_audio import CONTEXT_SECONDS, samples_per_frame

GOLDEN_RATIO = 0.6180339887498949  # of the clip to the next cut: no two of them come to lie near each other


class WanderingCut:
    """Says where the circle is cut open: at another place in each call, so that no frame is always at an end."""

    def __init__(self) -> None:
        self._calls = 0

    def next(self, num_frames: int) -> int:
        """Return the frame that comes first in the next call."""
        cut = round(self._calls * GOLDEN_RATIO * num_frames) % num_frames
        self._calls += 1
        return cut


class CircularLogits:
    """Show a model the clip as a circle that is cut open at another place in each call.

    Wherever a frame is, in nearly all calls the model sees its neighbours on both sides, also those across
    the seam between the last frame and the first. The clip is no longer than those it was trained on.

    Args:
        logits_fn: The model, see `decoding.LogitsAtFrames`.
    """

    def __init__(self, logits_fn: LogitsAtFrames) -> None:
        self.logits_fn = logits_fn
        self._cut = WanderingCut()

    def __call__(self, tokens: Tensor, stage: int, cfg_coef: float) -> Tensor:
        """Return logits float [B, T, card] for tokens int64 [B, K, T]."""
        cut = self._cut.next(tokens.shape[-1])
        return self.logits_fn(tokens.roll(-cut, dims=-1), stage, cfg_coef).roll(cut, dims=1)

    def at(self, tokens: Tensor, stage: int, cfg_coef: float, frames: Tensor) -> Tensor:
        """Return logits float [B, M, card] of the frames int64 [B, M]."""
        num_frames = tokens.shape[-1]
        cut = self._cut.next(num_frames)
        return self.logits_fn.at(tokens.roll(-cut, dims=-1), stage, cfg_coef, (frames - cut) % num_frames)


class CircularRescorer:
    """The same for a rescorer: one that reads from left to right has read what comes before the first frame, too.

    Args:
        rescorer: See `decoding.Rescorer`.
    """

    def __init__(self, rescorer: Rescorer) -> None:
        self.rescorer = rescorer
        self._cut = WanderingCut()

    def __call__(self, tokens: Tensor, stage: int) -> Tensor:
        """Return probabilities float [B, T] for tokens int64 [B, K, T]."""
        cut = self._cut.next(tokens.shape[-1])
        return self.rescorer(tokens.roll(-cut, dims=-1), stage).roll(cut, dims=-1)


def decode_circular(codec: Codec, tokens: Tensor) -> Tensor:
    """Turn tokens int64 [B, K, T] into audio [B, channels, T * hop] whose two ends fit together."""
    num_frames = tokens.shape[-1]
    hop = samples_per_frame(codec)
    context = min(num_frames, round(CONTEXT_SECONDS * codec.frame_rate))
    around = torch.cat([tokens[..., num_frames - context :], tokens, tokens[..., :context]], dim=-1)
    return codec.decode(around)[..., context * hop : (context + num_frames) * hop]
