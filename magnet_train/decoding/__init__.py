"""The iterative decoder; `LogitsFn` is the contract between it and a model."""

from magnet_train.decoding.config import DecodingConfig, DecodingStep, decoding_schedule
from magnet_train.decoding.generate import LogitsAtFrames, LogitsFn, Progress, Rescorer, generate_tokens
from magnet_train.decoding.likelihood import log_likelihood
from magnet_train.decoding.remasking import Remasking
from magnet_train.decoding.sampling import clip_generators
from magnet_train.decoding.step_profile import StepProfile

__all__ = [
    "DecodingConfig",
    "DecodingStep",
    "LogitsAtFrames",
    "LogitsFn",
    "Progress",
    "Remasking",
    "Rescorer",
    "StepProfile",
    "clip_generators",
    "decoding_schedule",
    "generate_tokens",
    "log_likelihood",
]
