"""Say how sure a mean is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_RESAMPLES = 2000


def bootstrap_interval(values: npt.ArrayLike, seed: int = 0) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean: percentiles of the means of sets drawn anew with replacement.

    It says what another choice of clips would have changed, not what another seed of the model would have.

    Args:
        values: float [N], one for each clip.
        seed: Of the draws.

    Returns:
        Lower and upper end; None for fewer than 2 values, which tell nothing about their spread.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) < 2:
        return None
    rng = np.random.default_rng(seed)
    means = [numbers[rng.integers(len(numbers), size=len(numbers))].mean() for _ in range(_RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
