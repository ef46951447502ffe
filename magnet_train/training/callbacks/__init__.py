"""Callbacks of training: stop and resume, loss guard, progress, throughput, samples and predictions."""

from magnet_train.training.callbacks.deterministic_resume import DeterministicResume, LastRow
from magnet_train.training.callbacks.nan_guard import NonFiniteGuard
from magnet_train.training.callbacks.progress import StepProgressBar, ThroughputMonitor
from magnet_train.training.callbacks.samples import SampleAudio, WritePredictions
from magnet_train.training.callbacks.save_on_stop import SaveOnStop

__all__ = [
    "DeterministicResume",
    "LastRow",
    "NonFiniteGuard",
    "SampleAudio",
    "SaveOnStop",
    "StepProgressBar",
    "ThroughputMonitor",
    "WritePredictions",
]
