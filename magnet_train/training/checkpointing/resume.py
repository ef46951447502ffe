"""Find the checkpoint to go on from: the one with most steps that can be read."""

from __future__ import annotations

import math
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from magnet_train.checkpoints.bundle import load_plain
from magnet_train.errors import UserError, first_line

LAST = "last.ckpt"  # points to the newest checkpoint of its folder
_SHARDS_INDEX, _SHARDS_REST = ".metadata", "meta.pt"  # what torch and Lightning write last in a sharded one


def checkpoints_of(run: Path) -> list[Path]:
    """List the checkpoints of a run's folder, the one with most optimizer steps first.

    The time of a file says when it was copied. It decides between two of the same step alone. The pointer is no
    checkpoint of its own. A damaged one goes by the step in its name, or comes first without one, to be named.
    """
    found = [path for path in run.glob("*.ckpt") if not path.is_symlink()]
    return sorted(
        found, key=lambda path: (_step_or_name(path), path.stat().st_mtime_ns, path.name), reverse=True
    )


def _step_or_name(path: Path) -> float:
    step = step_of(path)
    if step is not None:
        return step
    named = re.search(r"step=(\d+)", path.name)
    return int(named[1]) if named else math.inf


def find_checkpoint(run: Path) -> tuple[Path | None, list[str]]:
    """Choose what to resume from in a run's folder.

    Returns:
        The checkpoint with most steps that can be read, None where there is none; and a sentence for each
        later one that had to be passed over.
    """
    passed_over: list[str] = []
    for path in checkpoints_of(run):
        reason = why_unreadable(path)
        if reason is None:
            return path, passed_over
        passed_over.append(f"{path} cannot be read ({reason})")
    return None, passed_over


def why_unreadable(path: Path) -> str | None:
    """Check every byte of a checkpoint.

    torch does not compare checksums when it loads, so a flipped bit would go unnoticed into the weights.

    Returns:
        None if it can be read, else what is wrong.
    """
    if path.is_dir():
        missing = [name for name in (_SHARDS_INDEX, _SHARDS_REST) if not (path / name).is_file()]
        return f"{', '.join(missing)} is missing, it was not finished" if missing else None
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            return f"its part {damaged} is damaged"
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a damaged file makes zipfile, pickle or torch raise
        return first_line(error)[:120]
    if not isinstance(content, dict) or not {"state_dict", "loops", "optimizer_states"} <= content.keys():
        return "it holds weights alone"
    return None


def step_of(path: Path) -> int | None:
    """Read how many optimizer steps a checkpoint has behind it, without its weights.

    Returns:
        None if it cannot be read or does not say.
    """
    step = (peek(path) or {}).get("global_step")
    return step if isinstance(step, int) else None


def peek(path: Path) -> dict[str, Any] | None:
    """Open a checkpoint as plain data whose tensors stay on the disk until they are used.

    Returns:
        None if it cannot be read.
    """
    try:
        file = path / _SHARDS_REST if path.is_dir() else path
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # as above; who loads all of it says what is wrong
        return None
    return content if isinstance(content, dict) else None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint on the CPU, as plain data only.

    Raises:
        UserError: It is missing, damaged, or holds more than plain data.
    """
    content = load_plain(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is no checkpoint; name one that `fit` saved.")
    return content
