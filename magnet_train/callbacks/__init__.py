"""What happens around training: stopping and resuming, guards, what is shown and logged."""

from magnet_train.callbacks.exact import ExactResume
from magnet_train.callbacks.finite import FiniteGuard
from magnet_train.callbacks.last_row import LastRow
from magnet_train.callbacks.predictions import WritePredictions
from magnet_train.callbacks.progress import StepProgressBar
from magnet_train.callbacks.samples import SampleAudio
from magnet_train.callbacks.speed import SpeedMonitor
from magnet_train.callbacks.stop import SaveOnStop

__all__ = [
    "ExactResume",
    "FiniteGuard",
    "LastRow",
    "SampleAudio",
    "SaveOnStop",
    "SpeedMonitor",
    "StepProgressBar",
    "WritePredictions",
]
