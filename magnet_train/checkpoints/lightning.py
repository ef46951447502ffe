"""Read a Lightning checkpoint that `fit` saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from magnet_train.checkpoints.bundle import ModelBundle, describe, load_plain
from magnet_train.checkpoints.layout import FORMAT, KEY, RAW_STATE
from magnet_train.errors import UserError


def read_checkpoint(path: Path, raw: bool = False, checkpoint: Any = None) -> ModelBundle:
    """Read model and settings, not the state of the training.

    Args:
        path: The `.ckpt`.
        raw: Take the weights as they were trained instead of their moving average, where both are there.
        checkpoint: The file's content where it has been read already.

    Raises:
        UserError: Not a checkpoint of ours, or one that cannot be read.
    """
    checkpoint = load_plain(path) if checkpoint is None else checkpoint
    stored = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(stored, Mapping) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise UserError(f"{path} was not written by magnet-train; name a checkpoint that `fit` saved.")
    if stored.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {stored.get('format')}, this version reads {FORMAT}; update magnet-train."
        )
    averaged = RAW_STATE in checkpoint and not raw and _was_averaged(checkpoint)
    weights = checkpoint["state_dict" if averaged or RAW_STATE not in checkpoint else RAW_STATE]
    training: dict[str, Any] = {"steps": _count(checkpoint.get("global_step"))}
    callbacks = checkpoint.get("callbacks")
    position = callbacks.get("DataPosition") if isinstance(callbacks, Mapping) else None
    if isinstance(position, Mapping) and "slots" in position:
        training["clips seen"] = _count(position["slots"])
    training["weights"] = "ema" if averaged else "raw"
    if not isinstance(weights, Mapping) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise UserError(
            f"{path} holds something else than tensors as weights; name a checkpoint that `fit` saved."
        )
    return describe(stored, str(path), dict(weights), source=str(path), training=training)


def _was_averaged(checkpoint: Mapping[str, Any]) -> bool:
    """Tell a true average from the weights that training began with, which stand there until the first update."""
    state = checkpoint.get("averaging_state")
    return not isinstance(state, Mapping) or bool(state.get("n_averaged", 1) > 0)


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0
