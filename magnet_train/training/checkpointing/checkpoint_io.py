"""Write checkpoints so that a kill, a full disk or a power cut leaves the one before."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import atomic_write, point_to
from magnet_train.training.checkpointing.resume import LAST, load_checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Save beside the target, fsync and rename; then let `last.ckpt` in the same folder point to it.

    Lightning's own goes through TMPDIR, and where that is on another filesystem its last step is a copy that
    a kill can interrupt.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write one checkpoint; afterwards it is whole, or the one before still stands.

        Args:
            checkpoint: What Lightning collected.
            path: File to write.
            storage_options: Not used.

        Raises:
            UserError: No room, or no permission.
        """
        path = Path(path)
        try:
            with atomic_write(path) as file:
                torch.save(checkpoint, file)
            if path.name != LAST:
                point_to(path.with_name(LAST), path)
        except UserError as error:
            raise UserError(f"saving a checkpoint failed, what was saved before stands: {error}") from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint as plain data, whatever `weights_only` says.

        Raises:
            UserError: It is missing, damaged, or holds more than plain data.
        """
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a file, or the folder of a sharded checkpoint."""
        path = Path(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
