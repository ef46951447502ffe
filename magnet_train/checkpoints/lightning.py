"""Read a Lightning checkpoint that `fit` saved."""

from __future__ import annotations

from pathlib import Path

from magnet_train.checkpoints.stored import LM, TEXT, StoredModel, decoding_from_dict, load_plain
from magnet_train.errors import UserError
from magnet_train.tokens import CodecInfo

KEY = "magnet_train"
FORMAT = 1
RAW = "current_model_state"  # Lightning's EMA callback keeps the averaged weights in `state_dict`


def read_checkpoint(path: Path, raw: bool = False) -> StoredModel:
    """Read model and settings, not the state of the training.

    Args:
        path: The `.ckpt`.
        raw: Take the weights as they were trained instead of their moving average, where both are there.

    Raises:
        UserError: Not a checkpoint of ours, or one that cannot be read.
    """
    checkpoint = load_plain(path)
    stored = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    if stored is None:
        raise UserError(f"{path} was not written by magnet-train; name a checkpoint that `fit` saved.")
    if stored["format"] != FORMAT:
        raise UserError(f"{path} has format {stored['format']}, this version reads {FORMAT}; update magnet-train.")
    weights = checkpoint[RAW] if raw and RAW in checkpoint else checkpoint["state_dict"]
    return StoredModel(
        source=str(path),
        lm=stored["lm"],
        text=stored["text"],
        codec=CodecInfo.from_dict(stored["codec"], str(path)),
        decoding=decoding_from_dict(stored["decoding"], str(path)),
        segment_duration=float(stored["segment_duration"]),
        weights={name: tensor for name, tensor in weights.items() if name.startswith((LM, TEXT))},
        training={"steps": int(checkpoint["global_step"]), "weights": "raw" if raw or RAW not in checkpoint else "ema"},
    )
