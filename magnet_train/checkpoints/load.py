"""Load a model of any format as a `ModelBundle`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from magnet_train.checkpoints.adapter import merge_adapter, weights_sha256
from magnet_train.checkpoints.audiocraft.names import CODEC_FILE, STATE_FILE
from magnet_train.checkpoints.audiocraft.read import is_audiocraft, read_audiocraft
from magnet_train.checkpoints.bundle import (
    AVERAGING_STATE,
    FORMAT,
    KEY,
    RAW_WEIGHTS,
    UNSPECIFIED,
    ModelBundle,
    bundle_from_record,
)
from magnet_train.checkpoints.card import RELEASED
from magnet_train.checkpoints.export import CARD, CONFIG, load_export
from magnet_train.checkpoints.torch_file import load_plain
from magnet_train.errors import UserError
from magnet_train.storage.hub import SETTINGS, WEIGHTS, find_folder
from magnet_train.storage.weight_checks import require_finite

FILE_SUFFIXES = (".ckpt", ".bin", ".th", ".pt")
HUB_FILES = (*SETTINGS, *WEIGHTS, STATE_FILE, CODEC_FILE, CARD)
RELEASES = ("facebook/magnet-", "facebook/audio-magnet-")


def read_model(path_or_hub_id: str | Path, raw: bool = False) -> ModelBundle:
    """Read a model as `read_bundle`, and merge an adapter into its base.

    Raises:
        UserError: As in `read_bundle`, or the adapter's base is missing or has changed.
    """
    bundle = read_bundle(path_or_hub_id, raw)
    return bundle if not bundle.adapter else merge_adapter(_base_of(bundle), bundle)


def _base_of(adapter: ModelBundle) -> ModelBundle:
    source = str(adapter.base.get("source"))
    try:
        base = read_model(source)
    except UserError as error:
        reason = str(error).removesuffix(".")
        raise UserError(
            f"{adapter.source} holds an adapter to {source}, which cannot be read ({reason}); put the base there, or name "
            "it as the model and this file as --adapter."
        ) from error
    if weights_sha256(base.weights) != adapter.base.get("weights_sha256"):
        raise UserError(
            f"{adapter.source} holds an adapter to {source}, whose weights have changed since; name the right base as "
            "the model and this file as --adapter."
        )
    return base


def read_bundle(path_or_hub_id: str | Path, raw: bool = False, mapped: bool = False) -> ModelBundle:
    """Read a model in any format, or an adapter alone.

    Args:
        path_or_hub_id: A folder that `export` wrote; a checkpoint that `fit` saved; a release of audiocraft
            (its folder or `state_dict.bin`) or a training checkpoint of it; or a hub id that holds one of these.
        raw: Take the weights as trained instead of their moving average.
        mapped: As in `load_plain`.

    Raises:
        UserError: The model is missing or cannot be read, or `raw` is given for a file with one set of weights.
    """
    path = Path(path_or_hub_id)
    if path.is_file():
        package = load_plain(path, mapped)
        if not is_audiocraft(package):
            return _read_checkpoint(path, raw, package)
        if raw:
            raise _only_one_set(path)
        return read_audiocraft(path, package)
    if not path.exists() and path.suffix in FILE_SUFFIXES:
        raise UserError(f"{path} does not exist; check the path.")
    fetched = not path.exists()
    if fetched:
        path = find_folder(str(path_or_hub_id), "model", HUB_FILES)
    bundle = _read_folder(path)
    if raw:
        raise _only_one_set(path)
    if fetched:
        bundle = replace(bundle, source=str(path_or_hub_id))
        if bundle.licence == UNSPECIFIED and str(path_or_hub_id).startswith(RELEASES):
            bundle = replace(bundle, licence=RELEASED)
    return bundle


def _read_folder(path: Path) -> ModelBundle:
    if (path / CONFIG).is_file():
        return load_export(path)
    if (path / STATE_FILE).is_file():
        return read_audiocraft(path)
    if (path / "last.ckpt").is_file():
        raise UserError(f"{path} is the folder of a run; name its checkpoint, {path / 'last.ckpt'}.")
    raise UserError(
        f"{path} holds no model: it has neither {CONFIG} nor {STATE_FILE}; name a folder that `export` wrote, a release "
        "of audiocraft, or a .ckpt."
    )


def _only_one_set(path: Path) -> UserError:
    return UserError(
        f"{path} holds only one set of weights; leave --raw out, or name the checkpoint that `fit` saved."
    )


def _read_checkpoint(path: Path, raw: bool, checkpoint: Any) -> ModelBundle:
    """Read the content of a checkpoint that `fit` saved; see `checkpoints.bundle` for its keys."""
    record = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(record, Mapping) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise UserError(f"{path} was not written by magnet-train; name a checkpoint that `fit` saved.")
    if record.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {record.get('format')}, this version reads {FORMAT}; update magnet-train."
        )
    averaged = RAW_WEIGHTS in checkpoint and not raw and _was_averaged(checkpoint)
    weights = checkpoint["state_dict" if averaged or RAW_WEIGHTS not in checkpoint else RAW_WEIGHTS]
    training: dict[str, Any] = {"steps": _count(checkpoint.get("global_step"))}
    callbacks = checkpoint.get("callbacks")
    position = callbacks.get("DataPosition") if isinstance(callbacks, Mapping) else None
    if isinstance(position, Mapping) and "slots" in position:
        training["clips seen"] = _count(position["slots"])
    training["weights"] = "ema" if averaged else "raw"
    if not isinstance(weights, Mapping) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise UserError(f"{path} has weights that are not tensors; name a checkpoint that `fit` saved.")
    record = {**record, "training": training}
    bundle = bundle_from_record(record, str(path), dict(weights), source=str(path))
    require_finite(bundle.weights, str(path))
    return bundle


def _was_averaged(checkpoint: Mapping[str, Any]) -> bool:
    """Return False before the first update, when the initial weights stand in place of an average."""
    state = checkpoint.get(AVERAGING_STATE)
    return not isinstance(state, Mapping) or bool(state.get("n_averaged", 1) > 0)


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0
