"""Train, try and share masked audio-token models (MAGNeT)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from magnet_train.decoding import DecodingConfig, generate_tokens
    from magnet_train.models import MagnetTransformer
    from magnet_train.pipeline.magnet import Magnet

__version__ = "0.1.0"
__all__ = ["DecodingConfig", "Magnet", "MagnetTransformer", "generate_tokens"]

# Imported when first used, so that `magnet-train --help` does not wait for torch.
_HOMES = {
    "DecodingConfig": "magnet_train.decoding",
    "Magnet": "magnet_train.pipeline.magnet",
    "MagnetTransformer": "magnet_train.models",
    "generate_tokens": "magnet_train.decoding",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'magnet_train' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
