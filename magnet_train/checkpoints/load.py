"""Tell formats apart and read whichever it is."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from magnet_train.checkpoints.audiocraft import STATE_FILE
from magnet_train.checkpoints.export import CONFIG, load_export
from magnet_train.checkpoints.lightning import read_checkpoint
from magnet_train.checkpoints.stored import StoredModel
from magnet_train.errors import UserError


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
        path = _download(str(path_or_hub_id))
    if (path / CONFIG).is_file():
        return load_export(path)
    if (path / STATE_FILE).is_file():
        raise UserError(
            f"{path} holds a model of audiocraft; this version reads its weights only through "
            "magnet_train.checkpoints.audiocraft."
        )
    raise UserError(f"{path} holds no model ({CONFIG} is missing); name a folder that `export` wrote, or a .ckpt.")


def _download(name: str) -> Path:
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or name.endswith((".ckpt", ".bin")):
        raise UserError(f"{name} does not exist; check the path.")
    try:
        return Path(snapshot_download(name))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name} is neither a path here nor a model that could be fetched from the hub ({reason}); check the "
            "name and the network."
        ) from error
