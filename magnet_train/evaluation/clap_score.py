"""CLAP score: how well sound fits its caption, beside what it would get for the captions of others.

Shapes: n clips, W windows in a clip, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from magnet_train.errors import UserError
from magnet_train.evaluation.frechet import Floats
from magnet_train.evaluation.interval import bootstrap_interval


@dataclass(frozen=True)
class ClapScore:
    """Mean cosine between clips and their captions, -1..1, larger is better.

    Args:
        mean: Over clips.
        interval: 95 % bootstrap interval over clips; None for one clip.
        clips: How many have a caption.
        chance: Mean over all pairs of a clip with a caption of another clip that reads differently; None if
            all captions are the same.
    """

    mean: float
    interval: tuple[float, float] | None
    clips: int
    chance: float | None


def measure_clap_score(
    audio: Sequence[npt.ArrayLike], text: npt.ArrayLike, captions: Sequence[str], seed: int = 0
) -> ClapScore:
    """Score clips against their captions.

    Long clips get the mean of the cosines of their windows: averaging embeddings first would favour them.

    Args:
        audio: Of each clip float [W, D], each row of unit length.
        text: Of their captions float [n, D], each row of unit length.
        captions: The n captions, to tell which are the same.
        seed: Of the interval.

    Raises:
        UserError: There is no clip.
    """
    if not len(captions):
        raise UserError("there are no captions; put a .txt beside each clip.")
    clips = np.stack([np.asarray(clip, dtype=np.float64).mean(axis=0) for clip in audio])  # [n, D]
    texts = np.asarray(text, dtype=np.float64)
    cosines = (clips * texts).sum(axis=1)
    chance = _mean_over_others(clips, texts, captions)
    return ClapScore(float(cosines.mean()), bootstrap_interval(cosines, seed), len(cosines), chance)


def _mean_over_others(clips: Floats, texts: Floats, captions: Sequence[str]) -> float | None:
    """Average over every pair with unlike captions: what random pairing gets in the mean, without drawing any."""
    _, group = np.unique(np.asarray(captions, dtype=object).astype(str), return_inverse=True)
    sizes = np.bincount(group)
    pairs = len(captions) ** 2 - int(np.square(sizes).sum())
    if not pairs:
        return None
    own = np.zeros((len(sizes), clips.shape[1]))
    np.add.at(own, group, clips)
    own_texts = np.zeros_like(own)
    np.add.at(own_texts, group, texts)
    everything = clips.sum(axis=0) @ texts.sum(axis=0)
    return float((everything - (own * own_texts).sum()) / pairs)
