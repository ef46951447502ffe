"""Measures of generated against real sound, and the pretrained models behind them."""

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
from magnet_train.evaluation.models import AudioTagger, Clap, as_noise, cut, through_windows

__all__ = [
    "AudioTagger",
    "Clap",
    "ClapScore",
    "Fad",
    "Gaussian",
    "PairedDivergence",
    "as_noise",
    "bootstrap_interval",
    "cut",
    "frechet_distance",
    "kl_divergence",
    "measure_clap_score",
    "measure_divergence",
    "measure_fad",
    "through_windows",
]
