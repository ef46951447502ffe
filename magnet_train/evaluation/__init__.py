"""Measure generated sound against real sound: measures that know numbers only, and the models that give them."""

from magnet_train.evaluation.clap import Clap
from magnet_train.evaluation.clap_score import ClapScore, measure_clap_score
from magnet_train.evaluation.divergence import PairedDivergence, kl_divergence, measure_divergence
from magnet_train.evaluation.fad import Fad, measure_fad
from magnet_train.evaluation.frechet import Gaussian, frechet_distance
from magnet_train.evaluation.interval import bootstrap_interval
from magnet_train.evaluation.tagger import AudioTagger
from magnet_train.evaluation.windows import as_noise, cut, through_windows

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
