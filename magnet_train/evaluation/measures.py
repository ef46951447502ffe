"""FAD-CLAP, CLAP score and KL-AST of embeddings and probabilities, each with its values for chance and real sound.

Shapes: n clips or pairs, W windows of a clip, D dimensions, C classes; everything float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from magnet_train.errors import UserError

Floats = npt.NDArray[np.float64]

_RESAMPLES = 2000
_SPLITS = 10
_LEAST = 2  # clips with a spread
_EPSILON = 1e-6  # added to the generated clips' probabilities, as the reference implementation does


def bootstrap_interval(values: npt.ArrayLike, seed: int = 0) -> tuple[float, float] | None:
    """Return both ends of the 95 % bootstrap confidence interval of the mean of float [N]; None for N below 2.

    It covers the choice of clips, not the seed of the model.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) < 2:
        return None
    rng = np.random.default_rng(seed)
    means = [numbers[rng.integers(len(numbers), size=len(numbers))].mean() for _ in range(_RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution: mean [D], and root [min(N, D), D] with covariance `root.T @ root`."""

    mean: Floats
    root: Floats

    @classmethod
    def of(cls, vectors: npt.ArrayLike) -> Self:
        """Fit one to float [N, D], with the unbiased covariance; raises `ValueError` unless finite with N >= 2."""
        points = np.asarray(vectors, dtype=np.float64)
        if points.ndim != 2 or len(points) < 2 or not np.isfinite(points).all():
            raise ValueError(f"vectors must be finite [N, D] with N >= 2, got shape {list(points.shape)}")
        mean = points.mean(axis=0)
        root = np.linalg.qr(points - mean, mode="r") / np.sqrt(len(points) - 1)
        return cls(mean, root)

    def distance(self, other: Gaussian) -> float:
        """Return the squared Fréchet (2-Wasserstein) distance to another, 0 or more.

        |m1 - m2|² + tr C1 + tr C2 - 2 tr (C1 C2)^½. With roots A and B of C1 and C2 the last trace is the sum of
        the singular values of A Bᵀ, which also holds for covariances without full rank (fewer vectors than dimensions).
        """
        shift = np.square(self.mean - other.mean).sum()
        spread = np.square(self.root).sum() + np.square(other.root).sum()
        shared = np.linalg.svd(self.root @ other.root.T, compute_uv=False).sum()
        return max(0.0, float(shift + spread - 2 * shared))


def frechet_distance(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Return the squared Fréchet distance between Gaussians fitted to float [N, D] and float [M, D].

    0 or more, in squared units of the vectors; at most about 4 for vectors of unit length. Fewer vectors give a larger
    distance (a bias of order 1/N): compare at equal numbers only. Raises `ValueError` as `Gaussian.of`.

    Source: arXiv 1812.08466, section 3.1 (there with VGGish embeddings).
    """
    return Gaussian.of(first).distance(Gaussian.of(second))


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over random splits of the clips."""

    mean: float
    std: float


@dataclass(frozen=True)
class EqualSizes:
    """Distances of three sets of `clips` clips each from the same `reference_clips` other clips of the reference.

    Each is averaged over `splits` random splits.
    """

    clips: int
    reference_clips: int
    splits: int
    generated: Spread
    real: Spread  # the floor: the other part of the reference
    noise: Spread | None  # chance: white noise as loud as the generated clips


@dataclass(frozen=True)
class Fad:
    """Fréchet distance of the embeddings of all generated to all reference windows, 0 or more, smaller is better.

    With fewer windows than an embedding has `dimensions` it is biased upwards. `equal` holds distances at equal sizes,
    None if the reference has fewer than four clips.
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

    A distance alone says little, since it is large for few clips. So it is also measured at equal sizes: equally many
    generated clips, real clips and clips of noise, drawn at random, each against the rest of the reference. A perfect
    model gets the distance of the real clips. The windows of a clip stay together.

    Args:
        generated: Embeddings float [W, D] of each generated clip.
        reference: Embeddings of each real clip.
        noise: Embeddings of noise in place of each generated clip; None leaves it out.
        seed: Seed of the splits.

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
        equal=at_equal_sizes(lambda clips: Gaussian.of(_join(clips)), generated, reference, noise, seed),
    )


class Comparable(Protocol):
    """A summary of a set of clips, with a distance."""

    def distance(self, other: Self) -> float:
        """Return the distance from the summary of another set."""


def at_equal_sizes(
    summarize: Callable[[Sequence[npt.ArrayLike]], Comparable],
    generated: Sequence[npt.ArrayLike],
    reference: Sequence[npt.ArrayLike],
    noise: Sequence[npt.ArrayLike] | None,
    seed: int,
) -> EqualSizes | None:
    """Compare equally many generated and real clips with the rest of the reference; None with too few clips.

    Args:
        summarize: Turns the vectors of some clips into a summary.
        generated: Vectors of each generated clip.
        reference: Vectors of each real clip.
        noise: Vectors of noise in place of each generated clip; None leaves it out.
        seed: Seed of the splits.
    """
    clips = min(len(generated), len(reference) // 2)
    if clips < _LEAST:
        return None
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {"generated": [], "real": [], "noise": []}
    for _ in range(_SPLITS):
        order = rng.permutation(len(reference))
        chosen = rng.permutation(len(generated))[:clips]
        rest = summarize([reference[i] for i in order[clips:]])
        found["generated"].append(summarize([generated[i] for i in chosen]).distance(rest))
        found["real"].append(summarize([reference[i] for i in order[:clips]]).distance(rest))
        if noise is not None:
            found["noise"].append(summarize([noise[i] for i in chosen]).distance(rest))
    spread = {name: Spread(float(np.mean(d)), float(np.std(d))) for name, d in found.items() if d}
    return EqualSizes(
        clips, len(reference) - clips, _SPLITS, spread["generated"], spread["real"], spread.get("noise")
    )


def _join(clips: Sequence[npt.ArrayLike]) -> Floats:
    return np.concatenate([np.asarray(clip, dtype=np.float64) for clip in clips])


@dataclass(frozen=True)
class ClapScore:
    """Mean cosine between clips and their captions, -1..1, larger is better."""

    mean: float
    interval: tuple[float, float] | None  # 95 %, see `bootstrap_interval`
    clips: int  # with a caption
    chance: float | None  # mean over all pairs of a clip and another caption; None if all captions are equal


def measure_clap_score(
    audio: Sequence[npt.ArrayLike], text: npt.ArrayLike, captions: Sequence[str], seed: int = 0
) -> ClapScore:
    """Score clips against their captions.

    A long clip gets the mean of the cosines of its windows: averaging embeddings first would favour long clips.

    Args:
        audio: Embeddings float [W, D] of each clip, rows of unit length.
        text: Embeddings float [n, D] of their captions, rows of unit length.
        captions: The n captions, to find equal ones.
        seed: Seed of the interval.

    Raises:
        UserError: There are no clips.
    """
    if not len(captions):
        raise UserError("there are no captions; put a .txt beside each clip.")
    clips = np.stack([np.asarray(clip, dtype=np.float64).mean(axis=0) for clip in audio])  # [n, D]
    texts = np.asarray(text, dtype=np.float64)
    cosines = (clips * texts).sum(axis=1)
    chance = _mean_cosine_of_others(clips, texts, captions)
    return ClapScore(float(cosines.mean()), bootstrap_interval(cosines, seed), len(cosines), chance)


def _mean_cosine_of_others(clips: Floats, texts: Floats, captions: Sequence[str]) -> float | None:
    """Average over every pair with different captions."""
    members: dict[str, list[int]] = {}
    for number, caption in enumerate(captions):
        members.setdefault(caption, []).append(number)
    pairs = len(captions) ** 2 - sum(len(same) ** 2 for same in members.values())
    if not pairs:
        return None
    equal = sum(clips[same].sum(axis=0) @ texts[same].sum(axis=0) for same in members.values())
    return float((clips.sum(axis=0) @ texts.sum(axis=0) - equal) / pairs)


@dataclass(frozen=True)
class PairedDivergence:
    """Mean KL divergence from reference to generated clip (nats), smaller is better; 0 for the same sound."""

    mean: float
    interval: tuple[float, float] | None  # 95 %, see `bootstrap_interval`
    pairs: int
    # Means over all pairs of a reference with the generated clip of another, and of two references.
    chance: float | None  # None for one pair
    other_real: float | None  # None for one pair


def kl_divergence(reference: npt.ArrayLike, generated: npt.ArrayLike) -> Floats:
    """Return KL(reference || generated) of the rows of two [n, C] (nats), float64 [n]; 1e-6 is added to `generated`."""
    real, ours = np.asarray(reference, dtype=np.float64), np.asarray(generated, dtype=np.float64)
    divergence: Floats = _negative_entropy(real) - (real * np.log(ours + _EPSILON)).sum(axis=-1)
    return divergence


def measure_divergence(reference: npt.ArrayLike, generated: npt.ArrayLike, seed: int = 0) -> PairedDivergence:
    """Compare clips by the probabilities of their classes, [n, C] each, in the order of the pairs.

    Raises:
        UserError: There are no pairs.
    """
    real, ours = np.asarray(reference, dtype=np.float64), np.asarray(generated, dtype=np.float64)
    if not len(real):
        raise UserError("there are no pairs; give both files of a pair the same name.")
    values = kl_divergence(real, ours)
    chance, other_real = _mean_divergence_of_others(real, ours), _mean_divergence_of_others(real, real)
    return PairedDivergence(
        float(values.mean()), bootstrap_interval(values, seed), len(values), chance, other_real
    )


def _mean_divergence_of_others(real: Floats, others: Floats) -> float | None:
    """Average over every pair of a row with another row."""
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
