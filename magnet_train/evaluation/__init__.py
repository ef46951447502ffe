"""Measures that compare generated with real sound, with and without pretrained models."""

from magnet_train.evaluation.measures import (
    ClapScore,
    Fad,
    Gaussian,
    PairedDivergence,
    bootstrap_interval,
    frechet_distance,
    kl_divergence,
    measure_clap_score,
    measure_divergence,
    measure_fad,
)
from magnet_train.evaluation.models import AudioTagger, Clap
from magnet_train.evaluation.nearest import NearestClip, NearestSearch
from magnet_train.evaluation.sound import ClipSound, measure_clip
from magnet_train.evaluation.windows import as_noise, cut, through_windows

__all__ = [
    "AudioTagger",
    "Clap",
    "ClapScore",
    "ClipSound",
    "Fad",
    "Gaussian",
    "NearestClip",
    "NearestSearch",
    "PairedDivergence",
    "as_noise",
    "bootstrap_interval",
    "cut",
    "frechet_distance",
    "kl_divergence",
    "measure_clap_score",
    "measure_clip",
    "measure_divergence",
    "measure_fad",
    "through_windows",
]
