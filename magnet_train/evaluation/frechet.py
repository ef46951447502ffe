"""Say how far apart two clouds of vectors lie, each taken for a Gaussian.

Shapes: N vectors, D dimensions, R = min(N, D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of vectors, the covariance as a root: `root.T @ root`.

    Args:
        mean: float64 [D].
        root: float64 [R, D].
    """

    mean: Floats
    root: Floats

    @classmethod
    def of(cls, vectors: npt.ArrayLike) -> Self:
        """Fit one to float [N, D], with the unbiased covariance (divided by N - 1).

        Raises:
            ValueError: Fewer than 2 vectors, or not finite [N, D].
        """
        points = np.asarray(vectors, dtype=np.float64)
        if points.ndim != 2 or len(points) < 2 or not np.isfinite(points).all():
            raise ValueError(f"vectors must be finite [N, D] with N >= 2, got shape {list(points.shape)}")
        mean = points.mean(axis=0)
        root = np.linalg.qr(points - mean, mode="r") / np.sqrt(len(points) - 1)
        return cls(mean, root)

    def distance(self, other: Gaussian) -> float:
        """Return the squared Fréchet (2-Wasserstein) distance to another, 0 or more.

        |m1 - m2|² + tr C1 + tr C2 - 2 tr (C1 C2)^½. With roots A and B of C1 and C2 the last trace is the sum of
        the singular values of A Bᵀ: nothing is squared and no square root of a matrix is taken, so that
        covariances without full rank (fewer vectors than dimensions) need no special care.
        """
        shift = np.square(self.mean - other.mean).sum()
        spread = np.square(self.root).sum() + np.square(other.root).sum()
        shared = np.linalg.svd(self.root @ other.root.T, compute_uv=False).sum()
        return max(0.0, float(shift + spread - 2 * shared))


def frechet_distance(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Return the squared Fréchet distance between two clouds of vectors, each taken for a Gaussian.

    The fewer vectors, the larger it comes out (a bias of order 1/N): compare at equal numbers only.

    Args:
        first: float [N, D].
        second: float [M, D].

    Returns:
        0 or more, in squared units of the vectors; of vectors of unit length about 4 at most.

    Raises:
        ValueError: Fewer than 2 vectors, or not finite, or of unlike D.

    Source: arXiv 1812.08466, section 3.1 (there with VGGish embeddings).
    """
    return Gaussian.of(first).distance(Gaussian.of(second))
