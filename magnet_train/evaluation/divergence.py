"""KL-AST: whether an audio classifier hears in a generated clip what it hears in its reference.

Shapes: n pairs, C classes; probabilities float [n, C], each row adds up to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from magnet_train.errors import UserError
from magnet_train.evaluation.frechet import Floats
from magnet_train.evaluation.interval import bootstrap_interval

_EPSILON = 1e-6  # added to the generated clips' probabilities, as the reference implementation does


@dataclass(frozen=True)
class PairedDivergence:
    """Mean divergence between paired clips in nats, smaller is better; 0 for the same sound.

    Args:
        mean: Over pairs, from reference to generated.
        interval: 95 % bootstrap interval over pairs; None for one pair.
        pairs: How many.
        chance: Mean over all pairs of a reference with the generated clip of another; None for one pair.
        other_real: Mean over all pairs of a reference with another reference: what real sound that has
            nothing to do with it gets; None for one pair.
    """

    mean: float
    interval: tuple[float, float] | None
    pairs: int
    chance: float | None
    other_real: float | None


def kl_divergence(reference: npt.ArrayLike, generated: npt.ArrayLike) -> Floats:
    """Return KL(reference || generated) of each row, in nats; float64 [n].

    Args:
        reference: Probabilities [n, C].
        generated: Probabilities [n, C]; 1e-6 is added to each, so that none is 0.
    """
    real, ours = np.asarray(reference, dtype=np.float64), np.asarray(generated, dtype=np.float64)
    divergence: Floats = _negative_entropy(real) - (real * np.log(ours + _EPSILON)).sum(axis=-1)
    return divergence


def measure_divergence(reference: npt.ArrayLike, generated: npt.ArrayLike, seed: int = 0) -> PairedDivergence:
    """Compare paired clips by the probabilities of their classes.

    Args:
        reference: Of each reference clip [n, C].
        generated: Of the generated clips in the same order [n, C].
        seed: Of the interval.

    Raises:
        UserError: There is no pair.
    """
    real, ours = np.asarray(reference, dtype=np.float64), np.asarray(generated, dtype=np.float64)
    if not len(real):
        raise UserError("there are no pairs; give both files of a pair the same name.")
    values = kl_divergence(real, ours)
    return PairedDivergence(
        float(values.mean()),
        bootstrap_interval(values, seed),
        len(values),
        _mean_over_others(real, ours),
        _mean_over_others(real, real),
    )


def _mean_over_others(real: Floats, others: Floats) -> float | None:
    """Average over every pair of a row with another row, without going through them one by one."""
    n = len(real)
    if n < 2:
        return None
    logs = np.log(others + _EPSILON)
    cross = real.sum(axis=0) @ logs.sum(axis=0) - (real * logs).sum()
    return float(_negative_entropy(real).mean() - cross / (n * (n - 1)))


def _negative_entropy(probabilities: Floats) -> Floats:
    logs = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    negative: Floats = (probabilities * logs).sum(axis=-1)
    return negative
