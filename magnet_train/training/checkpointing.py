"""Atomic checkpoint files, and the choice of the checkpoint that a run resumes from."""

from __future__ import annotations

import math
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from magnet_train.checkpoints.torch_file import load_plain
from magnet_train.errors import UserError, first_line
from magnet_train.storage.atomic_io import atomic_write, point_to

LAST = "last.ckpt"  # link to the newest checkpoint of its folder


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write next to the target, fsync and rename, then point `last.ckpt` of the same folder to it.

    A kill, a full disk or a power cut leaves the previous checkpoint. Lightning writes to TMPDIR and then moves the file;
    across filesystems that is a copy, which a kill can interrupt.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint as a whole, or leave the previous one.

        Raises:
            UserError: The disk is full, or the folder cannot be written to.
        """
        path = Path(path)
        try:
            with atomic_write(path) as file:
                torch.save(checkpoint, file)
            if path.name != LAST:
                point_to(path.with_name(LAST), path)
        except UserError as error:
            raise UserError(
                f"saving a checkpoint failed, the previous checkpoints are intact: {error}"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint to the CPU; errors as of `load_plain`."""
        content = load_plain(Path(path))
        if not isinstance(content, dict):
            raise UserError(f"{path} is not a training checkpoint; name one that `fit` saved.")
        return content


def find_checkpoint(run: Path) -> tuple[Path | None, list[str]]:
    """Choose the checkpoint to resume from in the folder of a run.

    Returns:
        The readable checkpoint with the most optimizer steps, or None; a sentence for each unreadable one with more.
    """
    unreadable: list[str] = []
    for path in checkpoints_of(run):
        reason = why_unreadable(path)
        if reason is None:
            return path, unreadable
        unreadable.append(f"{path} cannot be read ({reason})")
    return None, unreadable


def checkpoints_of(run: Path) -> list[Path]:
    """List the checkpoints in the folder of a run, most optimizer steps first; `last.ckpt` is only a link.

    Modification times decide only between two of the same step, since a copy changes them. A damaged checkpoint is
    sorted by the step in its name, and first without one, so that it is reported.
    """

    def order(path: Path) -> tuple[float, int, str]:
        step = (peek(path) or {}).get("global_step")
        if not isinstance(step, int):
            named = re.search(r"step=(\d+)", path.name)
            step = int(named[1]) if named else math.inf
        return step, path.stat().st_mtime_ns, path.name

    return sorted((path for path in run.glob("*.ckpt") if not path.is_symlink()), key=order, reverse=True)


def why_unreadable(path: Path) -> str | None:
    """Check all bytes of a checkpoint against its checksums, which torch ignores; return what is wrong, or None."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            return f"its part {damaged} is damaged"
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file makes zipfile, pickle or torch raise anything
        return first_line(error)[:120]
    if not isinstance(content, dict) or not {"state_dict", "loops", "optimizer_states"} <= content.keys():
        return "it holds weights but no training state"
    return None


def peek(path: Path) -> dict[str, Any] | None:
    """Open a checkpoint as plain data whose tensors stay on disk until they are used; None if unreadable."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # as above; `load_checkpoint` reports the cause
        return None
    return content if isinstance(content, dict) else None
