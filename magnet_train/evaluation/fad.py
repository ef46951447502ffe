"""FAD-CLAP: how far generated sound as a whole lies from real sound, beside what real sound and noise would get.

Shapes: of each clip float [W, D], W windows of audio (one or more), D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from magnet_train.errors import UserError
from magnet_train.evaluation.frechet import Floats, Gaussian

_SPLITS = 10
_LEAST = 2  # clips, below which there is no spread


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over random splits of the clips."""

    mean: float
    std: float


@dataclass(frozen=True)
class EqualSizes:
    """Distances of three sets of as many clips each, all to the same other part of the reference.

    Args:
        clips: In each of the three sets.
        reference_clips: What they are compared with: the rest of the reference.
        splits: How often clips were drawn anew; each distance is a mean over these.
        generated: Of generated clips.
        real: The floor: of real clips, the other part of the reference.
        noise: Chance: of white noise as loud as the generated clips; None without noise.
    """

    clips: int
    reference_clips: int
    splits: int
    generated: Spread
    real: Spread
    noise: Spread | None


@dataclass(frozen=True)
class Fad:
    """Fréchet distance of all generated to all reference windows, smaller is better.

    Args:
        distance: 0 or more.
        generated_clips: How many.
        generated_windows: Theirs, one embedding each.
        reference_clips: How many.
        reference_windows: Theirs.
        dimensions: Of an embedding. With fewer windows than that the distance is biased upwards.
        equal: The same at equal sizes; None if the reference has fewer than four clips.
    """

    distance: float
    generated_clips: int
    generated_windows: int
    reference_clips: int
    reference_windows: int
    dimensions: int
    equal: EqualSizes | None

    @property
    def too_few(self) -> bool:
        """Whether a covariance lacks full rank."""
        return min(self.generated_windows, self.reference_windows) <= self.dimensions


def measure_fad(
    generated: Sequence[npt.ArrayLike],
    reference: Sequence[npt.ArrayLike],
    noise: Sequence[npt.ArrayLike] | None = None,
    seed: int = 0,
) -> Fad:
    """Compare generated with real sound by their embeddings.

    A distance alone says little, since few clips make it large. So it comes a second time at equal sizes: of as
    many generated clips, real clips and clips of noise, drawn at random, each against the clips of the
    reference that are left. A perfect model gets what the real clips get. Clips are split, never the windows
    of one.

    Args:
        generated: float [W, D] of each clip.
        reference: The same of real clips.
        noise: The same of noise in the place of each generated clip; None leaves it out.
        seed: Of the splits.

    Raises:
        UserError: Fewer than 2 clips on a side.
    """
    if min(len(generated), len(reference)) < _LEAST:
        raise UserError(
            f"at least {_LEAST} usable clips are needed on each side, not {len(generated)} generated and "
            f"{len(reference)} of the reference; add clips."
        )
    ours, real = _join(generated), _join(reference)
    return Fad(
        distance=Gaussian.of(ours).distance(Gaussian.of(real)),
        generated_clips=len(generated),
        generated_windows=len(ours),
        reference_clips=len(reference),
        reference_windows=len(real),
        dimensions=ours.shape[1],
        equal=_at_equal_sizes(generated, reference, noise, seed),
    )


def _at_equal_sizes(
    generated: Sequence[npt.ArrayLike],
    reference: Sequence[npt.ArrayLike],
    noise: Sequence[npt.ArrayLike] | None,
    seed: int,
) -> EqualSizes | None:
    clips = min(len(generated), len(reference) // 2)
    if clips < _LEAST:
        return None
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {"generated": [], "real": [], "noise": []}
    for _ in range(_SPLITS):
        order = rng.permutation(len(reference))
        chosen = rng.permutation(len(generated))[:clips]
        rest = Gaussian.of(_join([reference[i] for i in order[clips:]]))
        found["generated"].append(Gaussian.of(_join([generated[i] for i in chosen])).distance(rest))
        found["real"].append(Gaussian.of(_join([reference[i] for i in order[:clips]])).distance(rest))
        if noise is not None:
            found["noise"].append(Gaussian.of(_join([noise[i] for i in chosen])).distance(rest))
    spread = {name: Spread(float(np.mean(d)), float(np.std(d))) for name, d in found.items() if d}
    return EqualSizes(
        clips, len(reference) - clips, _SPLITS, spread["generated"], spread["real"], spread.get("noise")
    )


def _join(clips: Sequence[npt.ArrayLike]) -> Floats:
    return np.concatenate([np.asarray(clip, dtype=np.float64) for clip in clips])
