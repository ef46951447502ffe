"""Re-masking strategies: which positions of a codebook are masked again before the next step.

Shapes: B clips, T frames, L = span_len frames.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from magnet_train.decoding.config import DecodingConfig
from magnet_train.decoding.sampling import Generators, uniform
from magnet_train.masking import least_probable_spans

SETTLED = -1e4  # score of positions that must not be masked again, below every other score


class Remasking(Protocol):
    """A strategy. Counts are computed on the CPU, so the decoder never synchronises with a GPU."""

    def start(self, keep: Tensor) -> Tensor:
        """Return the scores before the first step, given the frames that stay (bool [B, T]); both on the CPU."""

    def choose(self, scores: Tensor, rate: Tensor) -> tuple[Tensor, int]:
        """Return the frames to mask again, bool [B, T], and an upper bound of the masked frames of a clip."""

    def score(self, probs: Tensor, chosen: Tensor, masked: Tensor) -> Tensor:
        """Return the scores after a step.

        `probs`, float [B, T], are the probabilities of the sampled tokens; `chosen` is the mask that `choose` returned,
        `masked` that of the frames that were sampled, both bool [B, T].
        """


class ChunkRemasking:
    """Masks the least probable chunks of `chunk_len` neighbouring frames; an unmasked chunk is never masked again.

    The last chunk may be shorter. `scoring` is "max" or "prod", see `DecodingConfig`.
    """

    def __init__(self, num_frames: int, chunk_len: int, scoring: str) -> None:
        self.num_frames, self.chunk_len, self.scoring = num_frames, chunk_len, scoring
        self.missing = -num_frames % chunk_len  # frames that the last chunk lacks

    def start(self, keep: Tensor) -> Tensor:
        settled = self._chunks(F.pad(keep, (0, self.missing), value=True)).all(dim=-1)
        self.num_open = (~settled).sum(dim=-1)  # [B]
        return torch.zeros(settled.shape, dtype=torch.float32).masked_fill(settled, SETTLED)

    def choose(self, scores: Tensor, rate: Tensor) -> tuple[Tensor, int]:
        count = (rate * self.num_open).int().clamp(min=1)  # [B], truncated in float32
        rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        chunks = rank < count.to(scores.device, non_blocking=True)[:, None]
        frames = chunks.repeat_interleave(self.chunk_len, dim=-1)[:, : self.num_frames]
        return frames, min(int(count.max()) * self.chunk_len, self.num_frames)

    def score(self, probs: Tensor, chosen: Tensor, masked: Tensor) -> Tensor:
        # A short last chunk is scored as if its last token went on.
        chunks = self._chunks(F.pad(probs, (0, self.missing), mode="replicate"))
        scores = 1 - chunks.amax(dim=-1) if self.scoring == "max" else -chunks.log().sum(dim=-1)
        return scores.masked_fill(~chosen[:, :: self.chunk_len], SETTLED)

    def _chunks(self, frames: Tensor) -> Tensor:
        """Cut [B, whole chunks x L] into [B, chunks, L]."""
        return frames.view(frames.shape[0], -1, self.chunk_len)


class OverlappingRemasking:
    """Masks the least probable spans of L frames, which start anywhere and may cover tokens that were kept before."""

    def __init__(self, span_len: int) -> None:
        self.span_len = span_len

    def start(self, keep: Tensor) -> Tensor:
        self.num_open = (~keep).sum(dim=-1)  # [B]
        return torch.zeros(keep.shape, dtype=torch.float32).masked_fill(keep, SETTLED)

    def choose(self, scores: Tensor, rate: Tensor) -> tuple[Tensor, int]:
        counts = (rate * self.num_open).int().clamp(min=1).tolist()
        rows = zip(scores.cpu(), counts, strict=True)  # on a GPU each step of the search would synchronise
        frames = torch.stack([least_probable_spans(row, self.span_len, count) for row, count in rows])
        # Open frames that the first mask misses are filled all the same.
        return frames.to(scores.device), max(*counts, int(frames.sum(dim=-1).max()))

    def score(self, probs: Tensor, chosen: Tensor, masked: Tensor) -> Tensor:
        return (-probs.log()).masked_fill(~masked, SETTLED)


class SpreadRemasking:
    """Fills frames that are far apart from each other first, whatever their probabilities.

    The frames of a step are sampled independently, and neighbours depend on each other most. The order is the van der
    Corput sequence, which always goes into a largest gap (to a frame), from a random first frame in each clip.

    Source: arXiv 2503.17076 (the same idea in two dimensions).
    """

    def __init__(self, num_frames: int, generator: Generators, device: torch.device | str) -> None:
        self.generator, self.device = generator, device
        self.order = bit_reversed_order(num_frames)

    def start(self, keep: Tensor) -> Tensor:
        num_frames = len(self.order)
        first = (uniform((len(keep), 1), self.generator, self.device).cpu() * num_frames).long()
        turn = ((self.order + first) % num_frames).argsort(dim=-1)  # [B, T], when each frame is filled
        turn = turn.masked_fill(keep, -1).argsort(dim=-1, stable=True).argsort(dim=-1, stable=True)
        self.num_open = (~keep).sum(dim=-1)
        # Counted from the end: the last `count` frames are those below `count`.
        self.left = (num_frames - 1 - turn).masked_fill(keep, num_frames)
        return torch.zeros(keep.shape, dtype=torch.float32)

    def choose(self, scores: Tensor, rate: Tensor) -> tuple[Tensor, int]:
        count = (rate * self.num_open).int().clamp(min=1)
        return (self.left < count[:, None]).to(scores.device, non_blocking=True), int(count.max())

    def score(self, probs: Tensor, chosen: Tensor, masked: Tensor) -> Tensor:
        return torch.zeros_like(probs)


def bit_reversed_order(length: int) -> Tensor:
    """Return 0..length-1, int64 [length], ordered by their reversed binary digits: 0, 4, 2, 6, 1, 5, 3, 7.

    For other lengths the order of the next power of two is scaled down: cut off instead, it would fill the first and
    the last frame, which are neighbours after a rotation, one after the other.
    """
    digits = max(length - 1, 1).bit_length()
    backwards = (int(f"{number:0{digits}b}"[::-1], 2) for number in range(2**digits))
    return torch.tensor(list(dict.fromkeys(number * length >> digits for number in backwards)))


def remasking_for(
    decoding: DecodingConfig,
    num_frames: int,
    span_len: int,
    generator: Generators,
    device: torch.device | str,
) -> Remasking:
    """Return the strategy of the settings; `generator` is on `device`."""
    if decoding.span_arrangement == "spread":
        return SpreadRemasking(num_frames, generator, device)
    if span_len <= 1:
        return ChunkRemasking(num_frames, 1, "prod")
    if decoding.span_arrangement == "stride1":
        return OverlappingRemasking(span_len)
    return ChunkRemasking(num_frames, span_len, decoding.span_scoring)
