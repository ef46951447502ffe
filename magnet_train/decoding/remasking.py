"""Choose what of a codebook is masked again before the next step: what was least probable, or what is next to it.

Shapes: B clips, T frames, L = span_len frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from magnet_train.decoding.config import DecodingConfig
from magnet_train.decoding.sampling import uniform
from magnet_train.masking import least_probable_spans

SETTLED = -1e4  # score of what must not be masked again; every true score is above it


class Remasking(Protocol):
    """Chooses which frames of a codebook are masked again before a step, from how improbable they were.

    How many that can be is known before the step, so that a GPU need not be asked.
    """

    def start(self, keep: Tensor) -> Tensor:
        """Return scores before the first step, given what stays (bool [B, T]); both on the CPU."""

    def choose(self, scores: Tensor, rate: Tensor) -> tuple[Tensor, int]:
        """Return the frames to mask for a wanted mask rate, bool [B, T], and how many frames a clip
        needs at most, these and those still open.
        """

    def score(self, probs: Tensor, chosen: Tensor, filled: Tensor) -> Tensor:
        """Score again from the probabilities float [B, T] of the tokens just sampled.

        `chosen` [B, T] is what `choose` returned, `filled` [B, T] what was then really filled.
        """


class ChunkRemasking:
    """Masks whole chunks of L neighbouring frames; a chunk that was kept once stays for good.

    Args:
        num_frames: T; when it is no multiple of L the last chunk is shorter.
        chunk_len: L; 1 decides token by token.
        scoring: "max" or "prod", see `DecodingConfig`.
    """

    def __init__(self, num_frames: int, chunk_len: int, scoring: str) -> None:
        self.num_frames, self.chunk_len, self.scoring = num_frames, chunk_len, scoring
        self.missing = -num_frames % chunk_len  # frames that the last chunk lacks

    def start(self, keep: Tensor) -> Tensor:
        settled = self._chunks(F.pad(keep, (0, self.missing), value=True)).all(dim=-1)
        self.num_open = (~settled).sum(dim=-1)  # [B]
        return torch.zeros(settled.shape).masked_fill(settled, SETTLED)

    def choose(self, scores: Tensor, rate: Tensor) -> tuple[Tensor, int]:
        count = (rate * self.num_open).int().clamp(min=1)  # [B], truncated in float32
        rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        chunks = rank < count.to(scores.device, non_blocking=True)[:, None]
        frames = chunks.repeat_interleave(self.chunk_len, dim=-1)[:, : self.num_frames]
        return frames, min(int(count.max()) * self.chunk_len, self.num_frames)

    def score(self, probs: Tensor, chosen: Tensor, filled: Tensor) -> Tensor:
        # A short last chunk is judged as if its last token went on.
        chunks = self._chunks(F.pad(probs, (0, self.missing), mode="replicate"))
        scores = 1 - chunks.amax(dim=-1) if self.scoring == "max" else -chunks.log().sum(dim=-1)
        return scores.masked_fill(~chosen[:, :: self.chunk_len], SETTLED)

    def _chunks(self, frames: Tensor) -> Tensor:
        """Cut [B, whole chunks x L] into [B, chunks, L]."""
        return frames.view(frames.shape[0], -1, self.chunk_len)


class OverlappingRemasking:
    """Masks spans of L frames that may start anywhere; fixed tokens between bad ones can be masked again.

    Args:
        span_len: L.
    """

    def __init__(self, span_len: int) -> None:
        self.span_len = span_len

    def start(self, keep: Tensor) -> Tensor:
        self.num_open = (~keep).sum(dim=-1)  # [B]
        return torch.zeros(keep.shape).masked_fill(keep, SETTLED)

    def choose(self, scores: Tensor, rate: Tensor) -> tuple[Tensor, int]:
        counts = (rate * self.num_open).int().clamp(min=1).tolist()
        rows = zip(scores.cpu(), counts, strict=True)  # the search asks often: better there than on a GPU
        frames = torch.stack([least_probable_spans(row, self.span_len, count) for row, count in rows])
        # The first mask may miss frames, which are open all the same and get filled.
        return frames.to(scores.device), max(*counts, int(frames.sum(dim=-1).max()))

    def score(self, probs: Tensor, chosen: Tensor, filled: Tensor) -> Tensor:
        return (-probs.log()).masked_fill(~filled, SETTLED)


class SpreadRemasking:
    """Fills frames far apart from each other first, in an order that no probability has a say in.

    All frames of a step are sampled without knowing of each other, and neighbours have most to tell each other. So
    the order is that of the van der Corput sequence, which always goes into a largest gap (to a frame); each
    clip starts it at another frame.

    Args:
        num_frames: T.
        generator: As for `generate_tokens`.
        device: Of the generator.

    Source: arXiv 2503.17076 (the same idea in two dimensions).
    """

    def __init__(
        self,
        num_frames: int,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        device: torch.device | str,
    ) -> None:
        self.generator, self.device = generator, device
        self.order = bit_reversed_order(num_frames)

    def start(self, keep: Tensor) -> Tensor:
        num_frames = len(self.order)
        first = (uniform((len(keep), 1), self.generator, self.device).cpu() * num_frames).long()
        turn = ((self.order + first) % num_frames).argsort(dim=-1)  # [B, T], when each frame is filled
        turn = turn.masked_fill(keep, -1).argsort(dim=-1, stable=True).argsort(dim=-1, stable=True)
        self.num_open = (~keep).sum(dim=-1)  # [B]
        # Counted from the end, so that the last `count` are those below `count`.
        self.left = (num_frames - 1 - turn).masked_fill(keep, num_frames)
        return torch.zeros(keep.shape)

    def choose(self, scores: Tensor, rate: Tensor) -> tuple[Tensor, int]:
        count = (rate * self.num_open).int().clamp(min=1)  # [B]
        return (self.left < count[:, None]).to(scores.device, non_blocking=True), int(count.max())

    def score(self, probs: Tensor, chosen: Tensor, filled: Tensor) -> Tensor:
        return torch.zeros_like(probs)


def bit_reversed_order(length: int) -> Tensor:
    """Return 0..length-1, int64 [length], by their binary digits read backwards: 0, 4, 2, 6, 1, 5, 3, 7.

    Of a length that is no power of two, the next one's order is squeezed into it: to leave out what is beyond the end
    would leave first and last frame, neighbours in the circle, to be filled one after the other.
    """
    digits = max(length - 1, 1).bit_length()
    backwards = (int(f"{number:0{digits}b}"[::-1], 2) for number in range(2**digits))
    return torch.tensor(list(dict.fromkeys(number * length >> digits for number in backwards)))


def remasking_for(
    decoding: DecodingConfig,
    num_frames: int,
    span_len: int,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    device: torch.device | str,
) -> Remasking:
    """Pick the remasking that the settings ask for; `generator` is on `device`."""
    if decoding.span_arrangement == "spread":
        return SpreadRemasking(num_frames, generator, device)
    if span_len <= 1:
        return ChunkRemasking(num_frames, 1, "prod")
    if decoding.span_arrangement == "stride1":
        return OverlappingRemasking(span_len)
    return ChunkRemasking(num_frames, span_len, decoding.span_scoring)
