"""Find where a clip repeats itself, so that a cut falls on its beat.

A model whose training clips begin on the beat has learned that frame 0 is one. Where frames are shown to it at another
place, in a longer clip or in a loop, they have to be moved by a whole number of beats.

Shapes: B clips, D features, N frames of a pattern, S frames that are searched.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEARLY_BEST = 0.8  # of the highest correlation: two beats away is about as good as one


def find_repeat(pattern: Tensor, search: Tensor) -> Tensor:
    """Return the offset at which the searched frames are most like the pattern.

    Args:
        pattern: What is in each frame, float [B, D, N]; embeddings of tokens, say.
        search: Likewise, float [B, D, S], S >= N.

    Returns:
        int64 [B], 0..S - N: of the peaks of the correlation that come near the highest, the latest. The middle
        where nothing correlates, as in silence.
    """
    length = pattern.shape[-1]
    pattern = _normalised(pattern)
    score = torch.stack([(_normalised(part) * pattern).sum((1, 2)) for part in _parts(search, length)], dim=1)
    before, after = score.roll(1, dims=1), score.roll(-1, dims=1)
    before[:, 0] = after[:, -1] = -torch.inf
    best = score.max(dim=1, keepdim=True).values  # [B, 1]
    peak = (score >= before) & (score >= after) & (score >= NEARLY_BEST * best)
    offsets = torch.arange(score.shape[1], device=score.device)
    latest = torch.where(peak, offsets, 0).max(dim=1).values
    return torch.where(best[:, 0] > 0, latest, score.shape[1] // 2)


def _parts(search: Tensor, length: int) -> list[Tensor]:
    return [search[..., offset : offset + length] for offset in range(search.shape[-1] - length + 1)]


def _normalised(part: Tensor) -> Tensor:
    """Take the mean over time away, and scale each clip to norm 1 (silence stays 0)."""
    part = part - part.mean(dim=-1, keepdim=True)
    scaled: Tensor = part / torch.linalg.vector_norm(part, dim=(1, 2), keepdim=True).clamp(min=1e-6)
    return scaled
