"""Architecture only: no training, no files."""

from magnet_train.models.guidance import GuidedLogits
from magnet_train.models.transformer import MagnetTransformer

__all__ = ["GuidedLogits", "MagnetTransformer"]
