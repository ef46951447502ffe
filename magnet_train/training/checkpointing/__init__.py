"""What keeps a run from being lost: whole checkpoint files, and finding the one to go on from."""

from magnet_train.training.checkpointing.checkpoint_io import AtomicCheckpointIO
from magnet_train.training.checkpointing.resume import (
    LAST,
    checkpoints_of,
    find_checkpoint,
    peek,
    step_of,
    why_unreadable,
)

__all__ = [
    "LAST",
    "AtomicCheckpointIO",
    "checkpoints_of",
    "find_checkpoint",
    "peek",
    "step_of",
    "why_unreadable",
]
