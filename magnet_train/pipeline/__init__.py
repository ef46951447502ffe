"""A whole model for use in Python: text in, audio out."""

from magnet_train.pipeline.magnet import Magnet

__all__ = ["Magnet"]
