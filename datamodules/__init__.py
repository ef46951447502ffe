"""Token data: shards on disk, the position in a run, and the LightningDataModules that feed a model.

Bottom to top: `problems`, `npy`, `tar` (bytes); `manifest`, `index`, `report` (what stands beside the
tars); `scan` (every byte of one shard); `writer`, `verify`, `reading`, `remote` (a folder of shards); `order`,
`sampler`, `draw` (which clip when); `caption_augmentation`, `batches` (what becomes of it); `dataset`, `loaders`,
`tokens`, `streaming`, `position` (PyTorch and Lightning). For tokenize: `captions`, `audio_tables`, `audio_files`
(what there is), `work_unit`, `shard_job` (shards that survive a kill). On top: `benchmark` (how fast they are read).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# webdataset reads this when it is imported: no pickles and no `pipe:` commands out of somebody's tar.
os.environ.setdefault("WDS_SECURE", "1")

if TYPE_CHECKING:
    from datamodules.position import DataPosition
    from datamodules.streaming import StreamingDataModule
    from datamodules.tokens import TokenDataModule

__all__ = ["DataPosition", "StreamingDataModule", "TokenDataModule"]


def __getattr__(name: str) -> Any:
    """Import the Lightning classes when they are first asked for; the shards need no Lightning."""
    if name == "DataPosition":
        from datamodules.position import DataPosition

        return DataPosition
    if name == "StreamingDataModule":
        from datamodules.streaming import StreamingDataModule

        return StreamingDataModule
    if name == "TokenDataModule":
        from datamodules.tokens import TokenDataModule

        return TokenDataModule
    raise AttributeError(f"module 'datamodules' has no attribute {name!r}")
