"""Train the codebooks of a transformers EncodecModel, which itself only knows how to use them.

Shapes: vectors float [N, dims], codes int64 [N], a codebook [card, dims].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DECAY = 0.98  # of the running means; a step's vectors count for about fifty steps
DEAD = 0.05  # vectors a step, on average, below which a code is given a new place


@torch.no_grad()
def fit_codebooks(quantizer: Any, vectors: Tensor, iterations: int = 12) -> None:
    """Place every codebook by k-means on what the codebooks before it leave over.

    Args:
        quantizer: The model's residual quantizer.
        vectors: Float [N, dims], N at least the codebook size.
        iterations: Rounds of k-means for each codebook.
    """
    residual = vectors
    for layer in quantizer.layers:
        book = layer.codebook
        card = book.embed.shape[0]
        centres = residual[torch.randperm(len(residual))[:card]].clone()
        for _ in range(iterations):
            codes = nearest(residual, centres)
            counts = torch.bincount(codes, minlength=card)
            sums = torch.zeros_like(centres).index_add_(0, codes, residual)
            empty = counts == 0
            centres = sums / counts.clamp(min=1)[:, None]
            centres[empty] = residual[torch.randint(len(residual), (int(empty.sum()),))]
        book.embed.copy_(centres)
        book.cluster_size.fill_(1.0)
        book.embed_avg.copy_(centres)
        residual = residual - centres[nearest(residual, centres)]


def quantize(quantizer: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize in training: gradients pass straight through, the codebooks follow by running means.

    Args:
        quantizer: The model's residual quantizer; its codebooks move.
        latents: Float [B, dims, frames].

    Returns:
        The quantized latents [B, dims, frames], and the commitment loss: how far the vectors lie from their
        codes, all codebooks together, as a part of their power.
    """
    vectors = latents.transpose(1, 2).flatten(0, 1)
    residual, total = vectors, torch.zeros_like(vectors)
    commitment = vectors.new_zeros(())
    for layer in quantizer.layers:
        book = layer.codebook
        codes = nearest(residual.detach(), book.embed)
        chosen = book.embed[codes]
        commitment = commitment + (residual - chosen).square().mean()
        _follow(book, residual.detach(), codes)
        residual, total = residual - chosen, total + chosen
    passed = vectors + (total - vectors).detach()
    power = vectors.detach().square().mean() + 1e-6
    return passed.view(len(latents), -1, latents.shape[1]).transpose(1, 2), commitment / power


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return the number of the closest code of each vector, int64 [N]."""
    distance = codebook.square().sum(dim=1) - 2 * vectors @ codebook.T  # plus a constant of the vector
    return distance.argmin(dim=1)


@torch.no_grad()
def _follow(book: Any, vectors: Tensor, codes: Tensor) -> None:
    """Move each code towards the mean of its vectors, and put a code that nobody uses where a vector lies.

    Source: van den Oord et al. 2017, appendix A.1 (codebooks by exponential moving averages).
    """
    counts = torch.bincount(codes, minlength=len(book.cluster_size)).to(vectors.dtype)
    sums = torch.zeros_like(book.embed_avg).index_add_(0, codes, vectors)
    book.cluster_size.mul_(DECAY).add_(counts, alpha=1 - DECAY)
    book.embed_avg.mul_(DECAY).add_(sums, alpha=1 - DECAY)
    dead = book.cluster_size < DEAD
    if dead.any():
        book.embed_avg[dead] = vectors[torch.randint(len(vectors), (int(dead.sum()),))]
        book.cluster_size[dead] = 1.0
    book.embed.copy_(book.embed_avg / book.cluster_size[:, None])
