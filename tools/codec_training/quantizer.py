"""Place the codebooks of a transformers EncodecModel, which itself only knows how to use them.

Shapes: vectors float [N, dims], codes int64 [N], a codebook [card, dims].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def fit_codebooks(quantizer: Any, vectors: Tensor, iterations: int) -> None:
    """Place every codebook by k-means on what the codebooks before it leave over.

    Args:
        quantizer: The model's residual quantizer.
        vectors: Float [N, dims], N at least the codebook size.
        iterations: Rounds of k-means for each codebook.
    """
    residual = vectors
    for layer in quantizer.layers:
        book = layer.codebook
        centres = fit_centres(residual, book.embed.shape[0], iterations)
        book.embed.copy_(centres)
        book.cluster_size.fill_(1.0)
        book.embed_avg.copy_(centres)
        residual = residual - centres[nearest(residual, centres)]


def fit_centres(vectors: Tensor, count: int, iterations: int) -> Tensor:
    """Find centres [count, dims] by k-means; one that no vector is nearest to moves to a vector."""
    centres = vectors[torch.randperm(len(vectors))[:count]].clone()
    for _ in range(iterations):
        codes = nearest(vectors, centres)
        counts = torch.bincount(codes, minlength=count)
        centres = torch.zeros_like(centres).index_add_(0, codes, vectors) / counts.clamp(min=1)[:, None]
        empty = counts == 0
        centres[empty] = vectors[torch.randint(len(vectors), (int(empty.sum()),))]
    return centres


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return the number of the closest code of each vector, int64 [N]."""
    distance = codebook.square().sum(dim=1) - 2 * vectors @ codebook.T  # plus a constant of the vector
    return distance.argmin(dim=1)
