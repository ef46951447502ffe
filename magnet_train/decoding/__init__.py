"""The iterative decoder: settings and schedule, sampling, remasking, and the loop that joins them."""

from magnet_train.decoding.config import DecodingConfig, DecodingStep, decoding_schedule
from magnet_train.decoding.generate import LogitsAtFrames, LogitsFn, Progress, generate_tokens

__all__ = [
    "DecodingConfig",
    "DecodingStep",
    "LogitsAtFrames",
    "LogitsFn",
    "Progress",
    "decoding_schedule",
    "generate_tokens",
]
