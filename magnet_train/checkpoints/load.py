"""Tell formats apart and read whichever it is."""

from __future__ import annotations

from pathlib import Path

from magnet_train.checkpoints.audiocraft import STATE_FILE
from magnet_train.checkpoints.export import CONFIG, load_export
from magnet_train.checkpoints.lightning import read_checkpoint
from magnet_train.checkpoints.stored import StoredModel
from magnet_train.errors import UserError
from magnet_train.hub import SETTINGS, WEIGHTS, find_folder

FILE_SUFFIXES = (".ckpt", ".bin")


def read_model(path_or_hub_id: str | Path, raw: bool = False) -> StoredModel:
    """Read a model from an export folder, a checkpoint of ours, or the hub.

    Args:
        path_or_hub_id: `exported/`, `last.ckpt`, or the hub id of an export.
        raw: For a checkpoint, take the weights without averaging.

    Raises:
        UserError: There is nothing, or nothing readable.
    """
    path = Path(path_or_hub_id)
    if path.is_file():
        return read_checkpoint(path, raw)
    if not path.exists():
        if path.suffix in FILE_SUFFIXES:
            raise UserError(f"{path} does not exist; check the path.")
        path = find_folder(str(path_or_hub_id), "model", SETTINGS + WEIGHTS)
    if (path / CONFIG).is_file():
        return load_export(path)
    if (path / STATE_FILE).is_file():
        raise UserError(
            f"{path} holds a model of audiocraft; this version reads its weights only through "
            "magnet_train.checkpoints.audiocraft."
        )
    raise UserError(
        f"{path} holds no model ({CONFIG} is missing); name a folder that `export` wrote, or a .ckpt."
    )
