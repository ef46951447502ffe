"""Token data: from audio files to shards, and from shards to the batches that a model trains on.

`shards` is format 1 on disk, `tokenize` makes it from audio, `sampling` maps slots of the run to clips, `batches` makes
batches, and two LightningDataModules pass them to a trainer.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# webdataset reads this when it is imported: no pickles and no `pipe:` commands from a foreign tar.
os.environ.setdefault("WDS_SECURE", "1")

if TYPE_CHECKING:
    from datamodules.sampling.position import DataPosition
    from datamodules.streaming_datamodule import StreamingDataModule
    from datamodules.token_datamodule import TokenDataModule

__all__ = ["DataPosition", "StreamingDataModule", "TokenDataModule"]
_MODULES = {
    "DataPosition": "sampling.position",
    "StreamingDataModule": "streaming_datamodule",
    "TokenDataModule": "token_datamodule",
}


def __getattr__(name: str) -> Any:
    """Import the Lightning classes on first use; shards alone need no Lightning."""
    if name not in _MODULES:
        raise AttributeError(f"module 'datamodules' has no attribute {name!r}")
    return getattr(importlib.import_module(f"datamodules.{_MODULES[name]}"), name)
