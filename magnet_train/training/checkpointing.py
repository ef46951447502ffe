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

    A kill, a full disk or a power cut leaves the previous checkpoint. Lightning writes to TMPDIR first; on another
    filesystem its last step is a copy, which a kill can interrupt.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write one checkpoint as a whole, or leave the previous one.

        Args:
            checkpoint: Content, as Lightning collected it.
            path: File to write.
            storage_options: Unused.

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
        """Read a checkpoint to the CPU as plain data, whatever `weights_only` is.

        Raises:
            UserError: It is missing, damaged, or holds more than plain data.
        """
        content = load_plain(Path(path))
        if not isinstance(content, dict):
            raise UserError(f"{path} is not a training checkpoint; name one that `fit` saved.")
        return content


def find_checkpoint(run: Path) -> tuple[Path | None, list[str]]:
    """Choose the checkpoint to resume from in the folder of a run.

    Returns:
        The readable checkpoint with most optimizer steps, None without one; and a sentence for each later one that is
        unreadable.
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

    def step_in_name(path: Path) -> float:
        named = re.search(r"step=(\d+)", path.name)
        return int(named[1]) if named else math.inf

    def order(path: Path) -> tuple[float, int, str]:
        step = step_of(path)
        return step_in_name(path) if step is None else step, path.stat().st_mtime_ns, path.name

    return sorted((path for path in run.glob("*.ckpt") if not path.is_symlink()), key=order, reverse=True)


def why_unreadable(path: Path) -> str | None:
    """Check every byte of a checkpoint against its checksums, which torch ignores when it loads.

    Returns:
        None if it is readable, else what is wrong with it.
    """
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


def step_of(path: Path) -> int | None:
    """Return the number of optimizer steps of a checkpoint without reading its weights; None if unreadable."""
    step = (peek(path) or {}).get("global_step")
    return step if isinstance(step, int) else None


def peek(path: Path) -> dict[str, Any] | None:
    """Open a checkpoint as plain data whose tensors stay on disk until they are used; None if unreadable."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # as above; `load_checkpoint` reports the cause
        return None
    return content if isinstance(content, dict) else None
